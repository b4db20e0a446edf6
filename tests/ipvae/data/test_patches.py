import math

import pytest
import torch
from ipvae.data import load_dataset
from ipvae.data import patches as P
from ipvae.data.splits import SPLITS
from torch import Tensor

HEIGHT, WIDTH = 427, 640


@pytest.fixture(scope="module")
def photographs() -> list[Tensor]:
    return P.photographs()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, photographs: list[Tensor]) -> None:
    """A corner of each photograph instead of the whole, for speed."""
    monkeypatch.setattr(P, "photographs", lambda: [image[200:328, :180] for image in photographs])


def pixels_of_splits(size: int) -> dict[str, Tensor]:
    """Which pixels any patch of a split holds, cut from images whose values are their own indices."""
    n = HEIGHT * WIDTH
    index_images = [
        torch.arange(i * n, (i + 1) * n, dtype=torch.float32).reshape(HEIGHT, WIDTH) for i in range(2)
    ]
    regions = P.split_regions(index_images)
    steps = {"train": 1, "validation": size, "test": size}
    corners = {split: P.patch_corners(regions[split], size, steps[split], min_contrast=0) for split in SPLITS}
    used = {}
    for split in SPLITS:
        used[split] = mask = torch.zeros(2 * n, dtype=torch.bool)
        for some in corners[split].split(20_000):
            mask[P.cut(regions[split], some, size).flatten().long()] = True
    return used


def radial_amplitude(image: Tensor, n_bins: int = 20) -> Tensor:
    """Root mean power of a windowed image in rings of equal width from 0 to Nyquist, [n_bins]."""
    windows = [torch.hann_window(n, dtype=image.dtype) for n in image.shape]
    power = torch.fft.fft2((image - image.mean()) * windows[0].unsqueeze(1) * windows[1]).abs().square()
    fy, fx = (torch.fft.fftfreq(n, d=0.5, dtype=image.dtype) for n in image.shape)
    ring = (torch.hypot(fy.unsqueeze(1), fx) * n_bins).long()
    return torch.stack([power[ring == i].mean().sqrt() for i in range(n_bins)])


def test_no_pixel_is_in_two_splits() -> None:
    used = pixels_of_splits(16)
    assert all(mask.any() for mask in used.values())
    assert not (used["train"] & used["validation"]).any()
    assert not (used["train"] & used["test"]).any()
    assert not (used["validation"] & used["test"]).any()


def test_regions_cover_the_photographs_once() -> None:
    mark = [torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)]
    pixels = torch.cat([tile.flatten() for tiles in P.split_regions(mark).values() for tile in tiles])
    assert torch.equal(pixels.sort().values, mark[0].flatten())
    shares = {s: sum(t.numel() for t in tiles) / pixels.numel() for s, tiles in P.split_regions(mark).items()}
    assert shares == pytest.approx({"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.01)


@pytest.mark.parametrize("contrast", ["local", "none"])
@pytest.mark.parametrize("changed", ["validation", "test"])
def test_no_filter_carries_pixels_across_splits(
    photographs: list[Tensor], changed: str, contrast: P.Contrast
) -> None:
    before = P.normalise(P.split_regions(photographs), 0.8, contrast)
    regions = P.split_regions(photographs)
    regions[changed] = [tile.flip(0) * 2 + 10 for tile in regions[changed]]
    after = P.normalise(regions, 0.8, contrast)
    for split in SPLITS:
        same = [torch.equal(a, b) for a, b in zip(before[split], after[split], strict=True)]
        assert not any(same) if split == changed else all(same), split


def test_whitening_flattens_a_1_over_f_spectrum() -> None:
    noise = torch.randn(512, 512, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = torch.hypot(
        torch.fft.fftfreq(512, dtype=torch.float64).unsqueeze(1), torch.fft.rfftfreq(512, dtype=torch.float64)
    )
    f[0, 0] = 1
    image: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) / f)
    amplitude = radial_amplitude(P.whiten(image[:400, :300], f0=0.8))
    centre = (torch.arange(20) + 0.5) / 20  # of Nyquist
    flat = amplitude / torch.exp(-((centre / 0.8) ** 4))
    band = slice(1, 19)  # 0.05 to 0.95 of Nyquist
    assert (flat[band] / flat[band].mean() - 1).abs().max() < 0.1
    # in the pass band of the low-pass, without dividing it out
    assert (amplitude[1:10] / amplitude[1:10].mean() - 1).abs().max() < 0.12


def test_whitened_photographs_are_flat_from_0_05_to_0_6_of_nyquist(photographs: list[Tensor]) -> None:
    band = slice(1, 12)
    log_f = torch.log(torch.arange(20, dtype=torch.float64) + 0.5)[band]
    raw, white = (
        torch.stack([radial_amplitude(f(image))[band].log() for image in photographs]).mean(dim=0)
        for f in (lambda image: image, P.whiten)
    )

    def slope(log_amplitude: Tensor) -> float:
        x = log_f - log_f.mean()
        return float((x * log_amplitude).sum() / x.square().sum())

    assert slope(raw) < -0.9
    assert abs(slope(white)) < 0.25
    assert (white - white.mean()).abs().max() < math.log(1.4)
    assert (raw - raw.mean()).abs().max() > math.log(3)


def test_whitening_has_no_mean_and_no_edge(photographs: list[Tensor]) -> None:
    tile = photographs[0][:200, :128]
    assert P.whiten(tile + 1000.0).mean().abs() < 1e-9
    torch.testing.assert_close(P.whiten(tile + 1000.0), P.whiten(tile), rtol=0, atol=1e-9)
    torch.testing.assert_close(P.whiten(tile.flip(1)), P.whiten(tile).flip(1), rtol=0, atol=1e-9)
    slope = torch.arange(64, dtype=torch.float64).expand(
        64, 64
    )  # a periodic filter would see a jump of 63 at the edge
    assert P.whiten(slope).abs().max() < 2


def test_local_contrast_is_that_of_jarrett() -> None:
    tiles = [
        torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2)
    ]
    tiles[0][:, 10:] *= 0.01
    result = P.local_contrast({"train": tiles[:1], "test": tiles[1:]})
    axis = torch.linspace(-1, 1, 13, dtype=torch.float64)
    kernel = torch.exp(-(axis.unsqueeze(1) ** 2 + axis**2) / 0.5)
    kernel /= kernel.sum()

    def blur(image: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(image[None], (6, 6, 6, 6), mode="reflect")[0]
        return (padded.unfold(0, 13, 1).unfold(1, 13, 1) * kernel).sum(dim=(2, 3))

    v = [tile - blur(tile) for tile in tiles]
    spread = [blur(a**2).sqrt() for a in v]
    floor = spread[0].mean()  # of the training regions only
    torch.testing.assert_close(result["train"][0], v[0] / torch.maximum(spread[0], floor))
    torch.testing.assert_close(result["test"][0], v[1] / torch.maximum(spread[1], floor))


def test_defaults() -> None:
    data = load_dataset("patches", n_train=3000)
    assert data.shape == (1, 16, 16)
    assert len(data.train) == 3000
    assert 190 < len(data.validation) < 230
    assert 190 < len(data.test) < 230
    for split in SPLITS:
        x: Tensor = getattr(data, split)
        assert x.shape[1] == 256
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        torch.testing.assert_close(x.mean(dim=1), torch.zeros(len(x)), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.std(dim=1, correction=0), torch.ones(len(x)), rtol=1e-3, atol=0)
    assert not data.labels
    assert "china" in data.about


@pytest.mark.parametrize("contrast", ["local", "none"])
@pytest.mark.usefixtures("small")
def test_training_patches_have_unit_variance(contrast: str) -> None:
    data = load_dataset("patches", n_train=3000, contrast=contrast)
    assert float(data.train.var()) == pytest.approx(1, abs=1e-4)
    assert 0.5 < float(data.test.var()) < 2


@pytest.mark.usefixtures("small")
def test_seed_decides_training_patches_only() -> None:
    a, b, c = (load_dataset("patches", n_train=500, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.train, b.train)
    assert not torch.equal(a.train, c.train)
    assert torch.allclose(a.test, c.test, rtol=1e-4)
    assert len(a.train.unique(dim=0)) == 500


@pytest.mark.usefixtures("small")
def test_flip_mirrors_some_patches() -> None:
    plain, flipped = (load_dataset("patches", n_train=200, flip=flip) for flip in (False, True))
    same = (plain.images("train") == flipped.images("train")).flatten(1).all(dim=1)
    mirrored = (plain.images("train").flip(3) - flipped.images("train")).abs().flatten(1).amax(dim=1) < 1e-5
    assert (same ^ mirrored).all()
    assert 60 < int(mirrored.sum()) < 140
    assert torch.equal(plain.test, flipped.test)


def test_blank_patches_are_left_out(photographs: list[Tensor]) -> None:
    tiles = P.normalise(P.split_regions(photographs), 0.8, "local")["train"]
    corners = P.patch_corners(tiles, 16, 4, 0.25)
    assert P.cut(tiles, corners, 16).std(dim=(1, 2), correction=0).min() >= 0.25
    assert len(corners) < len(P.patch_corners(tiles, 16, 4, 0.0))


def test_cut_keeps_the_order_of_corners() -> None:
    tiles = [torch.arange(30.0).reshape(5, 6), 100 + torch.arange(30.0).reshape(5, 6)]
    corners = torch.tensor([[1, 2, 3], [0, 0, 0], [1, 0, 4]])
    expected = torch.stack([tiles[t][y : y + 2, x : x + 2] for t, y, x in corners.tolist()])
    assert torch.equal(P.cut(tiles, corners, 2), expected)


def test_other_size() -> None:
    data = load_dataset("patches", size=32, n_train=100)
    assert data.shape == (1, 32, 32)
    assert data.train.shape == (100, 1024)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 37}, "size: expected 2 to 36 pixels"),
        ({"size": 1}, "size: expected 2 to 36 pixels"),
        ({"n_train": 10**7}, "n_train: expected 1 to [0-9]+.*found 10000000"),
        ({"n_train": 0}, "n_train"),
        ({"contrast": "zca"}, "contrast: expected one of patch, local, none, found 'zca'"),
        ({"f0": 0.0}, "f0: expected a positive fraction"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("patches", **options)
