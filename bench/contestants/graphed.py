"""`ipvae.experiments.baseline` as one CUDA graph: the whole run captured once, then replayed."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ..problem import Output, Prepared, Problem, Settings, Unavailable
from . import baseline

WARM_UPS = 3
"""Runs on a stream of their own before the capture, as torch.cuda.graph asks for."""


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Captures a run; a replay draws new numbers, since torch's generator counts on.

    Raises:
        Unavailable: there is no GPU, or what CUDA says against the capture.
    """
    if problem.device != "cuda":
        raise Unavailable("a CUDA graph needs a GPU")
    plain = baseline.prepare(problem, settings)
    begin = time.perf_counter()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            plain.run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            captured = plain.run()
    except RuntimeError as error:
        raise Unavailable(f"CUDA graph: {str(error).strip().splitlines()[0]}") from error

    def run(_used: object = plain) -> Output:  # the graph's memory: parameters and the optimiser's state
        graph.replay()
        return {name: tensor.clone() for name, tensor in captured.items()}

    run()
    torch.cuda.synchronize()
    return replace(
        plain, run=run, note="plain PyTorch, one CUDA graph", compile_seconds=time.perf_counter() - begin
    )
