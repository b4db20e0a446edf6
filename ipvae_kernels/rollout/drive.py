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

from .. import checks
from ..cells import CELLS
from .config import DRIVES
from .decoders import Decoder, LinearDecoder
from .problem import Inputs


def check_drive(cell: str, drive: object) -> str:
    """One of ``DRIVES``, which only cells that draw counts have a choice of."""
    drive = checks.choice("drive", drive, DRIVES)
    if drive != "paper" and not CELLS[cell].counts:
        raise ValueError(f"drive: expected 'paper' for a Gaussian model, found {drive!r}")
    return drive


def driven(inputs: Inputs, decoder: Decoder | None, drive: str) -> Inputs:
    """The tensors of a task, with d / 2 added to the inhibition where the drive asks for it.

    Without a decoder it is linear, of the dictionary among the inputs.

    Raises:
        ValueError: the decoder is not linear, so that the expectation has no closed form.
    """
    if drive == "paper":
        return inputs
    linear = LinearDecoder(inputs.dictionary) if decoder is None else decoder
    if not isinstance(linear, LinearDecoder):
        raise ValueError(
            f"drive: expected 'paper' beside a decoder, found {drive!r}: the expectation over counts has a "
            "closed form for a linear decoder alone"
        )
    half = linear.half_diagonal(inputs.log_sigma)
    tiny = torch.finfo(half.dtype).tiny  # of no inhibition at all; the logarithm of 0 is not finite
    return inputs._replace(log_bias=(inputs.log_bias.exp() + half).clamp(min=tiny).log())
