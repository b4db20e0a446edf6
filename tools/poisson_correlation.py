"""Are successive Poisson draws on a GPU independent? ``torch.poisson`` (pytorch#136750) and ours.

    python tools/poisson_correlation.py [--out FILE] [--device cuda]

For each rate two successive calls draw n counts each; of independent calls the correlation is 0 with standard
deviation n^-1/2. Prints a table of correlations in units of that deviation, the largest over all pairs of
calls, and exits with 1 where ours exceeds 5.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import ipvae_kernels

RATES = (1.0, 9.0, 20.0, 30.0, 45.0, 63.0, 64.0, 200.0)
CALLS = 8


def largest(draw: Callable[[int], Tensor], n: int) -> float:
    """The largest correlation between two of CALLS draws of n counts, in standard deviations."""
    counts = torch.stack([draw(call).double() for call in range(CALLS)])
    matrix = torch.corrcoef(counts).abs()
    return float((matrix - torch.eye(CALLS, dtype=matrix.dtype, device=matrix.device)).max()) * math.sqrt(n)


def _theirs(rates: Tensor, call: int) -> Tensor:
    return torch.poisson(rates)


def _ours(log_rate: Tensor, call: int) -> Tensor:
    return ipvae_kernels.poisson_sample(log_rate, seed=call, check=False)


def table(n: int, device: str) -> tuple[str, bool]:
    """The table in Markdown, and whether ours passes."""
    lines = ["| rate | torch.poisson | ipvae_kernels.poisson_sample |", "| --- | --- | --- |"]
    passed = True
    for rate in RATES:
        rates = torch.full((n,), rate, device=device)
        log_rate = rates.log()
        theirs = largest(functools.partial(_theirs, rates), n)
        ours = largest(functools.partial(_ours, log_rate), n)
        passed &= ours < 5.0
        lines.append(f"| {rate:g} | {theirs:.1f} | {ours:.1f} |")
    return "\n".join(lines) + "\n", passed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n", type=int, default=2**20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text, passed = table(arguments.n, arguments.device)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
