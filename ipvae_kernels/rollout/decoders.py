"""Decoders: how codes become the mean of the input, and how its errors come back to the latents.

The model of an input x given a code z is normal with mean f(z) and variance var = exp(2 log_sigma). A step
needs f(z), and the drive, minus the gradient of the reconstruction term: the vector-Jacobian product of f at
z with (x - f(z)) / var. For a linear decoder f(z) = Phi z that is Phi^T ((x - Phi z) / var).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .. import _transforms
from ..backend.choice import BackendError

# Numbers of a dictionary squared at a time: 16 MiB in float32.
_ENTRIES = 2**22


class Decoded(NamedTuple):
    """A decoder at a code.

    Attributes:
        mean: of the input, [B, M].
        drive: from errors over the variance, [B, M], to drives, [B, K]: the vector-Jacobian product of the
            mean at the code. To be called once.
    """

    mean: Tensor
    drive: Callable[[Tensor], Tensor]


class Decoder(Protocol):
    """What a rollout asks of a decoder; both results follow the code and the parameters in autograd."""

    def __call__(self, code: Tensor) -> Decoded:
        """The decoder at codes [B, K]."""


class LinearDecoder:
    """Phi z.

    Args:
        dictionary: Phi, [M, K]; columns are features.
    """

    def __init__(self, dictionary: Tensor) -> None:
        self.dictionary = dictionary

    def __call__(self, code: Tensor) -> Decoded:
        """Two products with the dictionary."""
        return Decoded(code @ self.dictionary.T, lambda weighted: weighted @ self.dictionary)

    def half_diagonal(self, log_sigma: Tensor) -> Tensor:
        """Half the diagonal of Phi^T Phi / var, [K], of log_sigma [M]; differentiable."""
        rows = max(1, _ENTRIES // self.dictionary.shape[1])
        precision = torch.exp(-2.0 * log_sigma)
        parts = zip(torch.split(self.dictionary, rows), torch.split(precision, rows), strict=True)
        return 0.5 * torch.stack(
            [(phi.to(weight.dtype).square() * weight[:, None]).sum(0) for phi, weight in parts]
        ).sum(0)


class ModuleDecoder:
    """Any module from codes [B, K] to means [B, M] that autograd can differentiate.

    Rows must not depend on each other, nor the result on anything random: steps may be run again.

    Args:
        module: the decoder. To train through its drive it has to be differentiable twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, code: Tensor) -> Decoded:
        """The module once, and its backward for the drive."""
        if _transforms.transformed():
            raise BackendError(
                "decoder: a module, whose drive autograd computes, is not served inside of torch.func "
                "transforms and forward mode; call infer and elbo on the whole batch"
            )
        # Not where dynamo traces: torch 2.9 takes every compilation for an export.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            raise BackendError(
                "decoder: a module, whose drive is a derivative, is not served by torch.export; a linear one "
                "(params.dictionary) is, and torch.compile takes either"
            )
        if torch.compiler.is_compiling():
            # Traced graphs know transforms, and torch.autograd.grad only where an option of torch allows it.
            traced, pull = torch.func.vjp(self.module, code)[:2]
            return Decoded(traced, lambda weighted: pull(weighted)[0])
        trained = torch.is_grad_enabled()
        # Inference differentiates the mean by the code too, though nothing else.
        with torch.inference_mode(False), torch.enable_grad():
            if not (trained and code.requires_grad):
                code = code.clone() if code.is_inference() else code.detach()
                code.requires_grad_()
            mean = self.module(code)
        if not isinstance(mean, Tensor):
            raise TypeError(f"decoder: expected a module that returns a Tensor, found {type(mean).__name__}")
        if mean.dtype != code.dtype:
            raise TypeError(f"decoder: expected means of dtype {code.dtype} as the codes, found {mean.dtype}")

        def drive(weighted: Tensor) -> Tensor:
            product: Tensor | None = None
            if mean.requires_grad:
                (product,) = torch.autograd.grad(
                    mean, code, weighted, create_graph=trained, allow_unused=True
                )
            if product is None:
                raise ValueError(
                    "decoder: expected a mean that autograd can differentiate by the code, found one that "
                    "does not depend on it (detach, no_grad, NumPy?)"
                )
            return product

        return Decoded(mean if trained else mean.detach(), drive)


def as_decoder(decoder: object) -> Decoder:
    """A decoder from what ``infer`` and ``elbo`` take: a module, or a :class:`Decoder` as it is.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(decoder, nn.Module):
        return ModuleDecoder(decoder)
    if isinstance(decoder, Tensor) or not callable(decoder):
        raise TypeError(
            f"decoder: expected an nn.Module or a Decoder, found {type(decoder).__name__}; a dictionary goes "
            "into params"
        )
    return decoder
