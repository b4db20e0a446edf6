"""Spikes on disk in the formats that tools of neuroscience load; written in pieces of steps.

A step t is [t, t + 1) times its duration; events, which those formats place at a point, are put in the middle
of it, so that counting them in bins of one step gives the counts again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ipvae_kernels import checks

from ..checkpoint import atomic_file
from ..extras import explained
from .reader import SpikeRecord

if TYPE_CHECKING:
    import pynapple  # type: ignore[import-untyped]

POPULATION = "sample_{}"


@explained()
def to_nwb(
    record: SpikeRecord,
    path: str | PathLike[str],
    *,
    step_seconds: float = 1e-3,
    start_time: datetime | None = None,
    description: str = "spikes of an iterative VAE",
) -> Path:
    """Binned spikes as Neurodata Without Borders: a time series of counts, [T, K], for each sample.

    They lie in the processing module "spikes" as "sample_0", "sample_1", ..., compressed, with the rate of
    the steps; `pynwb.NWBHDF5IO` reads them as HDF5 datasets, in pieces if one likes. A series of counts and
    not `Units`: that table goes neuron by neuron, which takes the events of all steps at once, and its spike
    times would claim a place within the step, which no spike has. `to_sonata` writes such times.

    Args:
        record: to convert.
        path: of the .nwb file, which is written whole or not at all.
        step_seconds: what a step stands for.
        start_time: of the session; None: now.
        description: of the session.

    Returns:
        The path.

    Raises:
        MissingExtra: pynwb is not installed.
        OSError: the file cannot be written.
    """
    from hdmf.backends.hdf5.h5_utils import H5DataIO  # type: ignore[import-untyped]
    from hdmf.data_utils import GenericDataChunkIterator  # type: ignore[import-untyped]
    from pynwb import NWBHDF5IO, NWBFile, TimeSeries  # type: ignore[import-untyped]

    seconds = checks.number("step_seconds", step_seconds, 0.0, above=True)

    class Counts(GenericDataChunkIterator):  # type: ignore[misc]
        """The counts of one sample, read stretch by stretch."""

        def __init__(self, sample: int) -> None:
            self.sample = sample
            steps = min(record.steps, int(record.facts["part_steps"]))
            super().__init__(
                chunk_shape=(min(steps, 1000), record.n_latents), buffer_shape=(steps, record.n_latents)
            )

        def _get_data(self, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
            steps, neurons = selection
            counts = record.csr(self.sample, steps.start, steps.stop).astype(np.int32).toarray()
            return np.asarray(counts[:, neurons])

        def _get_maxshape(self) -> tuple[int, int]:
            return record.steps, record.n_latents

        def _get_dtype(self) -> np.dtype[Any]:
            return np.dtype(np.int32)

    file = NWBFile(
        session_description=description,
        identifier=f"ipvae seed {record.facts.get('seed')}",
        session_start_time=start_time or datetime.now(timezone.utc),
        notes=str(record.facts),
    )
    module = file.create_processing_module("spikes", "counts of each step, one series a sample")
    for sample in range(record.batch):
        data = H5DataIO(Counts(sample), compression="gzip")
        module.add(
            TimeSeries(
                name=POPULATION.format(sample), data=data, unit="count", rate=1 / seconds, starting_time=0.0
            )
        )
    with atomic_file(Path(path)) as whole, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The file path provided", UserWarning)  # for now it ends in .tmp
        with NWBHDF5IO(whole.name, "w") as out:
            out.write(file)
    return Path(path)


@explained()
def to_sonata(record: SpikeRecord, path: str | PathLike[str], *, step_ms: float = 1.0) -> Path:
    """Events as a spike file of SONATA (HDF5), a population for each sample.

    /spikes/sample_0/timestamps (float64, ms) and node_ids (uint64), by time; a count of n is n events.

    Args:
        record: to convert.
        path: of the .h5 file, which is written whole or not at all.
        step_ms: what a step stands for, in milliseconds.

    Returns:
        The path.

    Raises:
        MissingExtra: h5py is not installed.
        OSError: the file cannot be written.
    """
    import h5py  # type: ignore[import-untyped]

    duration = checks.number("step_ms", step_ms, 0.0, above=True)
    order = h5py.enum_dtype({"none": 0, "by_id": 1, "by_time": 2}, basetype="u1")
    with atomic_file(Path(path)) as whole, h5py.File(whole.name, "w") as file:
        file.attrs["magic"] = np.uint32(0x0A7A)
        file.attrs["version"] = np.array([0, 1], np.uint32)
        for sample in range(record.batch):
            group = file.create_group(f"spikes/{POPULATION.format(sample)}")
            group.attrs.create("sorting", 2, dtype=order)
            # Uncompressed: the HDF5 inside of libsonata's wheels has no filters.
            columns = {
                name: group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**16,))
                for name, kind in (("timestamps", np.float64), ("node_ids", np.uint64))
            }
            columns["timestamps"].attrs["units"] = "ms"
            for times, neurons in _events(record, sample, duration):
                for name, values in (("timestamps", times), ("node_ids", neurons)):
                    columns[name].resize(len(columns[name]) + len(values), 0)
                    columns[name][len(columns[name]) - len(values) :] = values
    return Path(path)


@explained()
def to_pynapple(
    record: SpikeRecord, sample: int, *, step_seconds: float = 1e-3, start: int = 0, stop: int | None = None
) -> pynapple.TsGroup:
    """Events of a sample as the group of time stamps that pynapple computes with; a count of n is n of them.

    Args:
        record: to convert.
        sample: which.
        step_seconds: what a step stands for.
        start: first step.
        stop: behind the last step; None: all. The events have to fit into memory.

    Returns:
        A `TsGroup` of all neurons, silent ones too, supported on the steps.

    Raises:
        MissingExtra: pynapple is not installed.
    """
    import pynapple

    duration = checks.number("step_seconds", step_seconds, 0.0, above=True)
    sample = checks.integer("sample", sample, 0, record.batch - 1)
    start = checks.integer("start", start, 0, record.steps)
    stop = record.steps if stop is None else checks.integer("stop", stop, start, record.steps)
    pieces = list(_events(record, sample, duration, start, stop))
    times = np.concatenate([np.empty(0), *(times for times, _ in pieces)])
    neurons = np.concatenate([np.empty(0, np.int64), *(neurons for _, neurons in pieces)])
    order = np.argsort(neurons, kind="stable")
    ends = np.searchsorted(neurons[order], np.arange(record.n_latents + 1))
    support = pynapple.IntervalSet(start * duration, stop * duration)
    trains = {k: pynapple.Ts(times[order[ends[k] : ends[k + 1]]]) for k in range(record.n_latents)}
    return pynapple.TsGroup(trains, time_support=support)


def _events(
    record: SpikeRecord, sample: int, duration: float, start: int = 0, stop: int | None = None
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Times and neurons of a sample's events, by time, in pieces."""
    stop, size = record.steps if stop is None else stop, int(record.facts["part_steps"])
    for begin in range(start, stop, size):
        counts = record.csr(sample, begin, min(begin + size, stop)).tocoo()
        repeats = counts.data.astype(np.int64)
        steps, neurons = (index.astype(np.int64) for index in (counts.row, counts.col))
        yield np.repeat((begin + steps + 0.5) * duration, repeats), np.repeat(neurons, repeats)
