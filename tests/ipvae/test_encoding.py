"""`ipvae.encode`: any source, any batches, the same codes; sparse layouts; bad input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IPVAE, CheckpointError, IPVAEConfig, encode
from ipvae.data import load_dataset, load_whole
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ipvae_kernels import memory

N, SHAPE, K = 23, (1, 4, 3), 9
STEPS = 6


@pytest.fixture
def model() -> IPVAE:
    config = IPVAEConfig(
        n_inputs=12, n_latents=K, input_shape=SHAPE, init_scale=0.2, init_log_rate=(-1.0, 0.5)
    )
    return IPVAE(config).eval()


@pytest.fixture
def x() -> Tensor:
    """Images of bytes in [0, 1]."""
    return torch.randint(0, 256, (N, *SHAPE), generator=torch.Generator().manual_seed(4)) / 255


class Images(Dataset[Any]):
    """Items as image data sets give them: bytes with a class."""

    def __init__(self, x: Tensor) -> None:
        self.bytes = (x * 255).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.bytes[index], index % 3


class Flow(IterableDataset[Any]):
    """Vectors without a length."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.flatten(1)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def test_codes_are_those_of_one_call_whatever_holds_the_inputs(
    model: IPVAE, x: Tensor, tmp_path: Path
) -> None:
    expected = model.encode(x, STEPS, seed=3)
    bytes_ = (x * 255).round().to(torch.uint8)
    np.save(tmp_path / "x.npy", bytes_.numpy())
    sources: list[Any] = [
        x,
        x.flatten(1),
        x.squeeze(1),
        x.numpy(),
        x.double().numpy(),
        bytes_,
        bytes_.numpy(),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        TensorDataset(x),
        Images(x),
        Flow(x),
        DataLoader(Images(x), batch_size=4),
        DataLoader(Flow(x), batch_size=5),
    ]
    for source in sources:
        for size in (7, 1000):
            codes = encode(model, source, STEPS, seed=3, batch_size=size)
            assert torch.equal(codes, expected), type(source)


def test_counts_averages_and_parts(model: IPVAE, x: Tensor) -> None:
    how: dict[str, Any] = {"counts": True, "last": 3, "seed": 1}
    whole = encode(model, x, STEPS, **how, batch_size=6)
    assert torch.equal(whole, model.encode(x, STEPS, **how))
    assert torch.equal(encode(model, x[8:], STEPS, **how, sample_offset=8), whole[8:])
    assert not torch.equal(encode(model, x[8:], STEPS, **how), whole[8:])


@pytest.mark.parametrize("layout", ["scipy", "torch"])
def test_sparse_layouts_hold_the_same_counts(model: IPVAE, x: Tensor, layout: Any) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    dense = encode(model, x, STEPS, counts=True)
    assert 0 < (dense == 0).sum() < dense.numel()
    found = encode(model, x, STEPS, counts=True, layout=layout, batch_size=5)
    if layout == "scipy":
        assert isinstance(found, sparse.csr_array)
        assert found.nnz == int(dense.count_nonzero())
        assert np.array_equal(found.toarray(), dense.numpy())
    else:
        assert found.layout == torch.sparse_csr
        assert torch.equal(found.to_dense(), dense)
        assert torch.allclose(found @ torch.eye(K), dense)
    assert encode(model, x[:0], STEPS, counts=True, layout=layout).shape == (0, K)


def test_models_and_data_by_name(tmp_path: Path) -> None:
    model = IPVAE(IPVAEConfig(n_inputs=64, n_latents=K, input_shape=(1, 8, 8), init_scale=0.1)).eval()
    model.save_pretrained(tmp_path / "model")
    held_out = encode(tmp_path / "model", "digits", 2, split="test")
    assert torch.equal(held_out, model.encode(load_dataset("digits").test, 2, seed=0))
    every = encode(str(tmp_path / "model"), "digits", 2)
    assert torch.equal(every, model.encode(load_whole("digits").train, 2, seed=0))
    np.save(tmp_path / "mine.npy", load_dataset("digits").test.numpy())
    assert torch.equal(encode(model, tmp_path / "mine.npy", 2), held_out)


def test_a_batch_at_a_time_is_read(model: IPVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = [], []

    class Counted(Flow):
        def __iter__(self) -> Iterator[Tensor]:
            for i, row in enumerate(self.x):
                read.append(i)
                yield row

    encoded = IPVAE.encode

    def spy(self: IPVAE, x: Any, *args: Any, **options: Any) -> Tensor:
        seen.append((len(read), len(x)))
        return encoded(self, x, *args, **options)

    monkeypatch.setattr(IPVAE, "encode", spy)
    encode(model, DataLoader(Counted(x), batch_size=2), 1, batch_size=8)
    assert seen == [(8, 8), (16, 8), (23, 7)]


def test_codes_that_do_not_fit_are_refused_first(
    model: IPVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory, "available", lambda device: 2 * 4 * N * K - 1)
    with pytest.raises(MemoryError, match=r"data: codes \[23, 9\] takes .* counts=True, layout='scipy'"):
        encode(model, DataLoader(Images(x)), STEPS)
    encode(model, Flow(x), 1)  # of no known length


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "nowhere"}, CheckpointError, "nowhere: no model there"),
        (
            {"model": torch.nn.Linear(2, 2)},
            TypeError,
            "model: expected a model or the path of one, found Lin",
        ),
        ({"data": [[0.0] * 12]}, TypeError, "data: expected a torch.Tensor, .* found list"),
        ({"data": torch.zeros(2, 12, dtype=torch.int64)}, TypeError, "data: expected floating point numbers"),
        ({"data": torch.zeros(2, 12).double()}, TypeError, "data: expected dtype torch.float32"),
        ({"data": np.full((2, 12), np.nan)}, ValueError, "x: expected finite values"),
        ({"data": np.ones(())}, ValueError, r"data: expected inputs \[N, \.\.\.\]"),
        ({"data": torch.zeros(3, 5)}, ValueError, r"x: expected shape \[\.\.\., 12\]"),
        (
            {"data": torch.zeros(3, 2, 12)},
            ValueError,
            r"data: expected inputs \[N, 12\], found batches \[3, 2",
        ),
        ({"data": "digitz"}, ValueError, "name: expected one of patches, digits"),
        ({"split": "test"}, ValueError, "split: expected data to be the name of a set, found Tensor"),
        ({"split": "held out"}, ValueError, "split: expected one of all, train"),
        ({"layout": "csr"}, ValueError, "layout: expected one of dense, scipy, torch; found 'csr'"),
        ({"layout": "scipy"}, ValueError, "layout: expected 'dense' without counts=True"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an int from 1"),
        ({"steps": 0}, ValueError, "steps: expected at least 1"),
        ({"last": 9}, ValueError, "last: expected 1 to steps=6"),
    ],
)
def test_bad_requests_are_named(
    model: IPVAE, x: Tensor, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    call: dict[str, Any] = {"model": model, "data": x, "steps": STEPS, **change}
    with pytest.raises(error, match=f"^{message}"):
        encode(**call)
