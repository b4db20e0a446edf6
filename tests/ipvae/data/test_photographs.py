"""Patches from a folder of one's own photographs, and from files of van Hateren's images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ipvae.data import load_dataset, patches
from ipvae.data.patches import photographs, whiten
from ipvae.data.photographs import read_photograph
from PIL import Image


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
