"""Spikes in the formats of other tools, each read back by the package that people load it with."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from ipvae.extras import MissingExtra
from ipvae.records import SpikeRecord, SpikeWriter, to_nwb, to_pynapple, to_sonata
from torch import Tensor

B, K, T = 2, 7, 25


@pytest.fixture
def counts() -> Tensor:
    found = torch.poisson(torch.full((T, B, K), 0.4))
    found[:, :, 3] = 0.0
    found[4] = 0.0
    found[T - 1, 0, 0] = 3.0
    return found


@pytest.fixture
def record(counts: Tensor, tmp_path: Path) -> SpikeRecord:
    writer = SpikeWriter(tmp_path / "spikes", B, K, part_steps=10, facts={"seed": 5})
    for piece in counts.split(4):
        writer.append(piece)
    writer.flush()
    return SpikeRecord(tmp_path / "spikes")


def test_nwb_is_read_by_pynwb(record: SpikeRecord, counts: Tensor, tmp_path: Path) -> None:
    pynwb = pytest.importorskip("pynwb", reason="pynwb is not installed")
    begun = datetime(2026, 1, 2, tzinfo=timezone.utc)
    path = to_nwb(record, tmp_path / "spikes.nwb", step_seconds=0.02, start_time=begun, description="a test")
    with pynwb.NWBHDF5IO(str(path), "r") as file:
        session = file.read()
        assert session.session_description == "a test"
        assert session.session_start_time == begun
        assert "'seed': 5" in session.notes
        module = session.processing["spikes"]
        assert set(module.data_interfaces) == {"sample_0", "sample_1"}
        for sample in range(B):
            series = module[f"sample_{sample}"]
            assert series.rate == 50.0
            assert series.unit == "count"
            assert series.data.dtype == np.int32
            assert torch.equal(torch.from_numpy(series.data[:]).float(), counts[:, sample])
    assert pynwb.validate(path=str(path)) == []


def test_sonata_is_read_by_libsonata(record: SpikeRecord, counts: Tensor, tmp_path: Path) -> None:
    libsonata = pytest.importorskip("libsonata", reason="libsonata is not installed")
    path = to_sonata(record, tmp_path / "spikes.h5", step_ms=0.5)
    reader = libsonata.SpikeReader(str(path))
    assert sorted(reader.get_population_names()) == ["sample_0", "sample_1"]
    for sample in range(B):
        population = reader[f"sample_{sample}"]
        assert population.sorting == "by_time"
        found = torch.zeros(T, K)
        events = population.get()
        assert [time for _, time in events] == sorted(time for _, time in events)
        for neuron, time in events:
            found[int(time / 0.5), neuron] += 1
        assert torch.equal(found, counts[:, sample])


def test_pynapple_counts_the_same(record: SpikeRecord, counts: Tensor) -> None:
    pytest.importorskip("pynapple", reason="pynapple is not installed")
    group = to_pynapple(record, 1, step_seconds=0.01)
    assert list(group.index) == list(range(K))
    bins = group.count(0.01)
    assert torch.equal(torch.from_numpy(np.asarray(bins.values)).float(), counts[:, 1])
    later = to_pynapple(record, 0, step_seconds=0.01, start=8, stop=21)
    bins = later.count(0.01)
    assert torch.equal(torch.from_numpy(np.asarray(bins.values)).float(), counts[8:21, 0])
    assert len(later[3]) == 0


@pytest.mark.parametrize("module", ["pynwb", "h5py", "pynapple"])
def test_a_record_is_read_in_pieces(
    module: str, record: SpikeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed")
    read, whole = [], SpikeRecord.csr

    def csr(self: SpikeRecord, sample: int, start: int = 0, stop: int | None = None) -> object:
        read.append((sample, start, stop))
        return whole(self, sample, start, stop)

    monkeypatch.setattr(SpikeRecord, "csr", csr)
    if module == "pynwb":
        to_nwb(record, tmp_path / "x.nwb")
    elif module == "h5py":
        to_sonata(record, tmp_path / "x.h5")
    else:
        to_pynapple(record, 0)
    samples = 1 if module == "pynapple" else B
    assert read == [(b, start, min(start + 10, T)) for b in range(samples) for start in range(0, T, 10)]


def test_bad_requests_are_named(record: SpikeRecord, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step_seconds: expected"):
        to_nwb(record, tmp_path / "x.nwb", step_seconds=0.0)
    with pytest.raises(ValueError, match="step_ms: expected"):
        to_sonata(record, tmp_path / "x.h5", step_ms=-1.0)
    with pytest.raises(ValueError, match="sample: expected"):
        to_pynapple(record, B)
    with pytest.raises(ValueError, match="stop: expected"):
        to_pynapple(record, 0, start=3, stop=2)
    with pytest.raises(OSError, match="nowhere"):
        to_sonata(record, tmp_path / "nowhere" / "x.h5")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "x"))]


@pytest.mark.parametrize(
    ("missing", "convert"), [("pynwb", "nwb"), ("h5py", "sonata"), ("pynapple", "pynapple")]
)
def test_a_missing_package_is_explained(
    missing: str, convert: str, record: SpikeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    calls = {
        "nwb": lambda: to_nwb(record, tmp_path / "x.nwb"),
        "sonata": lambda: to_sonata(record, tmp_path / "x.h5"),
        "pynapple": lambda: to_pynapple(record, 0),
    }
    with pytest.raises(MissingExtra, match=f"{missing} is not installed: pip install"):
        calls[convert]()
