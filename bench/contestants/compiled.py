"""`ipvae.baseline` through torch.compile (inductor)."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any, cast

import torch
from ipvae import baseline as plain
from torch._inductor import config

from ..problem import Prepared, Problem, Settings, Unavailable
from . import baseline

WARM_UP_STEPS = 3
"""Enough to compile all: log rates of the first step are one row expanded, those of later ones are not."""


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Compiles the draw of a sampling case, else one step, each as one graph; the loop stays in Python.

    Sizes are fixed; the number of arrivals, which differs between steps, is a variable of the compiled code.
    Why not all steps at once: docs/decisions.md, "torch.compile gets a step". Caches of earlier compilations
    are not used, so that the time says what compiling takes.

    Raises:
        Unavailable: with what the compiler says.
    """
    torch.compiler.reset()
    case = problem.case
    draw = cast(baseline.Sample, _compile(plain.sample))
    loss = functools.partial(plain.loss, step=_compile(plain.step))
    short = replace(problem, case=replace(case, steps=min(case.steps, WARM_UP_STEPS)))
    begin = time.perf_counter()
    try:
        with config.patch(force_disable_caches=True):
            baseline.with_parts(short, draw, loss, problem.arrivals).run()
    except Exception as error:  # whatever the compiler finds to say
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise Unavailable(f"torch.compile: {str(error).strip().splitlines()[0]}") from error
    seconds = time.perf_counter() - begin
    what = "the draw" if case.op in ("sample", "rsample") else "one step, the loop in Python"
    prepared = baseline.with_parts(problem, draw, loss, problem.arrivals, f"compiled: {what}")
    return replace(prepared, compile_seconds=seconds)


def _compile(function: Any) -> Any:
    return torch.compile(function, fullgraph=True)
