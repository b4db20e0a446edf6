"""`ipvae.experiments.baseline` through torch.compile (inductor)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from ipvae.experiments import baseline as plain
from torch._inductor import config

from ..problem import Output, Prepared, Problem, Settings, Unavailable
from . import baseline

WARM_UP_STEPS = 3
"""Enough to compile all: log rates of the first step are one row expanded, those of later ones are not."""


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Compiles the draw of a sampling case, else one step, each as one graph; the loop stays in Python.

    Sizes are fixed; the number of arrivals, which differs between steps, is a variable of the compiled code.
    Why not all steps at once: docs/design/benchmarks.md, "torch.compile gets a step". Caches of earlier
    compilations are not used, so that the time says what compiling takes.

    Raises:
        Unavailable: with what the compiler says.
    """
    torch.compiler.reset()
    case = problem.case
    mode = "reduce-overhead" if problem.device == "cuda" else None  # CUDA graphs; cuBLAS's products
    draw = cast(baseline.Sample, _compile(plain.sample, mode))
    loss = functools.partial(plain.loss, step=_compile(plain.step, mode))
    short = replace(problem, case=replace(case, steps=min(case.steps, WARM_UP_STEPS)))
    begin = time.perf_counter()
    try:
        with config.patch(force_disable_caches=True):
            baseline.with_parts(short, draw, loss, problem.arrivals).run()
    except Exception as error:  # whatever the compiler finds to say
        known = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        if not known and mode is None:  # graphs of CUDA complain by RuntimeErrors of their own
            raise
        raise Unavailable(f"torch.compile: {str(error).strip().splitlines()[0]}") from error
    seconds = time.perf_counter() - begin
    what = "the draw" if case.op in ("sample", "rsample") else "one step, the loop in Python"
    note = f"compiled: {what}" + (f", {mode}" if mode else "")
    prepared = baseline.with_parts(problem, draw, loss, problem.arrivals, note)
    if mode is not None:
        prepared = replace(prepared, run=functools.partial(_cloned, prepared.run))
    return replace(prepared, compile_seconds=seconds)


def _cloned(run: Callable[[], Output]) -> Output:
    """A run whose results outlive the next one, which writes to the memory of the same CUDA graphs."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    return {name: tensor.clone() for name, tensor in run().items()}


def _compile(function: Any, mode: str | None) -> Any:
    return torch.compile(function, fullgraph=True, mode=mode)
