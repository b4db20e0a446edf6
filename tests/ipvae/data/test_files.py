"""IDX folders, digits, MNIST and its download."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ipvae.data import DATASETS, DataSplits, DownloadError, load_dataset, mnist
from ipvae.data.idx import read_idx
from ipvae.data.splits import random_split

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_mnist = pytest.mark.skipif(
    not (SHARED / "mnist").is_dir(), reason=f"no MNIST files in {SHARED / 'mnist'}"
)


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_idx(
    folder: Path, prefix: str, n: int, *, side: int = 4, labels: bool = True, pack: bool = False
) -> np.ndarray:
    images = np.random.default_rng(n).integers(0, 256, (n, side, side))
    parts = {f"{prefix}-images-idx3-ubyte": images}
    if labels:
        parts[f"{prefix}-labels-idx1-ubyte"] = np.arange(n) % 10
    for stem, array in parts.items():
        path = folder / (f"{stem}.gz" if pack else stem)
        path.write_bytes(gzip.compress(idx(array)) if pack else idx(array))
    return images


# --- IDX ---


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_idx_folder(tmp_path: Path, pack: bool) -> None:
    train = write_idx(tmp_path, "train", 50, pack=pack)
    test = write_idx(tmp_path, "t10k", 7, pack=pack)
    data = load_dataset(str(tmp_path), seed=1, validation=0.2)
    assert data.shape == (1, 4, 4)
    assert data.name == tmp_path.name
    assert [len(x) for x in (data.train, data.validation, data.test)] == [40, 10, 7]
    np.testing.assert_array_equal((data.test * 255).round().numpy().reshape(7, 4, 4), test)
    both = torch.cat([data.train, data.validation])
    rows = {tuple(row) for row in (both * 255).round().int().tolist()}
    assert rows == {tuple(row) for row in train.reshape(50, 16).tolist()}
    assert both.min() >= 0
    assert both.max() <= 1
    index = {tuple(row): i for i, row in enumerate(train.reshape(50, 16).tolist())}
    labels = [index[tuple(row)] % 10 for row in (data.train * 255).round().int().tolist()]
    assert data.labels["train"].tolist() == labels
    assert torch.equal(data.train, load_dataset(tmp_path, seed=1, validation=0.2).train)
    assert not torch.equal(data.train, load_dataset(tmp_path, seed=2, validation=0.2).train)


def test_idx_folder_of_a_test_set_only(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", 7, labels=False)
    data = load_dataset(str(tmp_path))
    assert data.train.shape == data.validation.shape == (0, 16)
    assert data.test.shape == (7, 16)
    assert not data.labels


def test_idx_without_validation(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 10)
    data = load_dataset(str(tmp_path), validation=0.0)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 0, 0)
    assert data.labels["train"].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "magic number 00000803, found nothing"),
        (b"\x00\x00", "found 0000"),
        (b"\x00\x00\x08\x01" + bytes(12), "expected the IDX magic number 00000803, found 00000801"),
        (b"\x00\x00\x0d\x03" + bytes(12), "found 00000d03"),
        (b"\x89PNG" + bytes(12), "magic"),
        (b"\x00\x00\x08\x03\x00\x00", "truncated in its header, at 6 of 16 bytes"),
        (idx(np.zeros((3, 4, 4)))[:-1], r"truncated, shape \[3, 4, 4\] takes 64 bytes, found 63"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "truncated"),
        (idx(np.zeros((3, 4, 4))) + b"x", "too long"),
        (gzip.compress(idx(np.ones((30, 4, 4))), mtime=0)[:-12], "damaged or truncated gzip"),
        (b"\x1f\x8b" + bytes(30), "damaged or truncated gzip"),
    ],
)
def test_bad_idx_file(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("announced", [1, 2**31])
def test_no_more_is_unpacked_than_there_is_and_the_header_announces(tmp_path: Path, announced: int) -> None:
    """64 MiB of zeros are 64 KiB in the file."""
    header = struct.pack(">BBBB3I", 0, 0, 8, 3, announced, 4, 4)
    content = header + bytes(2**26 if announced == 1 else 2**20)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content, 1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="too long" if announced == 1 else "truncated"):
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_bad_idx_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="expected train-images-idx3-ubyte"):
        load_dataset(str(tmp_path))
    write_idx(tmp_path, "train", 10)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte is there, train-images"):
        load_dataset(str(tmp_path))
    write_idx(tmp_path, "train", 10)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(9)))
    with pytest.raises(ValueError, match="10 images but 9 labels"):
        load_dataset(str(tmp_path))
    write_idx(tmp_path, "train", 10)
    write_idx(tmp_path, "t10k", 5, side=3)
    with pytest.raises(ValueError, match="differ in size"):
        load_dataset(str(tmp_path))


# --- splits ---


def test_random_split_is_a_partition() -> None:
    parts = random_split(101, {"validation": 0.1, "test": 0.25}, seed=-3)
    assert [len(p) for p in parts] == [66, 10, 25]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(101))
    assert [len(p) for p in random_split(3, {"validation": 0.01}, seed=0)] == [2, 1]


@pytest.mark.parametrize(
    ("n", "fraction", "message"),
    [(9, 1.0, "share in"), (9, -0.1, "share in"), (9, float("nan"), "finite number"), (1, 0.1, "nothing")],
)
def test_random_split_errors(n: int, fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_split(n, {"validation": fraction}, seed=0)


def test_data_splits_check_themselves() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"test: expected \[N, 4\]"):
        DataSplits(x, x, torch.zeros(3, 5), shape=(1, 2, 2), name="x")
    with pytest.raises(TypeError, match="train: expected float32"):
        DataSplits(x.double(), x, x, shape=(1, 2, 2), name="x")
    with pytest.raises(ValueError, match=r"labels\['test'\]"):
        DataSplits(x, x, x, shape=(1, 2, 2), name="x", labels={"test": torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(ValueError, match="found 'tset'"):
        DataSplits(x, x, x, shape=(1, 2, 2), name="x", labels={"tset": torch.zeros(3, dtype=torch.int64)})
    assert DataSplits(x, x, x, shape=(1, 2, 2), name="x").images("test").shape == (3, 1, 2, 2)


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.shape == (1, 8, 8)
    assert [len(x) for x in (data.train, data.validation, data.test)] == [1204, 297, 296]
    assert data.train.min() == 0
    assert data.train.max() == 1
    for split, share in (("train", 4), ("validation", 1), ("test", 1)):
        counts = data.labels[split].bincount()
        assert (counts - share * 179.7 / 6).abs().max() < 4, split
    assert torch.equal(data.train, load_dataset("digits", seed=9).train)  # fixed


# --- load_dataset ---


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ValueError, match="found 'cifar'") as error:
        load_dataset("cifar")
    assert all(name in str(error.value) for name in DATASETS)
    with pytest.raises(TypeError, match="'digits' has no option flip; its options: none"):
        load_dataset("digits", flip=True)
    with pytest.raises(TypeError, match="'mnist' has no option flip; its options: validation, download"):
        load_dataset("mnist", flip=True)


@pytest.mark.parametrize("name", ["digits", "patches", "folder/idx", "file.npy"])
def test_a_data_dir_that_is_not_taken_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=f"'{name}' takes no --data-dir .*only mnist, fashion-mnist, emnist-letters, idx"
    ):
        load_dataset(name, data_dir=tmp_path)


@pytest.mark.parametrize("place", ["", "gzip", "EMNIST/raw"])
def test_letters_of_emnist_are_upright(tmp_path: Path, place: str) -> None:
    """NIST's files hold columns first."""
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    images = write_idx(folder, "emnist-letters-test", 5, pack=bool(place))
    data = load_dataset("emnist-letters", data_dir=tmp_path)
    assert (data.name, data.shape, len(data.train)) == ("emnist-letters", (1, 4, 4), 0)
    shown = (data.images("test")[:, 0] * 255).round().numpy()
    np.testing.assert_array_equal(shown, images.transpose(0, 2, 1))
    assert data.labels["test"].tolist() == [0, 1, 2, 3, 4]


def test_letters_of_emnist_are_missed_by_name(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", 5)  # of MNIST
    with pytest.raises(FileNotFoundError, match=r"no letters of EMNIST in .*emnist-letters-test-images"):
        load_dataset("emnist-letters", data_dir=tmp_path)


def test_idx_by_data_dir(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", 20)
    data = load_dataset("idx", data_dir=tmp_path, seed=3, validation=0.2)
    assert (data.name, len(data.train), len(data.validation)) == (tmp_path.name, 16, 4)
    assert torch.equal(data.train, load_dataset(tmp_path, seed=3, validation=0.2).train)
    with pytest.raises(ValueError, match="'idx' needs its folder: give --data-dir"):
        load_dataset("idx")
    with pytest.raises(FileNotFoundError, match=r"--data-dir .*no such folder: .*nowhere"):
        load_dataset("idx", data_dir=tmp_path / "nowhere")


# --- MNIST ---


@needs_mnist
def test_mnist() -> None:
    data = load_dataset("mnist", data_dir=SHARED, validation=0.1)
    assert data.shape == (1, 28, 28)
    assert [len(x) for x in (data.train, data.validation, data.test)] == [54_000, 6_000, 10_000]
    assert (float(data.train.min()), float(data.train.max())) == (0.0, 1.0)
    everything = torch.cat([data.train, data.validation])
    assert float(everything.mean()) == pytest.approx(0.1306605, abs=1e-5)
    assert float(everything.std()) == pytest.approx(0.3081078, abs=1e-5)
    assert data.labels["test"][:5].tolist() == [7, 2, 1, 0, 4]


@needs_mnist
def test_fashion_mnist_is_a_test_set() -> None:
    data = load_dataset("fashion-mnist", data_dir=SHARED)
    assert (len(data.train), len(data.test)) == (0, 10_000)
    assert (data.labels["test"].bincount() == 1000).all()
    with pytest.raises(ValueError, match="not MNIST"):
        load_dataset("mnist", data_dir=SHARED / "fashion-mnist")
    with pytest.raises(ValueError, match="expected Fashion-MNIST, found MNIST"):
        load_dataset("fashion-mnist", data_dir=SHARED / "mnist")


def test_missing_files_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte, .*--data-dir"):
        load_dataset("mnist", data_dir=tmp_path, download=False)
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        load_dataset("fashion-mnist", data_dir=tmp_path)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server of this folder."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def tiny_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four small files that pass for MNIST."""
    source = tmp_path / "source"
    source.mkdir()
    for prefix, n in (("train", 20), ("t10k", 5)):
        write_idx(source, prefix, n, pack=True)
    packed = {stem: (source / f"{stem}.gz").read_bytes() for stem in mnist.MD5}
    sums = {stem: (md5(raw), md5(gzip.decompress(raw))) for stem, raw in packed.items()}
    monkeypatch.setattr(mnist, "MD5", sums)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return source


def test_download(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tiny_mnist) as url:
        monkeypatch.setattr(mnist, "MIRRORS", (url + "gone/", url))  # the first mirror fails
        data = load_dataset("mnist", data_dir=tmp_path / "data")
    assert [len(x) for x in (data.train, data.validation, data.test)] == [18, 2, 5]
    assert {p.name for p in (tmp_path / "data" / "mnist").iterdir()} == {p.name for p in tiny_mnist.iterdir()}
    again = load_dataset("mnist", data_dir=tmp_path / "data")  # no server any more
    assert torch.equal(data.train, again.train)


def test_download_continues_where_files_are_missing(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    kept = "train-images-idx3-ubyte.gz"
    (tiny_mnist / kept).rename(folder / kept)
    with served(tiny_mnist) as url:
        monkeypatch.setattr(mnist, "MIRRORS", (url,))
        data = load_dataset("mnist", data_dir=tmp_path / "data")
    assert len(data.test) == 5


def test_wrong_checksum_leaves_nothing_behind(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tiny_mnist / "train-images-idx3-ubyte.gz").write_bytes(b"something else")
    with served(tiny_mnist) as url:
        monkeypatch.setattr(mnist, "MIRRORS", (url,))
        with pytest.raises(DownloadError, match=r"(?s)hash.*--data-dir"):
            load_dataset("mnist", data_dir=tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())


def test_no_network(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tiny_mnist) as url:
        pass  # closed again: connections are refused
    monkeypatch.setattr(mnist, "MIRRORS", (url,))
    with pytest.raises(
        DownloadError, match=r"(?s)could not download train-images.*--data-dir.*patches, digits"
    ):
        load_dataset("mnist", data_dir=tmp_path / "data")


def test_damaged_mnist_is_refused(tiny_mnist: Path) -> None:
    other = tiny_mnist / "t10k-images-idx3-ubyte.gz"
    other.write_bytes(gzip.compress(idx(np.zeros((5, 4, 4)))))
    (tiny_mnist / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz: not MNIST"):
        load_dataset("mnist", data_dir=tiny_mnist)  # checked before anything is downloaded
    assert not (tiny_mnist / "train-images-idx3-ubyte.gz").exists()
