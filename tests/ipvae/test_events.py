"""Lists of events: lossless from and to counts of any kind; what is no event is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae.records import Events, SpikeRecord, SpikeWriter, from_events, to_events
from torch import Tensor

T, B, K = 8, 3, 5


@pytest.fixture
def counts() -> Tensor:
    found = torch.poisson(torch.full((T, B, K), 0.6), generator=torch.Generator().manual_seed(2))
    found[2, 1, 4] = 22_026.0  # the largest rate of the default clamp
    found[5] = 0.0
    return found


def same(found: Events, expected: Events) -> bool:
    return all(a.dtype == np.int64 and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_round_trip_loses_nothing(counts: Tensor) -> None:
    events = to_events(counts)
    assert len(events.step) == int(counts.count_nonzero())
    assert np.all(np.diff((events.step * B + events.sample) * K + events.neuron) > 0)
    for i in (0, len(events.step) // 2, -1):
        assert counts[tuple(column[i] for column in events[:3])] == events.count[i]
    assert torch.equal(from_events(**events._asdict(), shape=counts.shape), counts)
    sparse = from_events(**events._asdict(), shape=counts.shape, sparse=True, dtype=torch.int64)
    assert sparse.is_coalesced()
    assert torch.equal(sparse.to_dense(), counts.long())
    one = to_events(counts[:, 1])
    assert not one.sample.any()
    assert torch.equal(from_events(one.step, one.neuron, one.count, shape=(T, K)), counts[:, 1])


def test_counts_of_any_kind_give_the_same_events(counts: Tensor) -> None:
    expected = to_events(counts)
    strided = counts.transpose(0, 2).contiguous().transpose(0, 2)
    for kind in (counts.numpy(), counts.double().numpy(), counts.int(), counts.to_sparse(), strided):
        assert same(to_events(kind), expected)
    small = (counts > 0).to(torch.bfloat16)
    assert same(to_events(small), expected._replace(count=np.ones_like(expected.count)))
    assert same(to_events((counts > 0).numpy()), to_events(small))
    assert [len(column) for column in to_events(torch.zeros(0, B, K))] == [0, 0, 0, 0]


def test_arrays_of_scipy(counts: Tensor) -> None:
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    expected = to_events(counts[:, 0])
    for kind in (sparse.csr_array, sparse.csc_array, sparse.coo_array):
        assert same(to_events(kind(counts[:, 0].numpy())), expected)
    twice = sparse.coo_array(([1, 2], ([0, 0], [3, 3])), shape=(T, K))
    assert same(to_events(twice), Events(*(np.array([n]) for n in (0, 0, 3, 3))))


def test_a_record_on_disk_has_the_same_columns(counts: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    writer = SpikeWriter(tmp_path / "spikes", B, K, part_steps=3)
    writer.append(counts)
    writer.flush()
    table = SpikeRecord(tmp_path / "spikes").events()
    columns = {name: table[name].to_numpy() for name in table.column_names}
    assert same(Events(**{k: v.astype(np.int64) for k, v in columns.items()}), to_events(counts))
    assert torch.equal(from_events(**columns, shape=counts.shape), counts)


def test_spikes_by_themselves_lie_in_their_step(counts: Tensor) -> None:
    counts[2, 1, 4] = 4.0
    times, sample, neuron = to_events(counts).spikes(0.25)
    assert len(times) == int(counts.sum())
    step = np.floor(times / 0.25).astype(int)
    assert torch.equal(from_events(step, neuron, sample=sample, shape=counts.shape), counts)
    lone = to_events(torch.tensor([[0.0, 1.0]])).spikes(0.25)[0]
    assert lone.tolist() == [0.125]
    assert len({*zip(times, sample, neuron, strict=True)}) == len(times)  # no two of a neuron at once
    with pytest.raises(ValueError, match="step_seconds: expected"):
        to_events(counts).spikes(0.0)


def test_events_need_no_extra() -> None:
    code = "import sys; sys.modules['pyarrow'] = sys.modules['scipy'] = None\n"
    code += "import torch; from ipvae.records import to_events; print(to_events(torch.eye(3)).step.sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        (torch.tensor([[0.0, -1.0]]), ValueError, "counts: expected whole .* found -1.0 at step 0, neuron 1"),
        (torch.tensor([[[0.0, 0.5]]]), ValueError, "counts: .* found 0.5 at step 0, sample 0, neuron 1"),
        (torch.tensor([[np.nan, 1.0]]), ValueError, "counts: .* found nan"),
        (torch.tensor([[np.inf, 1.0]]), ValueError, "counts: .* found inf"),
        (torch.zeros(3), ValueError, r"counts: expected shape \[T, B, K\] or \[T, K\], found 1 axes"),
        (
            torch.zeros(3, 3, dtype=torch.complex64),
            TypeError,
            "counts: expected a tensor or array of numbers",
        ),
        ([[1]], TypeError, "counts: expected a tensor or array of numbers, found list"),
        (np.array([["a"]]), TypeError, "counts: expected numbers, found an array of <U1"),
    ],
)
def test_what_is_no_count_is_named(counts: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        to_events(counts)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": [0, T]}, ValueError, "step: expected 0 to 7, found 8 at row 1"),
        ({"neuron": [-1, 0]}, ValueError, "neuron: expected 0 to 4, found -1 at row 0"),
        ({"sample": [0, B]}, ValueError, "sample: expected 0 to 2, found 3 at row 1"),
        ({"sample": [0, 1], "shape": (T, K)}, ValueError, "sample: expected 0 to 0, found 1"),
        ({"step": [0.0, 0.001]}, TypeError, "step: expected integers, found float64"),
        ({"count": [1, 0.5]}, ValueError, "count: expected whole numbers of at least 0, found 0.5 at row 1"),
        ({"count": [1, -2]}, ValueError, "count: .* found -2 at row 1"),
        ({"neuron": [0, 1, 2]}, ValueError, r"neuron: expected \[2\] as step, one row an event, found \[3\]"),
        ({"step": 0}, ValueError, r"step: expected \[E\], one row an event, found \[\]"),
        ({"shape": (T,)}, ValueError, r"shape: expected \(T, B, K\) or \(T, K\), found \(8,\)"),
        ({"shape": (T, -1)}, ValueError, "shape: expected an int"),
    ],
)
def test_what_is_no_event_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {"step": [0, 1], "neuron": [0, 1], "shape": (T, B, K), **change}
    with pytest.raises(error, match=f"^{message}"):
        from_events(**call)
