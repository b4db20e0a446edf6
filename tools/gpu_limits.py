"""How far the Triton kernels are from what a GPU could do: ``python tools/gpu_limits.py [--out FILE]``.

Three tables: relaxed counts with gradient against the bandwidth of a copy; a step of inference with a large
dictionary against its two matrix products alone; and the error of each ``matmul_precision`` against float64,
on this device. ``--device cpu`` runs small sizes on whatever backend serves there, to try the program out.
Each table is written as soon as it is there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.rollout.config import MATMUL_PRECISIONS

REPEATS = 9


def median(function: Callable[[], object], device: str) -> float:
    """Median seconds of a run, the first one, which compiles and tunes, left out."""
    taken = []
    for _ in range(1 + REPEATS):
        _wait(device)
        begin = time.perf_counter()
        function()
        _wait(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def backend(device: str) -> str:
    """Triton's, the only one that takes ``matmul_precision``; on the CPU any."""
    return "triton" if device == "cuda" else "auto"


def bandwidth(n: int, device: str) -> list[str]:
    """``poisson_rsample`` and its backward on n log rates; 24 bytes an element have to move."""
    source = torch.zeros(n, device=device)
    copied = 8 * n / median(lambda: source.clone(), device)
    u = torch.randn(n // 1000, 1000, device=device).sub_(1.0).requires_grad_()
    upstream = torch.randn_like(u)
    rows = [f"Copy: {copied / 1e9:.0f} GB/s", "", "| estimator, temperature | ms | of the copy's bandwidth |"]
    rows.append("| --- | --- | --- |")
    for estimator, temperature in (("fini2", 0.0), ("cubic", 0.1), ("sigmoid", 0.1)):

        def run(estimator: str = estimator, temperature: float = temperature) -> None:
            given: dict[str, Any] = {"estimator": estimator, "temperature": temperature}
            z = ik.poisson_rsample(u, seed=1, backend=backend(device), check=False, **given)
            torch.autograd.grad(z, u, upstream)

        seconds = median(run, device)
        share = 24 * n / seconds / copied
        rows.append(f"| {estimator}, {temperature:g} | {1e3 * seconds:.2f} | {share:.0%} |")
    return [f"## Relaxed counts and gradient, {n:.0e} log rates", "", *rows, ""]


def problem(batch: int, pixels: int, neurons: int, device: str) -> tuple[Tensor, ik.PoissonParams]:
    """Input and parameters under which rates stay moderate."""
    x = torch.randn(batch, pixels, device=device)
    dictionary = torch.randn(pixels, neurons, device=device).mul_(0.1 * neurons**-0.5)
    zeros = torch.zeros(neurons, device=device)
    return x, ik.PoissonParams(
        dictionary,
        torch.zeros(pixels, device=device),
        zeros - 3.0,
        torch.tensor(-2.0, device=device),
        zeros - 2.0,
    )


def products(batch: int, pixels: int, neurons: int, device: str) -> list[str]:
    """A step of inference over the time of Phi z and Phi^T e alone, by torch, in bfloat16."""
    x, params = problem(batch, pixels, neurons, device)
    steps = 4
    arguments: dict[str, Any] = {"matmul_precision": "bf16", "backend": backend(device), "check": False}
    seconds = median(lambda: ik.infer(x, params, steps, seed=1, **arguments), device) / steps
    assert params.dictionary is not None
    phi = params.dictionary.bfloat16()
    z = torch.ones(batch, neurons, device=device, dtype=torch.bfloat16)
    error = x.bfloat16()
    alone = median(lambda: (z @ phi.T, error @ phi), device)
    return [
        f"## A step of inference, B {batch}, M {pixels}, K {neurons}, bf16", "",
        "| step, ms | its products alone, ms | ratio |", "| --- | --- | --- |",
        f"| {1e3 * seconds:.2f} | {1e3 * alone:.2f} | {seconds / alone:.2f} |", "",
    ]  # fmt: skip


def matmul_precisions(batch: int, pixels: int, neurons: int, device: str) -> list[str]:
    """Largest error of the log rates after one step, over the largest change, with the same spikes."""
    x, params = problem(batch, pixels, neurons, device)
    fields = vars(params)
    exact = ik.infer(
        x.double(), ik.PoissonParams(**{name: value.double() for name, value in fields.items()}), 1, seed=1,
        backend="eager",
    ).state.log_rate  # fmt: skip
    change = (exact - params.log_rate_init.double()).abs().max()
    rows = ["| matmul_precision | error |", "| --- | --- |"]
    for matmul_precision in MATMUL_PRECISIONS:
        arguments: dict[str, Any] = {"matmul_precision": matmul_precision, "backend": backend(device)}
        ours: Any = ik.infer(x, params, 1, seed=1, **arguments).state.log_rate
        rows.append(f"| {matmul_precision} | {float((ours - exact).abs().max() / change):.1e} |")
    return [f"## Precision, B {batch}, M {pixels}, K {neurons}", "", *rows, ""]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the tables here; default: standard output")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device, large = arguments.device, arguments.device == "cuda"
    tables: list[Callable[[], list[str]]] = [
        lambda: bandwidth(10**8 if large else 10**5, device),
        lambda: matmul_precisions(200, 256, 512, device),
        lambda: products(*((4096, 2304, 131072) if large else (32, 64, 128)), device),
    ]
    lines: list[str] = []
    for table in tables:
        lines += table()
        if arguments.out:
            arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
