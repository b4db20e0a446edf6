"""Every CUDA kernel once, in every layout, at small sizes: what to run under a checker or a profiler.

    compute-sanitizer --tool memcheck python tools/cuda_small.py      (also racecheck, synccheck, initcheck)
    ncu --kernel-name regex:rollout --set full python tools/cuda_small.py --paper

Needs a CUDA device; nothing is compared here (tests/ipvae_kernels/cuda does that), and nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import cuda

BLOCK, CLUSTER, GRID = 1, 2, 3


def layouts(largest_cluster: int) -> Iterator[tuple[int, int, int]]:
    """Kind of team, blocks of a team, rows of a tile; the plan's own choice first."""
    yield 0, 0, 0
    for rows in (8, 16):
        yield BLOCK, 1, rows
        if largest_cluster >= 2:
            yield CLUSTER, 2, rows
        yield GRID, 3, rows


def parameters(pixels: int, neurons: int, gaussian: bool, device: torch.device) -> list[Tensor]:
    """Dictionary, log_sigma, log_bias, log_lr and the initial state, ready for gradients."""
    lead = (2,) if gaussian else ()
    tensors = [
        torch.randn(pixels, neurons, device=device) * neurons**-0.5,
        torch.zeros(pixels, device=device),
        torch.full((neurons,), -3.0, device=device),
        torch.full(lead, -1.5, device=device),
        torch.full((*lead, neurons), -1.0, device=device),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def run_rollouts(batch: int, pixels: int, neurons: int, steps: int, device: torch.device) -> None:
    """Inference and a training step of both cells."""
    x = torch.randn(batch, pixels, device=device)
    for gaussian in (False, True):
        tensors = parameters(pixels, neurons, gaussian, device)
        dictionary, log_sigma, log_bias, log_lr, start = tensors
        kind = ik.GaussianParams if gaussian else ik.PoissonParams
        params = kind(dictionary, log_sigma, log_bias, log_lr, start)
        ik.infer(x, params, steps, record=("recon", "kl", "zeros"), seed=1, backend="cuda")
        ik.elbo(x, params, steps, seed=1, backend="cuda").loss.backward()  # type: ignore[no-untyped-call]


def run_pointwise(device: torch.device) -> None:
    """Draws, hard and relaxed, and updates with their gradients."""
    for shape in ((1, 1), (70, 133)):
        u = (torch.rand(shape, device=device) * 12 - 8).requires_grad_()
        lr, bias = torch.zeros((), device=device), torch.zeros(shape[1], device=device)
        ik.poisson_sample(u.detach(), seed=1, backend="cuda")
        for estimator in ("sigmoid", "cubic", "fini3"):
            ik.poisson_rsample(u, estimator=estimator, temperature=0.1, seed=1, backend="cuda")
        params = ik.PoissonParams(lr, lr, bias, lr, lr)
        new = ik.log_rate_update(u, u, u, params, leak=0.5, backend="cuda")
        new.sum().backward()  # type: ignore[no-untyped-call]


def main() -> int:
    """Runs the kernels; 2 where there is nothing to run them on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="B 200, K 512, M 256, T 16 in the plan's layout")
    options = parser.parse_args()
    if reason := cuda.reason():
        print(f"nothing to run: {reason}", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    if options.paper:
        run_rollouts(200, 256, 512, 16, device)
    else:
        run_pointwise(device)
        for layout in layouts(cuda.limits(device).max_cluster):
            with cuda.layout(*layout):
                for sizes in ((1, 1, 1), (11, 33, 70)):
                    run_rollouts(*sizes, 2, device)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
