"""Files of numbers: formats, shapes, units, labels, and what is said of files that are not read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae.data import DataSplits, load_dataset

from .test_files import idx

Array = np.ndarray[Any, Any]
Write = Callable[[Path, Array], None]


def write_npz(path: Path, array: Array) -> None:
    np.savez(path, x=array, scale=np.ones(3), names=np.array(["a"]))


def write_mat(path: Path, array: Array) -> None:
    pytest.importorskip("scipy.io").savemat(path, {"data": array, "note": "one"})


def write_hdf5(path: Path, array: Array) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file["group/patches"] = array
        file["note"] = "one"


def write_mat73(path: Path, array: Array) -> None:
    """As MATLAB does: HDF5 after a header of 512 bytes, axes in the order of its memory."""
    with pytest.importorskip("h5py").File(path, "w", userblock_size=512) as file:
        file["data"] = np.transpose(array)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM")


WRITERS: dict[str, tuple[str, Write]] = {
    "npy": ("x.npy", np.save),
    "npz": ("x.npz", write_npz),
    "mat": ("x.mat", write_mat),
    "mat 7.3": ("x.mat", write_mat73),
    "h5": ("x.h5", write_hdf5),
    "hdf5": ("x.HDF5", write_hdf5),
}


def everything(data: DataSplits) -> Array:
    return torch.cat([data.train, data.validation, data.test]).numpy()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("shape", "image"),
    [((40, 9), (1, 3, 3)), ((40, 6), (1, 1, 6)), ((40, 2, 5), (1, 2, 5)), ((40, 3, 4, 4), (3, 4, 4))],
    ids=["rows", "strips", "images", "colours"],
)
def test_formats_and_shapes(
    tmp_path: Path, kind: str, shape: tuple[int, ...], image: tuple[int, ...]
) -> None:
    name, write = WRITERS[kind]
    array = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    write(tmp_path / name, array)
    data = load_dataset(tmp_path / name, seed=5, validation=0.25, test=0.1)
    assert (data.name, data.shape) == ("x", image)
    assert [len(x) for x in (data.train, data.validation, data.test)] == [26, 10, 4]
    expected = array.reshape(40, -1).astype(np.float32)
    np.testing.assert_array_equal(np.sort(everything(data), axis=0), expected)
    assert "unscaled" in data.about
    assert not torch.equal(data.test, load_dataset(tmp_path / name, seed=6, validation=0.25, test=0.1).test)


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28)], ids=["channels", "grey"])
def test_images_as_the_authors_keep_them(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    data = load_dataset(tmp_path / "x.npy", validation=0.0, test=0.0)
    assert data.shape == (1, 28, 28)
    np.testing.assert_allclose(data.train.numpy(), images.reshape(20, -1) / 255, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_last(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).random((20, channels, 6, 7))
    np.save(tmp_path / "first.npy", images)
    np.save(tmp_path / "last.npy", np.moveaxis(images, 1, -1))
    first, last = (load_dataset(tmp_path / f"{name}.npy") for name in ("first", "last"))
    assert first.shape == last.shape == (channels, 6, 7)
    assert torch.equal(first.train, last.train)
    assert "channels last" in last.about


@pytest.mark.parametrize("shape", [(6, 6, 9), (6, 6, 3, 9)], ids=["grey", "colour"])
def test_matlab_counts_images_last(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).standard_normal(shape)
    write_mat(tmp_path / "IMAGES.mat", images)
    data = load_dataset(tmp_path / "IMAGES.mat", validation=0.0, test=0.0)
    assert "the last index counts images" in data.about
    channels = images[:, :, None] if images.ndim == 3 else images
    expected = np.stack([[channels[:, :, c, i] for c in range(channels.shape[2])] for i in range(9)])
    np.testing.assert_array_equal(data.images("train").numpy(), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("values", "largest", "words"),
    [
        (np.array([[0, 51], [255, 102]], np.uint8), 1.0, "divided by 255"),
        (np.array([[0, 51], [2, 102]], np.uint8), 0.4, "divided by 255"),
        (np.array([[0.0, 51.0], [255.0, 102.0]]), 1.0, "divided by their largest number, 255"),
        (np.array([[0, 1000], [4095, 2]], np.uint16), 1.0, "divided by their largest number, 4095"),
        (np.array([[0.0, 0.25], [0.5, 0.75]]), 0.75, "unscaled"),
        (np.array([[-3.0, 40.0], [0.5, 0.75]]), 40.0, "unscaled"),
        (np.array([[True, False], [False, False]]), 1.0, "unscaled"),
    ],
    ids=["bytes", "dark bytes", "float pixels", "16 bits", "unit", "whitened", "binary"],
)
def test_units(tmp_path: Path, values: Array, largest: float, words: str) -> None:
    np.save(tmp_path / "x.npy", values)
    data = load_dataset(tmp_path / "x.npy", validation=0.0, test=0.0)
    assert data.train.max() == torch.tensor(largest)
    assert words in data.about


def test_labels_of_an_archive_follow_the_split(tmp_path: Path) -> None:
    x = np.arange(30, dtype=float)[:, None] - np.zeros(4) - 1.0
    np.savez(tmp_path / "x.npz", x=x, labels=np.arange(30, dtype=np.uint8))
    data = load_dataset(tmp_path / "x.npz")
    for split in ("train", "validation", "test"):
        assert (getattr(data, split)[:, 0] + 1).tolist() == data.labels[split].tolist()


def test_one_array_of_several_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", first=np.zeros((9, 4)), second=np.ones((8, 4)))
    with pytest.raises(ValueError, match=r"one array of inputs, or key= .* first \[9, 4\], second \[8, 4\]"):
        load_dataset(tmp_path / "x.npz")
    assert load_dataset(tmp_path / "x.npz", key="second", validation=0.0, test=0.0).train.sum() == 32
    with pytest.raises(ValueError, match="one array of inputs"):
        load_dataset(tmp_path / "x.npz", key="third")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "digits.idx"])
def test_a_single_idx_file(tmp_path: Path, name: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 4, 4))
    (tmp_path / name).write_bytes(idx(images))
    data = load_dataset(tmp_path / name, validation=0.0, test=0.0)
    np.testing.assert_allclose(data.images("train")[:, 0].numpy(), images / 255, rtol=1e-6)


@pytest.mark.parametrize("name", ["model.pt", "table.csv", "README"])
def test_other_files_are_said_to_be_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1,2,3")
    with pytest.raises(ValueError, match=r"a file of a kind that is not read .*\.npz, \.mat, \.h5"):
        load_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.mat", "x.h5"])
def test_missing_empty_and_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_dataset(path)
    WRITERS[name[2:]][1](path, np.zeros((9, 40)))
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-200], b"?" * 200):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}: (not a readable|expected one array)"):
            load_dataset(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, {}]), "not a readable"),
        (np.zeros((3, 3, 3, 3, 3)), "expected real numbers"),
        (np.zeros((3, 0)), "expected real numbers"),
        (np.zeros((9, 4), dtype=complex), "expected real numbers"),
        (np.full((9, 4), np.nan), "finite"),
        (np.full((9, 4), -1e300), "finite"),
    ],
    ids=["pickle", "5 axes", "empty", "complex", "nan", "overflow"],
)
def test_arrays_that_are_no_inputs(tmp_path: Path, array: Array, message: str) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path / "bad.npy")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.h5").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"needs h5py: pip install 'ipvae-kernels\[files\]'"):
        load_dataset(tmp_path / "x.h5")
