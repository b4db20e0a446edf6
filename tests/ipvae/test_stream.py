"""Streams: the numbers of one long call however frames come, files that do not tell where a run was cut."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IGVAEConfig, IPVAEConfig, Stream, StreamEnded
from ipvae.data import JitterFeeder
from torch import Tensor

pytest.importorskip("pyarrow")
from ipvae.records import SpikeRecord, SpikeWriter

M, K, B, T = 12, 20, 3, 23


@pytest.fixture
def model() -> IPVAE:
    return IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, input_shape=(1, 3, 4), init_scale=0.3)).eval()


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(T, B, M, generator=torch.Generator().manual_seed(1))


def expected(model: IPVAE, frames: Tensor, seed: int = 5) -> Any:
    return model.infer(frames, len(frames), record=("counts",), seed=seed)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def memory_map(frames: Tensor, tmp_path: Path) -> Any:
    np.save(tmp_path / "x.npy", frames.numpy())
    return np.load(tmp_path / "x.npy", mmap_mode="r")


SOURCES: dict[str, Callable[[Tensor, Path], Any]] = {
    "tensor": lambda x, tmp_path: x,
    "unflattened": lambda x, tmp_path: x.view(T, B, 1, 3, 4),
    "memory map": memory_map,
    "frames": lambda x, tmp_path: iter(x),
    "arrays": lambda x, tmp_path: (frame.numpy() for frame in x),
    "chunks": lambda x, tmp_path: iter(x.split(5)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("chunk_bytes", [1, 2_000, 2**26])
def test_frames_may_come_in_any_way(
    chunk_bytes: int, source: Any, model: IPVAE, frames: Tensor, tmp_path: Path
) -> None:
    whole = expected(model, frames)
    folder = tmp_path / "spikes"
    stream = Stream(model, seed=5, chunk_bytes=chunk_bytes, record=folder, part_steps=10)
    state = stream.run(source(frames, tmp_path))
    assert torch.equal(state.log_rate, whole.state.log_rate)
    assert (state.step, stream.steps) == (T, T)
    record = SpikeRecord(folder)
    assert torch.equal(record.dense(0, T), whole.records["counts"])
    assert sorted(files(folder)) == ["open.parquet", "part-000000000000.parquet", "part-000000000010.parquet"]
    reference = tmp_path / "reference"
    Stream(model, seed=5, record=reference, part_steps=10).run(frames)
    assert files(folder) == files(reference)


def test_one_frame_in_spikes_out(model: IPVAE, frames: Tensor, tmp_path: Path) -> None:
    whole = expected(model, frames)
    stream = Stream(model, seed=5, record=tmp_path / "spikes", part_steps=7)
    counts = torch.stack([stream.step(frame) for frame in frames])
    assert torch.equal(counts, whole.records["counts"])
    stream.save()
    assert torch.equal(SpikeRecord(tmp_path / "spikes").dense(0, T), counts)


def test_feeders_and_still_inputs(model: IPVAE, frames: Tensor) -> None:
    feeder = JitterFeeder(torch.rand(B, 1, 3, 4), seed=1)
    stream = Stream(model, seed=5)
    stream.run(feeder, 9)
    assert torch.equal(stream.run(feeder, 4).log_rate, expected(model, feeder.frames(0, 13)).state.log_rate)
    still = Stream(model, seed=5, chunk_bytes=1000).run(frames[0], 9)
    assert torch.equal(still.log_rate, model.infer(frames[0], 9, seed=5).state.log_rate)
    for endless in (feeder, frames[0]):
        with pytest.raises(ValueError, match="steps: expected a number"):
            Stream(model).run(endless)


def test_a_state_is_saved_and_restored(model: IPVAE, frames: Tensor, tmp_path: Path) -> None:
    stream = Stream(model, seed=5, sample_offset=8)
    stream.run(frames[:9])
    stream.save(tmp_path / "state.safetensors")
    other = Stream(model, seed=1)
    other.load_state(tmp_path / "state.safetensors")
    assert other.steps == 9
    assert torch.equal(other.run(frames).log_rate, stream.run(frames).log_rate)
    whole = model.infer(frames, T, seed=5, sample_offset=8)
    assert torch.equal(other.step(frames[0]), stream.step(frames[0]))
    assert other.state is not None
    assert other.state.step == whole.state.step + 1


@pytest.mark.parametrize("cut", [3, 10, 14, 20])
def test_a_run_that_goes_on_leaves_the_same_files(
    cut: int, model: IPVAE, frames: Tensor, tmp_path: Path
) -> None:
    Stream(model, seed=5, record=tmp_path / "whole", part_steps=10).run(frames)
    Stream(model, seed=5, record=tmp_path / "cut", part_steps=10).run(frames, cut)
    stream = Stream.resume(model, tmp_path / "cut", part_steps=10, chunk_bytes=500)
    assert stream.steps == cut
    state = stream.run(frames)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert torch.equal(state.log_rate, expected(model, frames).state.log_rate)
    state_files = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("cut", "whole")]
    assert state_files[0] == state_files[1]


SETUP = """
import resource, sys, torch
from pathlib import Path
from ipvae import IPVAE, IPVAEConfig, Stream
torch.set_num_threads(1)
folder, steps = Path(sys.argv[1]), int(sys.argv[2])
model = IPVAE(IPVAEConfig(n_inputs=12, n_latents=20, init_scale=0.3)).eval()
still = torch.linspace(-1, 1, 36).view(3, 12)
options = {"part_steps": 500, "chunk_bytes": 20000}
there = (folder / "state.safetensors").exists()
stream = Stream.resume(model, folder, **options) if there else Stream(model, seed=5, record=folder, **options)
"""
RUN = (
    SETUP
    + """
print("begins", flush=True)
try:
    stream.run(still, steps - stream.steps)
except KeyboardInterrupt:
    print("stopped", stream.steps == stream.state.step, flush=True)
"""
)
PEAKS = (
    SETUP
    + """
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stream.run(still, steps)
before = peak()
stream.run(still, 4 * steps)
print(peak() - before)
"""
)


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(folder), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_stopped_run_goes_on_to_the_same_files(how: signal.Signals, tmp_path: Path) -> None:
    steps = 8_200
    done = start(tmp_path / "whole", steps)
    assert done.communicate(timeout=100)[1] == ""
    cut = start(tmp_path / "cut", steps)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cut").glob("part-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.send_signal(how)
    out = cut.communicate(timeout=20)[0]
    assert len(files(tmp_path / "cut")) < len(files(tmp_path / "whole"))
    if how == signal.SIGINT:
        assert out == "begins\nstopped True\n"
    assert start(tmp_path / "cut", steps).communicate(timeout=100)[1] == ""
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    a, b = ((tmp_path / name / "state.safetensors").read_bytes() for name in ("cut", "whole"))
    assert a == b


def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    """Peaks of a run with records: of 5,000 steps, and of 20,000 more, whose counts are 4.8 MB."""
    command = [sys.executable, "-c", PEAKS, str(tmp_path / "spikes"), "5000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 1024  # KiB


def test_readers(model: IPVAE, frames: Tensor, tmp_path: Path) -> None:
    counts = expected(model, frames).records["counts"]
    Stream(model, seed=5, record=tmp_path, part_steps=6).run(frames)
    record = SpikeRecord(tmp_path)
    assert (record.batch, record.n_latents, record.facts["seed"]) == (B, K, 5)
    assert torch.equal(record.dense(5, 19), counts[5:19])
    assert torch.equal(record.sparse(0, T).to_dense(), counts)
    for sample in range(B):
        assert (record.csr(sample, 2, 20).toarray() == counts[2:20, sample].numpy()).all()
    table = record.events(0, T).to_pydict()
    rows = list(zip(*(table[name] for name in ("step", "sample", "neuron")), strict=True))
    assert rows == sorted(rows)
    with pytest.raises(ValueError, match="stop: expected an int from 3"):
        record.dense(3, 2)
    with pytest.raises(FileNotFoundError, match="no record of spikes"):
        SpikeRecord(tmp_path / "nothing")
    path = next(tmp_path.glob("part-*"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{path.name}: damaged"):
        SpikeRecord(tmp_path).dense()


def test_wide_counts_are_never_dense_on_disk(tmp_path: Path) -> None:
    writer = SpikeWriter(tmp_path, 1, 10**6, part_steps=2)
    counts = torch.zeros(2, 1, 10**6)
    counts[0, 0, 7], counts[1, 0, 999_999] = 3, 1
    writer.append(counts)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    assert SpikeRecord(tmp_path).events().to_pydict() == {
        "step": [0, 1], "sample": [0, 0], "neuron": [7, 999_999], "count": [3, 1]
    }  # fmt: skip


def test_bad_frames_leave_the_state_whole(model: IPVAE, frames: Tensor) -> None:
    stream = Stream(model, seed=5)

    def strange(last: Any) -> Iterator[Any]:
        yield from frames[:4]
        yield last

    for last, message in (
        (frames[0, :, :-1], "frames: at step 4: x: expected shape"),
        (frames[0, :-1], "frames: expected 3 samples as before, found 2 at step 4"),
        (frames[0] * float("nan"), "x: expected finite values"),
        (frames[0].to(torch.int64), "frames: expected floating point numbers"),
    ):
        stream = Stream(model, seed=5)
        with pytest.raises((ValueError, TypeError), match=message):
            stream.run(strange(last))
        assert stream.steps == 4
        assert torch.equal(stream.run(frames).log_rate, expected(model, frames).state.log_rate)
    stream = Stream(model, seed=5)
    with pytest.raises(StreamEnded, match="expected 30 steps, the source ended after 23; go on"):
        stream.run(iter(frames), 30)
    assert stream.steps == T
    with pytest.raises(StreamEnded, match="at least one frame"):
        Stream(model).run(iter(()))


def test_states_of_other_models_are_refused(model: IPVAE, frames: Tensor, tmp_path: Path) -> None:
    stream = Stream(model, seed=5, record=tmp_path / "spikes")
    stream.run(frames)
    other = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.3, seed=9))
    with pytest.raises(CheckpointError, match="of another model"):
        Stream.resume(other, tmp_path / "spikes")
    with pytest.raises(FileExistsError, match=r"holds a run; Stream\.resume"):
        Stream(model, record=tmp_path / "spikes")
    with pytest.raises(FileExistsError, match="record of another run"):
        Stream.resume(model, tmp_path / "spikes", part_steps=7)
    with pytest.raises(CheckpointError, match="no state of a stream"):
        Stream.resume(model, tmp_path)
    (tmp_path / "spikes" / "state.safetensors").write_bytes(b"12345678{")
    with pytest.raises(CheckpointError, match="damaged"):
        Stream.resume(model, tmp_path / "spikes")
    with pytest.raises(ValueError, match="record: expected None for a gaussian model"):
        Stream(IGVAE(IGVAEConfig(n_inputs=M)), record=tmp_path / "other")


def test_a_full_disk_keeps_what_was_written(
    model: IPVAE, frames: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ipvae.records.writer as writer

    Stream(model, seed=5, record=tmp_path / "whole", part_steps=5).run(frames)
    stream = Stream(model, seed=5, record=tmp_path / "full", part_steps=5)
    real, written = writer.pq.write_table, []

    def full(*arguments: Any, **options: Any) -> None:
        if len(written) >= 2:
            raise OSError(28, "No space left on device")
        written.append(1)
        real(*arguments, **options)

    monkeypatch.setattr(writer.pq, "write_table", full)
    with pytest.raises(OSError, match=r"No space left.*part-000000000010"):
        stream.run(frames)
    assert stream.steps == 10
    assert torch.equal(SpikeRecord(tmp_path / "full").dense(), expected(model, frames).records["counts"][:10])
    monkeypatch.setattr(writer.pq, "write_table", real)
    stream.run(frames)
    assert files(tmp_path / "full") == files(tmp_path / "whole")
