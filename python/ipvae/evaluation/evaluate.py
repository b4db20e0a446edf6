"""Evaluation as in the paper: hard counts, a thousand steps, curves over steps, a linear readout."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae_kernels import checks

from ..inputs import Source, as_labels, gather, labelled, whole
from ..models.base import VAE, frames
from .metrics import SparsitySums, StepSums, r2_from_error, steps_to, total_variation
from .readout import Readout, linear_readout

SCALARS = ("recon", "kl", "squared_error", "spikes", "zeros")
STEPS = 1000
# Recorded values of one measure held at once, steps x samples: 16 MiB in float32.
BLOCK = 2**22
Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Means over samples at every inference step, [steps] each.

    Attributes:
        r2: share of the variation explained by a sampled reconstruction.
        squared_error: summed over pixels.
        zeros: fraction of silent neurons.
        spikes: summed over neurons.
        recon: negative log-likelihood of the pixels, nats.
        kl: nats, in the KL of the model's configuration; NaN of a model that has none.
        nelbo: recon + kl, nats; likewise.
        lifetime: step (counted from 1) -> lifetime sparsity, mean over neurons; empty for one sample or
            neuron.
        population: step -> population sparsity, mean over samples.
        readout: step -> linear readout, where labels were given.
        n_samples: number of samples.
        seconds: wall time of the inference.
    """

    r2: Curve
    squared_error: Curve
    zeros: Curve
    spikes: Curve
    recon: Curve
    kl: Curve
    nelbo: Curve
    n_samples: int
    seconds: float
    lifetime: dict[int, float] = field(default_factory=dict)
    population: dict[int, float] = field(default_factory=dict)
    readout: dict[int, Readout] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of inference steps."""
        return len(self.r2)

    def steps_to(self, fraction: float) -> int | None:
        """The first step, from 1, with R2 at `fraction` of its last value; None if that is not positive."""
        return steps_to(self.r2, fraction) if self.r2[-1] > 0 else None

    def summary(self) -> dict[str, float | int | None]:
        """The measures at the last step, the steps to 95 % and 99 % of its R2, the speed."""
        curves = ("r2", "squared_error", "zeros", "spikes", "recon", "kl", "nelbo")
        values: dict[str, float | int | None] = {name: known(getattr(self, name)[-1]) for name in curves}
        values |= {"steps": self.steps, "n_samples": self.n_samples}
        values |= {"steps_to_95": self.steps_to(0.95), "steps_to_99": self.steps_to(0.99)}
        for name, marks in (("lifetime", self.lifetime), ("population", self.population)):
            if self.steps in marks:
                values[name] = marks[self.steps]
        if self.steps in self.readout:
            values["accuracy"] = self.readout[self.steps].accuracy
        values["sample_steps_per_second"] = self.n_samples * self.steps / max(self.seconds, 1e-9)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; None for a curve that does not apply."""
        values = dataclasses.asdict(self)
        return {
            name: (None if np.isnan(v).all() else v.tolist()) if isinstance(v, np.ndarray) else v
            for name, v in values.items()
        }


def known(value: float) -> float | None:
    """A measure, or None where it does not apply."""
    return None if math.isnan(value) else float(value)


def evaluate(
    model: VAE,
    x: Source,
    steps: int | None = None,
    *,
    batch_size: int = 1000,
    marks: Collection[int] | None = None,
    labels: Tensor | NDArray[Any] | None = None,
    train: tuple[Source, Tensor | NDArray[Any]] | Source | None = None,
    seed: int = 0,
    backend: str = "auto",
    check: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Runs inference with hard counts and measures every step; counts are never kept.

    The result does not depend on `batch_size` beyond the rounding of sums.

    Args:
        model: of any family; an amortised one infers in one step.
        x: [N, M], or [steps, N, M] for moving input; pixels unflattened if you like. A tensor, a NumPy array,
            or a Dataset or DataLoader of inputs or of (input, class), which is read into memory.
        steps: of inference; None: 1,000, and 1 where an encoder infers.
        batch_size: samples at a time.
        marks: steps, counted from 1, at which sparsity and the readout are taken; None: the last.
        labels: [N], integers; with `train`, asks for a linear readout. None: those of the Dataset, if any.
        train: inputs [L, M] and labels [L] that the readout is fitted to, as a pair, or a Dataset or
            DataLoader of (input, class).
        seed: of the noise; the readout's training inputs use seed + 1.
        backend: of `ipvae_kernels`.
        check: raise where an input or the result is not finite; False saves a pass over each.
        progress: called with (samples done, samples) after every batch.

    Returns:
        Curves, sparsity and readout.

    Raises:
        TypeError: for arguments of other types.
        ValueError: for an empty `x`, steps or marks out of range, labels without `train` and the reverse, or
            steps of a model that has none.
    """
    steps, batch_size, seed = steps_of(model, steps), whole("batch_size", batch_size), whole("seed", seed)
    marks = [steps] if marks is None else sorted({whole("marks", mark) for mark in marks})
    x, own = gather("x", x, model.like)
    x = model.flatten(x.detach())
    n = x.shape[-2]
    if n == 0 or steps < 1 or batch_size < 1:
        raise ValueError(
            f"x: expected samples, steps and batch_size of at least 1, found {n}, {steps}, {batch_size}"
        )
    if marks and not 1 <= marks[0] <= marks[-1] <= steps:
        raise ValueError(f"marks: expected steps from 1 to {steps}, found {marks}")
    if train is not None and labels is None:
        labels = own
    if (labels is None) != (train is None):
        raise ValueError("labels: give labels and train together, or neither")
    if labels is not None and train is not None:
        classes, fit = as_labels("labels", labels, n), labelled("train", train, model.like)
    sparse = n > 1 and model.config.n_latents > 1
    sums, sparsity = StepSums(steps), {mark: SparsitySums() for mark in marks if sparse}
    latents: dict[int, list[Tensor]] = {mark: [] for mark in marks}
    started = time.perf_counter()
    for start in range(0, n, batch_size):
        batch = x[..., start : start + batch_size, :].to(model.like.device)
        variation = total_variation(batch)
        for first, records, log_rate in _rollout(model, batch, steps, marks, start, seed, backend, check):
            counts = records.pop("counts", None)
            error = records["squared_error"]
            moving = variation.ndim == 2
            shown = variation[first : first + len(error)] if moving else variation
            sums.add(first, {**records, "r2": r2_from_error(error, shown)})
            if counts is not None:
                if sparse:
                    sparsity[first + 1].add(counts[0])
                if labels is not None:
                    latents[first + 1].append(model.rates(log_rate).cpu())
        if progress is not None:
            progress(min(start + batch_size, n), n)
    seconds = time.perf_counter() - started
    readout = {}
    if labels is not None:
        fitted = latents_at(
            model, fit[0], marks, batch_size=batch_size, seed=seed + 1, backend=backend, check=check
        )
        for mark in marks:
            readout[mark] = linear_readout(fitted[mark], fit[1], torch.cat(latents[mark]), classes)
    means = sums.means()
    return Evaluation(
        **means, nelbo=means["recon"] + means["kl"], n_samples=n, seconds=seconds, readout=readout,
        lifetime={mark: s.lifetime() for mark, s in sparsity.items()},
        population={mark: s.population() for mark, s in sparsity.items()},
    )  # fmt: skip


def steps_of(model: VAE, steps: int | None, default: int = STEPS) -> int:
    """Inference steps for a model.

    Args:
        model: of any family.
        steps: asked for.
        default: where none are; 1 of a model that is not iterative.

    Raises:
        ValueError: other than 1 of a model that is not iterative.
    """
    if steps is None:
        return default if model.iterative else 1
    steps = whole("steps", steps)
    if steps != 1 and not model.iterative:
        raise ValueError(f"steps: expected 1 of a {model.cell}, whose encoder infers in one, found {steps}")
    return steps


def latents_at(
    model: VAE,
    x: Source,
    marks: Collection[int],
    *,
    batch_size: int = 1000,
    seed: int = 0,
    backend: str = "auto",
    check: bool = True,
) -> dict[int, Tensor]:
    """The latents without noise, rates of a Poisson model, after some steps of inference.

    Args:
        model: with either cell.
        x: [N, M], as in `evaluate`.
        marks: steps, counted from 1.
        batch_size: samples at a time.
        seed: of the noise.
        backend: of `ipvae_kernels`.
        check: raise where an input or the result is not finite; False saves a pass over each.

    Returns:
        step -> latents [N, K] on the CPU.
    """
    batch_size = checks.integer("batch_size", batch_size, 1, 2**32)
    seed = whole("seed", seed)
    x = model.flatten(gather("x", x, model.like)[0])
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x: expected shape [N, {model.config.n_inputs}], N >= 1, found {list(x.shape)}")
    wanted = {checks.integer("marks", mark, 1, 2**32) for mark in marks}
    rows: dict[int, list[Tensor]] = {mark: [] for mark in sorted(wanted)}
    for start in range(0, x.shape[0], batch_size):
        batch = x[start : start + batch_size].to(model.like.device)
        state, done = None, 0
        for mark in rows:
            state = model.infer(
                batch, mark - done, state=state, seed=seed, sample_offset=start, backend=backend, check=check
            ).state
            done = mark
            rows[mark].append(model.rates(state.log_rate).cpu())
    return {mark: torch.cat(values) for mark, values in rows.items()}


def _rollout(
    model: VAE,
    x: Tensor,
    steps: int,
    marks: Collection[int],
    offset: int,
    seed: int,
    backend: str,
    check: bool,
) -> Iterator[tuple[int, dict[str, Tensor], Tensor]]:
    """Inference of one batch in stretches of time; a mark is a stretch of one step, with its counts.

    Yields:
        The first step of the stretch, its records [R, B], and the log rates at its end.
    """
    state = None
    for first, stop in _stretches(steps, marks, max(1, BLOCK // x.shape[-2])):
        at_mark = stop in marks
        result = model.infer(
            frames(x, first, stop), stop - first, state=state, seed=seed, sample_offset=offset,
            record=(*SCALARS, "counts") if at_mark else SCALARS, backend=backend, check=check,
        )  # fmt: skip
        state = result.state
        yield first, dict(result.records), state.log_rate


def _stretches(steps: int, marks: Collection[int], longest: int) -> Iterator[tuple[int, int]]:
    """Cuts [0, steps) so that every mark m is the stretch [m - 1, m), and none is longer than `longest`."""
    cuts = sorted({0, steps, *marks, *(mark - 1 for mark in marks)})
    for low, high in pairwise(cuts):
        for first in range(low, high, longest):
            yield first, min(first + longest, high)
