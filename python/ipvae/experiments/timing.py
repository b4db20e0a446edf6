"""How much faster than plain PyTorch the kernels run on this machine."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

import ipvae_kernels

from ..extras import explained
from ..models.poisson import IPVAE
from ..training.recipes import DEMO_TRAIN
from . import baseline, turns

with explained():
    from tqdm.auto import tqdm  # type: ignore[import-untyped]


TIMED_INFERENCE_STEPS = 64
# Inputs [B, M] to reconstruction terms [T, B].
Run = Callable[[Tensor], Tensor]


class Timing(TypedDict):
    """Medians of interleaved repeats, in seconds, and what was run."""

    what: str
    batch: int
    repeats: int
    plain_seconds: float
    ours_seconds: float
    speedup: float
    plain_threads: int
    ours_threads: int
    recon_plain: float
    recon_ours: float


def compare(model: IPVAE, x: Tensor, seconds: float = 15.0, *, progress: bool = True) -> list[Timing]:
    """How much faster than the plain PyTorch loop a training step (forward and backward) and inference run.

    Checks first that both compute the same thing: that their mean reconstruction terms agree. Then they take
    turns, so that whatever else the machine does slows both, each with one thread and with all of them, and
    the better counts: on a busy machine two threads can be slower than one. Where plain PyTorch would take
    too long, both get a smaller batch.

    Args:
        model: trained.
        x: a batch, [B, M].
        seconds: about how long all may take.
        progress: draw a progress bar.

    Raises:
        RuntimeError: the two disagree, so that a comparison would mean nothing.
    """
    t, temperature, beta = model.config.t_train, 0.1, DEMO_TRAIN.beta_outer
    arrivals = baseline.released_arrivals(model, x, t)

    def training(estimator: str, n_arrivals: int | None) -> tuple[Run, Run]:
        def plain(x: Tensor) -> Tensor:
            result = baseline.loss(model, x, t, beta, estimator, temperature, arrivals)
            return backward(result.loss, result.recon)

        def ours(x: Tensor) -> Tensor:
            result = ipvae_kernels.elbo(
                x, model.params, t, beta=beta, estimator=estimator, temperature=temperature,
                n_arrivals=n_arrivals, kl=model.config.kl, **model.clamps,
            )  # fmt: skip
            return backward(result.loss, result.recon)

        return plain, ours

    def backward(loss: Tensor, recon: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return recon.detach()

    def plain_inference(x: Tensor) -> Tensor:
        return baseline.infer(model, x, TIMED_INFERENCE_STEPS).recon

    def our_inference(x: Tensor) -> Tensor:
        return model.infer(x, TIMED_INFERENCE_STEPS, record=("recon", "kl")).records["recon"]

    estimator = model.config.estimator
    cases = {f"training step, T = {t}, {estimator}": training(estimator, model.n_arrivals)}
    if estimator != "sigmoid":
        cases[f"training step, T = {t}, sigmoid*"] = training("sigmoid", max(arrivals))
    cases[f"inference, {TIMED_INFERENCE_STEPS} steps"] = (plain_inference, our_inference)
    timings = []
    with tqdm(total=len(cases), desc="timing", unit="case", disable=not progress) as bar:
        for what, (plain, ours) in cases.items():
            timings.append(_in_turns(what, plain, ours, x, seconds / len(cases)))
            bar.update()
    model.zero_grad()
    return timings


def _in_turns(what: str, plain: Run, ours: Run, x: Tensor, seconds: float) -> Timing:
    """Checks that two ways to the same numbers [T, B] agree, then times them in turns for so long."""
    counts = sorted({1, torch.get_num_threads()})
    x = x[: _affordable(plain, x, seconds, counts)]
    a, b = plain(x).mean(0).double(), ours(x).mean(0).double()
    # Both saw the same inputs: what differs is the noise of each, so pairs tell its size.
    noise = (a - b).std() / len(x) ** 0.5 if len(x) > 1 else a.abs().mean()
    if not (a - b).mean().abs() < 6.0 * noise + 0.01 * a.abs().mean():
        raise RuntimeError(
            f"{what}: mean reconstruction terms differ: {a.mean():.4f} in plain PyTorch, {b.mean():.4f} here"
        )
    runs = {(run, n): functools.partial(_with_threads, run, x, n) for n in counts for run in (plain, ours)}
    taken, errors = turns.take_turns(runs, seconds, least=turns.MIN_ROUNDS)
    for error in errors.values():
        raise error
    medians = [min((statistics.median(taken[run, n]), n) for n in counts) for run in (plain, ours)]
    (slow, slow_threads), (fast, fast_threads) = medians
    return Timing(
        what=what, batch=len(x), repeats=min(map(len, taken.values())),
        plain_seconds=slow, ours_seconds=fast, speedup=slow / fast,
        plain_threads=slow_threads, ours_threads=fast_threads,
        recon_plain=float(a.mean()), recon_ours=float(b.mean()),
    )  # fmt: skip


def _affordable(plain: Run, x: Tensor, seconds: float, counts: list[int]) -> int:
    """Rows of a batch that plain PyTorch runs often enough in this time, at least a tenth of them."""
    probe = x[: max(1, len(x) // 10)]
    plain(probe)  # the warm-up
    each = min(turns.elapsed(functools.partial(_with_threads, plain, probe, n)) for n in counts) / len(probe)
    batch = len(x)
    while batch > len(probe) and turns.MIN_ROUNDS * len(counts) * each * batch > seconds:
        batch //= 2
    return batch


def _with_threads(function: Run, x: Tensor, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        function(x)
    finally:
        torch.set_num_threads(before)
