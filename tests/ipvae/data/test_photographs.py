"""Patches from a folder of one's own photographs, and from files of van Hateren's images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ipvae.data import load_dataset, patches
from ipvae.data.patches import photographs, whiten
from ipvae.data.photographs import photo_patches, read_photograph
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]


def write(path: Path, images: Array) -> Path:
    """A file of one array, by its ending."""
    if path.suffix == ".npy":
        np.save(path, images)
    elif path.suffix == ".npz":
        np.savez(path, images=images)
    elif path.suffix == ".mat":
        pytest.importorskip("scipy.io").savemat(path, {"IMAGES": images})
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["images"] = images
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs in colour, one in grey, of other sizes, and a file that is none."""
    scenes = [image[200:328, :180].clamp(0, 255).byte().numpy() for image in photographs()]
    place = tmp_path / "walk"
    place.mkdir()
    Image.fromarray(np.stack([scenes[0]] * 3, -1)).save(place / "a.png")
    Image.fromarray(np.stack([scenes[1]] * 3, -1)).save(place / "b.JPG", quality=95)
    Image.fromarray(scenes[0][:, ::-1]).save(place / "c.tiff")
    (place / "notes.txt").write_text("nice walk")
    return place


def test_patches_of_a_folder(folder: Path) -> None:
    data = load_dataset(folder, size=8, n_train=300, seed=1)
    assert (data.name, data.shape, len(data.train)) == ("walk", (1, 8, 8), 300)
    assert min(len(data.validation), len(data.test)) > 30
    assert data.train.mean(1).abs().max() < 1e-5
    assert data.train.std() == pytest.approx(1, abs=1e-5)
    assert "3 photograph(s)" in data.about
    again, other = (load_dataset(folder, size=8, n_train=300, seed=seed) for seed in (1, 2))
    assert torch.equal(data.train, again.train)
    assert not torch.equal(data.train, other.train)
    assert torch.equal(data.test, other.test)


def test_one_photograph_goes_the_way_of_the_sampler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"size": 8, "n_train": 300, "seed": 3, "flip": True}
    found = load_dataset(folder / "a.png", **options)
    monkeypatch.setattr(patches, "photographs", lambda: [read_photograph(folder / "a.png")])
    expected = load_dataset("patches", **options)
    assert torch.equal(found.train, expected.train)
    assert torch.equal(found.test.sort(0).values, expected.test.sort(0).values)


def test_a_folder_gives_as_many_patches_as_it_has(folder: Path) -> None:
    assert 1000 < len(load_dataset(folder, size=16).train) < 50_000


def test_van_hateren(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 6000, (1024, 1536)).astype(">u2")
    levels.tofile(tmp_path / "imk00001.iml")
    np.testing.assert_array_equal(read_photograph(tmp_path / "imk00001.iml").numpy(), levels.astype(float))
    (tmp_path / "imk00001.iml").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"imk00001\.iml: expected 3145728 bytes .*found 100"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(("mode", "scale"), [("L", 1), ("RGB", 1), ("RGBA", 1), ("P", 1), ("I;16", 257)])
def test_grey_levels_of_every_mode(tmp_path: Path, mode: str, scale: int) -> None:
    levels = np.tile(np.arange(0, 200, 10, dtype=np.uint8), (12, 1))
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(levels).convert(mode)
    image.save(tmp_path / "x.png")
    np.testing.assert_allclose(read_photograph(tmp_path / "x.png").numpy(), levels * float(scale), atol=1e-6)


def test_large_photographs_are_reduced(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((3000, 200)).save(tmp_path / "wide.png")
    assert read_photograph(tmp_path / "wide.png").shape == (102, 1536)


@pytest.fixture
def stack() -> Array:
    """Three photographs [N, H, W], grey levels."""
    scenes = [image[100:260, x : x + 180].numpy() for image in photographs() for x in (0, 300)]
    return np.stack(scenes[:3]).round()


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2), (1, 2, 0)],
    ids=["images first", "images last"],
)
@pytest.mark.parametrize("ending", ["npy", "npz", "mat", "h5"])
def test_large_images_in_a_file_of_numbers_are_photographs(
    ending: str, order: tuple[int, ...], stack: Array, tmp_path: Path
) -> None:
    path = write(tmp_path / f"IMAGES_RAW.{ending}", stack.transpose(order))
    data = load_dataset(path, size=8, n_train=300, seed=1)
    assert (data.name, data.shape, len(data.train)) == ("IMAGES_RAW", (1, 8, 8), 300)
    assert "3 photograph(s)" in data.about
    assert "1/f whitening" in data.about
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(stack):
        Image.fromarray(image.astype(np.float32)).save(folder / f"{i}.tiff")
    expected = load_dataset(folder, size=8, n_train=300, seed=1)
    assert torch.equal(data.train, expected.train)


def test_what_is_whitened_is_not_whitened_again(stack: Array, tmp_path: Path) -> None:
    """IMAGES.mat of Olshausen and Field, [512, 512, 10] and of both signs."""
    white = np.stack([whiten(image).numpy() for image in stack])
    path = write(tmp_path / "IMAGES.mat", white.transpose(1, 2, 0))
    data = load_dataset(path, size=8, n_train=300, contrast="none")
    assert "not whitened" in data.about
    raw = load_dataset(write(tmp_path / "RAW.npy", stack), size=8, n_train=300, contrast="none", f0=None)
    assert "not whitened" in raw.about
    spectrum = [float(splits.train.view(-1, 8, 8).diff(dim=2).square().mean()) for splits in (data, raw)]
    assert spectrum[0] > 4 * spectrum[1]  # raw images are smooth


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_large_images(channels: int, stack: Array, tmp_path: Path) -> None:
    colour = np.stack(
        [stack, stack, stack, np.full_like(stack, 255.0)][:channels] if channels > 2 else [stack] * channels
    )
    paths = [write(tmp_path / "first.npy", np.moveaxis(colour, 0, 1))]
    if channels != 2:
        paths.append(write(tmp_path / "last.npy", np.moveaxis(colour, 0, -1)))
    grey = load_dataset(write(tmp_path / "grey.npy", stack), size=8, n_train=100)
    for path in paths:
        torch.testing.assert_close(load_dataset(path, size=8, n_train=100).train, grey.train)


def test_images_that_give_no_patches(stack: Array, tmp_path: Path) -> None:
    flat, broken = stack.copy(), stack.copy()
    flat[1], broken[2, 0, 0] = 3.0, np.nan
    with pytest.raises(ValueError, match=r"flat\.npy: image 1: all 28800 pixels are equal"):
        load_dataset(write(tmp_path / "flat.npy", flat))
    with pytest.raises(ValueError, match=r"nan\.npy: image 2: expected finite numbers"):
        load_dataset(write(tmp_path / "nan.npy", broken))
    with pytest.raises(ValueError, match=r"small\.npy: expected images of at least 128 pixels a side"):
        photo_patches(write(tmp_path / "small.npy", stack[:, :100]))
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.npy"):
        photo_patches(tmp_path / "none.npy")


def test_what_is_no_photograph(folder: Path, tmp_path: Path) -> None:
    (folder / "b.JPG").write_bytes((folder / "b.JPG").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"b\.JPG: not a readable image"):
        load_dataset(folder)
    Image.linear_gradient("L").resize((20, 20)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png: size: expected 2 to 4 pixels"):
        load_dataset(tmp_path / "small.png")
    Image.new("L", (200, 200), 7).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match=r"flat\.png: all 40000 pixels are equal"):
        load_dataset(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="min_contrast: no training patch"):
        load_dataset(folder / "a.png", min_contrast=1e9)


def test_whiten_takes_arrays(folder: Path) -> None:
    levels = np.asarray(Image.open(folder / "c.tiff"))
    assert torch.equal(whiten(levels), whiten(torch.from_numpy(levels.astype(np.float64))))
    with pytest.raises(ValueError, match=r"image: expected grey levels \[H, W\]"):
        whiten(np.zeros((3, 4, 4)))
    with pytest.raises(TypeError, match=r"image: expected a torch\.Tensor"):
        whiten("photo.png")  # type: ignore[arg-type]
