"""What drives an update: the gradient of the reconstruction term at counts, or of its expectation.

For x normal with mean Phi z and variance var = exp(2 log_sigma), and z Poisson with rates r = exp(u), the
reconstruction term has the expectation

    E = sum_m ((x - Phi r)^2 + sum_k Phi_mk^2 r_k) / (2 var_m) + const

The Fisher information of a Poisson law in its log rate is r, so the natural gradient of E in u is dE/dr, and

    drive = -dE/dr = Phi^T ((x - Phi r) / var) - d / 2,    d_k = sum_m Phi_mk^2 / var_m

"expected" is this drive; "sampled" has counts z in place of r, and it as its mean; "paper" is Phi^T ((x - Phi
z) / var), as published (arXiv 2410.19315), which leaves out d / 2. What an update subtracts from its drive is
the inhibition exp(log_bias): d / 2 is added to that before the steps begin, so no step costs more for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..cells import CELLS
from .config import DRIVES
from .problem import Inputs

# Numbers of a dictionary squared at a time: 16 MiB in float32.
_ENTRIES = 2**22


def check_drive(cell: str, drive: object) -> str:
    """One of ``DRIVES``, which only cells that draw counts have a choice of."""
    drive = checks.choice("drive", drive, DRIVES)
    if drive != "paper" and not CELLS[cell].counts:
        raise ValueError(f"drive: expected 'paper' for a Gaussian model, found {drive!r}")
    return drive


def driven(inputs: Inputs, linear: bool, drive: str) -> Inputs:
    """The tensors of a task, with d / 2 added to the inhibition where the drive asks for it.

    Raises:
        ValueError: the decoder is not linear, so that the expectation has no closed form.
    """
    if drive == "paper":
        return inputs
    if not linear:
        raise ValueError(
            f"drive: expected 'paper' beside a decoder, found {drive!r}: the expectation over counts has a "
            "closed form for a linear decoder alone"
        )
    half = half_diagonal(inputs.dictionary, inputs.log_sigma)
    tiny = torch.finfo(half.dtype).tiny  # of no inhibition at all; the logarithm of 0 is not finite
    return inputs._replace(log_bias=(inputs.log_bias.exp() + half).clamp(min=tiny).log())


def half_diagonal(dictionary: Tensor, log_sigma: Tensor) -> Tensor:
    """Half the diagonal of Phi^T Phi / var, [K], of Phi [M, K] and log_sigma [M]; differentiable."""
    rows = max(1, _ENTRIES // dictionary.shape[1])
    precision = torch.exp(-2.0 * log_sigma)
    parts = zip(torch.split(dictionary, rows), torch.split(precision, rows), strict=True)
    return 0.5 * torch.stack(
        [(phi.to(weight.dtype).square() * weight[:, None]).sum(0) for phi, weight in parts]
    ).sum(0)
