"""Inference without an end: `Stream` carries the state over frames as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import Interrupted, State, checks

from .checkpoint import CheckpointError, atomic_file
from .data.feeders import Feeder
from .extras import explained
from .inputs import Inputs, as_tensor
from .models.iterative import IterativeVAE
from .records import SpikeWriter
from .records.layout import STATE
from .records.writer import PART_STEPS

with explained():
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as safetensors_bytes
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

Frames = Inputs | Feeder | Iterable[Inputs]
# Counts recorded at once, as floats, before what is zero is dropped.
CHUNK_BYTES = 64 * 2**20


class StreamEnded(ValueError):
    """Frames ended before the steps that were asked for; the stream can go on with others."""


class Stream:
    """Inference over frames as they come: whole sequences chunk by chunk, or one frame at a time.

    The state is carried; results do not depend on how frames come, on chunks, or on where a run was stopped
    and went on. Memory does not grow with the steps.

    Args:
        model: infers, with the weights it has; in eval mode its dictionary is packed once.
        seed: of the noise; None: drawn from torch's generator.
        sample_offset: global index of the first sample.
        record: a folder for spikes as they fall, see `SpikeWriter`; the state is saved there too, whenever a
            file of spikes is complete and at the end of `run`. None: nothing is written.
        part_steps: steps of a file of spikes.
        chunk_bytes: of counts and frames held at once.
        backend: of `ipvae_kernels`.
        check: look for frames and states that are not finite.

    Attributes:
        state: where the sequence stands; None before the first frame.

    Raises:
        FileExistsError: ``record`` holds a run: `Stream.resume` goes on with it.
        ValueError: spikes of a model that has none shall be recorded.

    Example:
        >>> stream = Stream(model.eval(), seed=0, record="spikes")
        >>> stream.run(frames, progress=True)  # a memory map [T, B, M], an iterator, a feeder, ...
        >>> counts = stream.step(frame)  # [B, M] in, [B, K] out
    """

    def __init__(
        self,
        model: IterativeVAE,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int = 0,
        record: str | PathLike[str] | None = None,
        part_steps: int = PART_STEPS,
        chunk_bytes: int = CHUNK_BYTES,
        backend: str = "auto",
        check: bool = True,
    ) -> None:
        if not isinstance(model, IterativeVAE):
            cell = getattr(model, "cell", type(model).__name__)
            raise TypeError(
                f"model: expected one that infers moving input by steps, found {cell}, which takes still ones"
            )
        self.model = model
        self.state: State | None = None
        self.record = None if record is None else Path(record)
        self.part_steps = checks.integer("part_steps", part_steps, 1, 2**31)
        self.chunk_bytes = checks.integer("chunk_bytes", chunk_bytes, 1, 2**62)
        self.backend, self.check = backend, checks.flag("check", check)
        self._seed = checks.seed(seed, model.like.device)
        self._sample_offset = checks.integer("sample_offset", sample_offset, 0, 2**32 - 1)
        self._writer: SpikeWriter | None = None
        self._model = fingerprint(model)
        if self.record is not None and not model.spiking:
            raise ValueError(f"record: expected None for a {model.cell} model, which has no spikes")
        if self.record is not None and (self.record / STATE).exists():
            raise FileExistsError(f"{self.record}: holds a run; Stream.resume goes on with it")

    @classmethod
    def resume(cls, model: IterativeVAE, record: str | PathLike[str], **options: Any) -> Stream:
        """The stream that wrote a folder of spikes, from the last state it saved; the files become the same.

        Args:
            model: that of the stream.
            record: the folder.
            options: as of the class; ``part_steps`` has to be the same.

        Raises:
            CheckpointError: the state is missing, damaged, or of another model.
        """
        folder = Path(record)
        state = _read_state(folder / STATE, model)
        stream = cls(model, seed=state.seed, sample_offset=state.sample_offset, **options)
        stream.record, stream.state = folder, state
        stream._writer = stream._new_writer(state.log_rate.shape[-2])
        stream._writer.go_on(state.step)
        return stream

    @property
    def steps(self) -> int:
        """Steps taken."""
        return 0 if self.state is None else self.state.step

    def step(self, frame: Inputs) -> Tensor:
        """One frame in, spikes out.

        Args:
            frame: [B, M], pixels unflattened if you like.

        Returns:
            Counts of the step, [B, K]; of Gaussian models the activated latents.
        """
        x = self._flat(as_tensor("frame", frame, self.model.like))
        return self._advance(x[None], 1)[0]

    def run(self, frames: Frames, steps: int | None = None, *, progress: bool = False) -> State:
        """Takes frames until they end, or so many.

        Args:
            frames: a sequence [T, B, M] (tensor, array, memory map), or a `Feeder`, both of which begin at
                step 0, so that a stream that goes on takes those it has not seen; an iterable of frames
                [B, M] or of chunks [t, B, M], which is taken from where it stands; or a still input [B, M].
            steps: how many; None: until they end, which a still input and an endless feeder do not.
            progress: draw a progress bar, with the time left where the number of frames is known.

        Returns:
            The state after the last step.

        Raises:
            StreamEnded: frames ended before ``steps``.
            ValueError: a frame of another size, named by its step; the state is that before it.
            KeyboardInterrupt: within a second of Ctrl-C; the state is whole, and saved where spikes are.
            OSError: a file cannot be written; what was written before can be read, and the state is whole.
        """
        steps = None if steps is None else checks.integer("steps", steps, 1, 2**32)
        first = self.steps
        source = _chunks(frames, first, steps, self._chunk_steps)
        with tqdm(total=_total(frames, first, steps), unit="step", disable=not progress) as bar:
            try:
                for chunk, n in source:
                    self._advance(self._flat(chunk), n)
                    bar.update(n)
            finally:
                self.save()
        done = self.steps - first
        if steps is not None and done < steps:
            raise StreamEnded(
                f"frames: expected {steps:,} steps, the source ended after {done:,}; go on with run()"
            )
        if self.state is None:
            raise StreamEnded("frames: expected at least one frame, the source has none")
        return self.state

    def save(self, path: str | PathLike[str] | None = None) -> None:
        """Writes the state to a file, whole or not at all, for `load_state`.

        None: beside the spikes, with those that are not yet written.
        """
        if self.state is None or (path is None and self.record is None):
            return
        if path is None and self._writer is not None:
            self._writer.flush()
        target = Path(path) if path is not None else Path(self.record or "") / STATE
        facts = {"step": self.state.step, "sample_offset": self.state.sample_offset, "model": self._model}
        tensors = {"log_rate": self.state.log_rate.cpu().contiguous(), "seed": self._seed.cpu()}
        with atomic_file(target) as file:
            file.write(safetensors_bytes(tensors, metadata={"stream": json.dumps(facts)}))

    def load_state(self, path: str | PathLike[str]) -> None:
        """Goes on from a state that `save` wrote.

        Raises:
            CheckpointError: it is missing, damaged, or of another model.
            ValueError: the stream records spikes, which belong to a sequence from its start: `resume`.
        """
        if self.record is not None:
            raise ValueError("record: expected a stream without a record, found one; Stream.resume goes on")
        state = _read_state(Path(path), self.model)
        assert isinstance(state.seed, Tensor)
        self.state, self._seed, self._sample_offset = state, state.seed, state.sample_offset

    def _advance(self, x: Tensor, steps: int) -> Tensor:
        """Infers some steps, whose counts it returns; records them up to where a Ctrl-C may stop it."""
        before = self.state
        if before is not None and before.log_rate.shape[-2] != x.shape[-2]:
            batch = before.log_rate.shape[-2]
            raise ValueError(
                f"frames: expected {batch} samples as before, found {x.shape[-2]} at step {before.step}"
            )
        if self.record is not None and self._writer is None:
            self._writer = self._new_writer(x.shape[-2])
        start: dict[str, Any] = {"state": before}
        if before is None:
            start = {"seed": self._seed, "sample_offset": self._sample_offset}
        try:
            result = self.model.infer(
                x, steps, record=("counts",), backend=self.backend, check=self.check, **start
            )
        except Interrupted as interrupt:
            if interrupt.result.state.step > self.steps:
                self._take(interrupt.result.state, interrupt.result.records["counts"])
            raise
        self._take(result.state, result.records["counts"])
        return result.records["counts"]

    def _take(self, state: State, counts: Tensor) -> None:
        if self._writer is not None:
            self._writer.append(counts)
        self.state = state
        if self._writer is not None and state.step % self.part_steps == 0:
            self.save()

    def _new_writer(self, batch: int) -> SpikeWriter:
        assert self.record is not None
        facts = {
            "seed": int(self._seed),
            "sample_offset": self._sample_offset,
            "version": ipvae_kernels.__version__,
            "model": self._model,
        }
        n_latents = self.model.config.n_latents
        return SpikeWriter(self.record, batch, n_latents, part_steps=self.part_steps, facts=facts)

    def _chunk_steps(self, batch: int, first: int) -> int:
        """Steps of the chunk from ``first`` on: within the bytes, and up to the end of a file."""
        numbers = batch * (self.model.config.n_latents + self.model.config.n_inputs)
        most = max(1, self.chunk_bytes // (4 * max(1, numbers)))
        return most if self.record is None else min(most, self.part_steps - first % self.part_steps)

    def _flat(self, x: Inputs) -> Tensor:
        try:
            return self.model.flatten(x)
        except ValueError as error:
            raise ValueError(f"frames: at step {self.steps}: {error}") from error


def fingerprint(model: IterativeVAE) -> str:
    """A digest of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_state(path: Path, model: IterativeVAE) -> State:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            facts = json.loads((file.metadata() or {}).get("stream", "{}"))
            log_rate, seed = file.get_tensor("log_rate"), file.get_tensor("seed")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no state of a stream there") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no state of a stream ({error})") from error
    if facts.get("model") != fingerprint(model):
        raise CheckpointError(f"{path}: the state of another model, or of other weights")
    device = model.like.device
    return State(log_rate.to(device), facts["step"], seed.to(device), facts["sample_offset"])


def _chunks(frames: Frames, first: int, steps: int | None, size: Any) -> Iterator[tuple[Tensor, int]]:
    """Frames [t, B, M] (or a still input [B, M]) with the steps they are for, from step ``first`` on."""
    if isinstance(frames, Feeder):
        yield from _of_sequence(frames.frames, frames.length, frames.batch, first, steps, size)
    elif isinstance(frames, (Tensor, np.ndarray)):
        if frames.ndim == 2:
            if steps is None:
                raise ValueError("steps: expected a number for a still input, found None")
            still = as_tensor("frames", frames)
            yield from ((still, n) for n in _sizes(len(still), first, steps, size))
            return

        def stretch(start: int, stop: int) -> Tensor:
            return as_tensor("frames", frames[start:stop])  # of a memory map, only these are read

        yield from _of_sequence(stretch, len(frames), frames.shape[1], first, steps, size)
    else:
        yield from _of_iterable(frames, first, steps, size)


def _total(frames: Frames, first: int, steps: int | None) -> int | None:
    """Steps from ``first`` on, where that is known beforehand."""
    if steps is not None:
        return steps
    length = None
    if isinstance(frames, Feeder):
        length = frames.length
    elif isinstance(frames, (Tensor, np.ndarray)) and frames.ndim > 2:
        length = len(frames)
    return None if length is None else max(0, length - first)


def _sizes(batch: int, first: int, steps: int, size: Any) -> Iterator[int]:
    done = 0
    while done < steps:
        n = min(size(batch, first + done), steps - done)
        yield n
        done += n


def _of_sequence(
    stretch: Any, length: int | None, batch: int, first: int, steps: int | None, size: Any
) -> Iterator[tuple[Tensor, int]]:
    left = None if length is None else max(0, length - first)
    if left is None and steps is None:
        raise ValueError("steps: expected a number for frames that never end, found None")
    known = [n for n in (left, steps) if n is not None]
    at = first
    for n in _sizes(batch, first, min(known), size):
        yield stretch(at, at + n), n
        at += n


def _of_iterable(
    frames: Iterable[Inputs], first: int, steps: int | None, size: Any
) -> Iterator[tuple[Tensor, int]]:
    left = steps
    for frame in frames:
        chunk = as_tensor("frames", frame)
        chunk = chunk[None] if chunk.ndim == 2 else chunk
        if left is not None:
            chunk = chunk[:left]
        at = 0
        while at < len(chunk):
            n = min(size(chunk.shape[1], first), len(chunk) - at)
            yield chunk[at : at + n], n
            at, first = at + n, first + n
        if left is not None:
            left -= len(chunk)
            if not left:
                return
