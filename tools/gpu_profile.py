"""Where the time of a call goes on a GPU: ``python tools/gpu_profile.py [--backend NAME] [--out FILE]``.

A row for each op at the paper's sizes: the time of a call as a user makes it, the same without the passes
that look for NaN, that of its kernels alone, and the longest kernels by name. What a call takes beyond its
kernels is the host's: Python, torch, launches. ``--backend cpu`` tries the program out: it has no kernels to
show there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import ipvae_kernels as ik

BATCH, INPUTS, LATENTS = 200, 256, 512
REPEATS, WARM_UPS, SHOWN = 30, 3, 3


def calls(device: str, backend: str, *, check: bool) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale + shift).to(device)

    x = normal(BATCH, INPUTS)
    params = ik.PoissonParams(
        normal(INPUTS, LATENTS, scale=0.1).requires_grad_(), normal(INPUTS, scale=0.0),
        normal(LATENTS, scale=0.5, shift=-3.0), normal(scale=0.0, shift=-4.0),
        normal(LATENTS, scale=1.0, shift=-2.0).requires_grad_(),
    )  # fmt: skip
    log_rate = normal(1000, 1000, scale=1.0, shift=-2.0)
    leaf, upstream = log_rate.clone().requires_grad_(), torch.ones_like(log_rate)
    how = {"seed": torch.zeros((), dtype=torch.int64, device=device), "backend": backend, "check": check}

    def rsample() -> object:
        z = ik.poisson_rsample(leaf, estimator="cubic", temperature=0.1, **how)  # type: ignore[arg-type]
        return torch.autograd.grad(z, leaf, upstream)

    def train() -> object:
        assert params.dictionary is not None
        loss = ik.elbo(x, params, 16, estimator="cubic", temperature=0.1, **how).loss  # type: ignore[arg-type]
        return torch.autograd.grad(loss, params.dictionary)

    return {
        "poisson_sample, 10^6": lambda: ik.poisson_sample(log_rate, **how),  # type: ignore[arg-type]
        "poisson_rsample and gradient, 10^6, cubic .1": rsample,
        "infer, T 1": lambda: ik.infer(x, params, 1, **how),  # type: ignore[arg-type]
        "infer, T 16": lambda: ik.infer(x, params, 16, **how),  # type: ignore[arg-type]
        "infer, T 1,000": lambda: ik.infer(x, params, 1000, **how),  # type: ignore[arg-type]
        "infer, T 1,000, B 1": lambda: ik.infer(x[:1], params, 1000, **how),  # type: ignore[arg-type]
        "elbo and gradient, T 16, cubic .1": train,
    }


def wait(device: str) -> None:
    """Until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def median(call: Callable[[], object], device: str) -> float:
    """Median seconds of a call that is waited for."""
    taken = []
    for _ in range(WARM_UPS + REPEATS):
        begin = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[WARM_UPS:])


def kernels(call: Callable[[], object], device: str) -> tuple[float, str]:
    """Seconds of all kernels of a call, and the longest by name."""
    if device != "cuda":
        return 0.0, ""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(REPEATS):
            call()
        wait(device)
    events = [e for e in profiler.key_averages() if e.device_type.name == "CUDA"]
    events.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    longest = [f"`{e.key[:48]}` {e.self_device_time_total / REPEATS:.0f} us" for e in events[:SHOWN]]
    return total / REPEATS / 1e6, ", ".join(longest)


def rows(device: str, backend: str) -> Iterator[str]:
    """The table of a backend, row by row."""
    unchecked = calls(device, backend, check=False)
    for name, call in calls(device, backend, check=True).items():
        seen, bare = median(call, device), median(unchecked[name], device)
        alone, longest = kernels(unchecked[name], device)
        yield f"| {backend} | {name} | {1e6 * seen:.0f} | {1e6 * bare:.0f} | {1e6 * alone:.0f} | {longest} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the table here; default: standard output")
    parser.add_argument("--backend", choices=("cuda", "triton", "cpu"), default="cuda")
    arguments = parser.parse_args()
    device = "cpu" if arguments.backend == "cpu" else "cuda"
    lines = [
        f"# Calls and their kernels: B {BATCH}, K {LATENTS}, M {INPUTS}, microseconds", "",
        "| backend | call | as used | without checks | kernels alone | the longest kernels |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows(device, arguments.backend):
        lines.append(row)
        if arguments.out:  # what is stopped leaves the rows it had
            arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
