"""`ipvae.baseline` through torch.compile (inductor)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import torch
from ipvae import baseline as plain

from ..problem import Prepared, Problem, Settings, Unavailable
from . import baseline


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Compiles one draw, or one step of the loop, for the sizes at hand (``dynamic=False``, full graph).

    The loop over steps stays in Python: unrolled, it does not finish compiling in useful time
    (docs/decisions.md, "torch.compile gets its step compiled"). All steps keep the same number of arrivals,
    the largest, since each number would be compiled anew.

    Raises:
        Unavailable: with what the compiler says.
    """
    torch.compiler.reset()
    case, largest = problem.case, max(problem.arrivals, default=0)
    arrivals = [largest] * len(problem.arrivals)
    draw = cast(baseline.Sample, torch.compile(plain.sample, dynamic=False, fullgraph=True))
    step = cast(plain.Step, torch.compile(plain.step, dynamic=False, fullgraph=True))
    # Two steps compile all there is: the log rates of the first are one row expanded, those of the second are
    # not. So what is timed, and what memory is measured of, has nothing left to compile.
    short = replace(problem, case=replace(case, steps=min(case.steps, 2)))
    begin = time.perf_counter()
    try:
        baseline.with_parts(short, draw, step, arrivals).run()
    except Exception as error:  # whatever the compiler finds to say
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise Unavailable(f"torch.compile: {str(error).strip().splitlines()[0]}") from error
    what = "the draw" if case.op in ("sample", "rsample") else "one step, the loop in Python"
    prepared = baseline.with_parts(problem, draw, step, arrivals, f"compiled: {what}")
    return replace(prepared, compile_seconds=time.perf_counter() - begin)
