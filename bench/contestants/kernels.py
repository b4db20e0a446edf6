"""The backends of `ipvae_kernels`."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from ipvae import PVAE
from ipvae.experiments.turns import synchronize
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import ElboResult

from ..problem import BETA, Optimiser, Output, Prepared, Problem, Unavailable, upstream, watched


def prepare(problem: Problem, backend: str) -> Prepared:
    """A backend by name; seeds count up from 1. Triton's has compiled and tuned before, in a run of its own.

    Relaxed counts of the sigmoid keep the released number of arrivals; where the released code has one number
    per step, the largest of them.
    """
    reason = ipvae_kernels.backends()[backend]
    if reason != "available":
        raise Unavailable(reason)
    prepared = Prepared(_calls(problem, backend), problem)
    if backend != "triton":
        return prepared
    begin = time.perf_counter()
    _calls(problem, backend)()
    synchronize(problem.device)
    note, seconds = "the first call compiles and tunes what disk caches lack", time.perf_counter() - begin
    return replace(prepared, note=note, compile_seconds=seconds)


def _calls(problem: Problem, backend: str) -> Callable[[], Output]:
    """A function that computes the case with a new seed at every call."""
    case, seeds = problem.case, itertools.count(1)
    n_arrivals = max(problem.arrivals, default=None) if case.estimator == "sigmoid" else None
    draw = {"estimator": case.estimator, "temperature": case.temperature, "n_arrivals": n_arrivals}
    model = problem.copy_model()

    def sample() -> Output:
        return {"counts": ipvae_kernels.poisson_sample(problem.log_rate, seed=next(seeds), backend=backend)}

    def rsample() -> Output:
        log_rate.grad = None
        counts = ipvae_kernels.poisson_rsample(log_rate, seed=next(seeds), backend=backend, **draw)  # type: ignore[arg-type]
        counts.backward(gradient)  # type: ignore[no-untyped-call]
        assert log_rate.grad is not None
        return {"counts": counts.detach(), "gradient": log_rate.grad}

    def infer() -> Output:
        state, records = model.infer(
            problem.x, case.steps, record=("recon", "kl"), seed=next(seeds), backend=backend
        )
        return {**records, "log_rate": state.log_rate}

    def train() -> Output:
        result = ipvae_kernels.elbo(
            problem.x, model.params, case.steps, beta=BETA, kl=model.config.kl, seed=next(seeds),
            backend=backend, decoder=model.flat_decoder(), drive=case.drive, **draw, **model.clamps,  # type: ignore[arg-type]
        )  # fmt: skip
        optimiser.step(result.loss)
        return _trained(result, watched(model).grad)

    def amortised() -> Output:
        result = encoded(
            problem.x, beta=BETA, estimator=case.estimator, temperature=case.temperature, seed=next(seeds),
            backend=backend,
        )  # fmt: skip
        optimiser.step(result.loss)
        return _trained(result, encoded.dictionary.grad)

    if case.op == "rsample":
        log_rate, gradient = problem.log_rate.clone().requires_grad_(), upstream(problem)
    if case.op == "train":
        optimiser = Optimiser(model)
    if case.op == "amortised":
        encoded = copy.deepcopy(cast(PVAE, problem.amortised))
        optimiser = Optimiser(encoded)
    runs = {"sample": sample, "rsample": rsample, "infer": infer, "train": train, "amortised": amortised}
    return runs[case.op]


def _trained(result: ElboResult, gradient: Tensor | None) -> Output:
    assert gradient is not None
    return {
        "recon": result.recon.detach(), "kl": result.kl.detach(),
        "log_rate": result.state.log_rate.detach(), "gradient": gradient,
    }  # fmt: skip
