"""The released loop in plain PyTorch, `ipvae.experiments.baseline`, and for hard counts `torch.poisson`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ipvae import IPVAE
from ipvae.experiments import baseline
from torch import Tensor

from ..problem import BETA, Optimiser, Output, Prepared, Problem, Settings, upstream, watched

Sample = Callable[[Tensor, str, float, int | None], Tensor]
Loss = Callable[[IPVAE, Tensor, int, float, str, float, baseline.Arrivals], baseline.Result]


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Eager PyTorch."""
    note = "torch.poisson" if problem.case.op == "sample" else ""
    return with_parts(problem, baseline.sample, baseline.loss, problem.arrivals, note)


def with_parts(problem: Problem, draw: Sample, loss: Loss, arrivals: list[int], note: str = "") -> Prepared:
    """The loop, and for sampling the draw, which may be compiled.

    Args:
        problem: what to run.
        draw: `baseline.sample` or a compiled form.
        loss: `baseline.loss` or a compiled form.
        arrivals: kept at each step, [T].
        note: of the row.
    """
    case = problem.case
    model = problem.copy_model()

    @torch.inference_mode()
    def sample() -> Output:
        return {"counts": draw(problem.log_rate, "hard", 0.0, None)}

    def rsample() -> Output:
        log_rate.grad = None
        counts: Tensor = draw(log_rate, case.estimator, case.temperature, arrivals[0])
        counts.backward(gradient)  # type: ignore[no-untyped-call]
        assert log_rate.grad is not None
        return {"counts": counts.detach(), "gradient": log_rate.grad}

    @torch.inference_mode()
    def infer() -> Output:
        return _output(loss(model, problem.x, case.steps, 1.0, "hard", 0.0, None))

    def train() -> Output:
        result = loss(model, problem.x, case.steps, BETA, case.estimator, case.temperature, arrivals)
        optimiser.step(result.loss)
        gradient = watched(model).grad
        assert gradient is not None
        return {**_output(result), "gradient": gradient}

    if case.op == "rsample":
        log_rate, gradient = problem.log_rate.clone().requires_grad_(), upstream(problem)
    if case.op == "train":
        optimiser = Optimiser(model)
    run = {"sample": sample, "rsample": rsample, "infer": infer, "train": train}[case.op]
    return Prepared(run, problem, note)


def _output(result: baseline.Result) -> Output:
    names = ("recon", "kl", "log_rate")
    return {name: getattr(result, name).detach() for name in names}
