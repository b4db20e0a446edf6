"""Decoders that are not linear, from codes [B, K] to images ``[B, *input_shape]``; and what is refused.

Nobody has published a non-linear decoder of the iterative VAEs: the authors' configuration names an MLP and
convolutions, with 128 and 64 neurons, but their code has the linear one alone. Those here are plain:

* "mlp": two hidden layers of ``decoder_width`` units;
* "conv": a linear layer to images of a quarter of the sides, then twice a 3 x 3 convolution whose channels
  become pixels (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158: a quarter of the work and memory of
  upsampling first), from 2 ``decoder_width`` channels to ``decoder_width`` to those of the image;
* "deconv": the same with transposed convolutions of stride 2.

Between layers stands SiLU ("swish", that of the authors' Poisson VAE): the drive of a step is a derivative of
the decoder, so training takes its second derivative, which is zero almost everywhere for a ReLU. Nothing
couples the rows of a batch or is random: noise is a function of seed, step and sample (docs/models.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .config import VAEConfig

_PROBED_ROWS = 3


def make_decoder(config: VAEConfig) -> nn.Module:
    """The decoder that a configuration names, other than "linear" and "module"; weights are torch's own."""
    k, width, shape = config.n_latents, config.decoder_width, config.shape
    if config.decoder == "mlp":
        return nn.Sequential(
            nn.Linear(k, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, config.n_inputs), nn.Unflatten(1, shape),
        )  # fmt: skip
    grow = _shuffled if config.decoder == "conv" else _transposed
    channels, *full = shape
    half = [_half(side) for side in full]
    quarter = [_half(side) for side in half]
    return nn.Sequential(
        nn.Linear(k, 2 * width * math.prod(quarter)), nn.Unflatten(1, (2 * width, *quarter)), nn.SiLU(),
        *grow(2 * width, width, quarter, half), nn.SiLU(), *grow(width, channels, half, full),
    )  # fmt: skip


def _half(side: int) -> int:
    return (side + 1) // 2


def _shuffled(channels: int, to: int, small: list[int], large: list[int]) -> list[nn.Module]:
    height, width = (b - 2 * a for a, b in zip(small, large, strict=True))  # 0, or -1 where a side is odd
    return [
        nn.Conv2d(channels, 4 * to, 3, padding=1), nn.PixelShuffle(2), nn.ZeroPad2d((0, width, 0, height))
    ]  # fmt: skip


def _transposed(channels: int, to: int, small: list[int], large: list[int]) -> list[nn.Module]:
    # Without it the sides would be 2 n - 1.
    height, width = (b - (2 * a - 1) for a, b in zip(small, large, strict=True))
    return [nn.ConvTranspose2d(channels, to, 3, stride=2, padding=1, output_padding=(height, width))]


@torch.no_grad()
def reset_network(network: nn.Module, generator: torch.Generator, last_scale: float | None = None) -> None:
    """Draws the weights of a network of this package anew, the same wherever it lies.

    As torch does, weights are uniform within 1 / sqrt(inputs of a unit); biases are 0.

    Args:
        network: of linear layers and convolutions; others keep what they are made with.
        generator: of the CPU.
        last_scale: of the last layer, standard deviation of a normal in place of that; None: as the others.
    """
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    for layer in layers:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        fan_in = layer.weight.numel() // layer.weight.shape[1 if transposed else 0]
        weight = torch.empty(layer.weight.shape, dtype=torch.float32, device="cpu")
        if layer is layers[-1] and last_scale is not None:
            weight.normal_(0.0, last_scale, generator=generator)
        else:
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()


def refuse_unfit(name: str, network: nn.Module, n_inputs: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuses a network of the user's that cannot serve, with the reason; it is called once or twice.

    Args:
        name: of the argument, "decoder" or "encoder".
        network: takes ``[B, *n_inputs]``.
        n_inputs: shape of what one row takes.
        shape: of what it has to return for a row, flattened or not.

    Raises:
        TypeError: it is no module, or returns no tensor of the dtype that it was given.
        ValueError: it returns another shape; autograd finds no way from the result to what was given; rows
            depend on each other; it is random.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name}: expected an nn.Module, found {type(network).__name__}")
    for layer, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"{name}: {layer or type(module).__name__} normalises by statistics of the batch, which "
                "couple its rows: what is inferred for an input would depend on the others; use LayerNorm or "
                "GroupNorm"
            )
        if isinstance(module, _DropoutNd) and module.p > 0.0:
            raise ValueError(
                f"{name}: {layer or type(module).__name__} drops units at random, and all noise has to be a "
                "function of the seed; leave it out"
            )
    with torch.enable_grad():
        given, found = _probe(name, network, n_inputs)
        _check_rows(name, given, found, shape)
    with torch.no_grad():
        if not torch.allclose(network(given), found, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"{name}: expected the same result for the same input, found another: is it random?"
            )


def _probe(name: str, network: nn.Module, n_inputs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What a network is given, and what it returns."""
    own = next(network.parameters(), torch.empty(0))
    n = _PROBED_ROWS * math.prod(n_inputs)
    given = torch.linspace(0.0, 2.0, n, dtype=own.dtype, device=own.device)
    given = given.reshape(_PROBED_ROWS, *n_inputs).requires_grad_()
    try:
        found = network(given)
    except RuntimeError as error:  # of a layer of other sizes
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: expected to take {['B', *n_inputs]}, found that it fails: {reason}"
        ) from error
    if not isinstance(found, Tensor) or found.dtype != given.dtype:
        what = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"{name}: expected a module that returns a Tensor of {given.dtype}, found {what}")
    return given, found


def _check_rows(name: str, given: Tensor, found: Tensor, shape: tuple[int, ...]) -> None:
    """Shape, gradient and independence of rows."""
    flat = (math.prod(shape),)
    if tuple(found.shape) not in ((len(given), *shape), (len(given), *flat)):
        expected = " or ".join(str(["B", *s]) for s in dict.fromkeys((shape, flat)))
        raise ValueError(
            f"{name}: expected a module that returns {expected}, found {['B', *found.shape[1:]]}".replace(
                "'", ""
            )
        )
    (gradient,) = (
        torch.autograd.grad(found[0].square().sum(), given, allow_unused=True)
        if found.requires_grad
        else (None,)
    )
    if gradient is None:
        raise ValueError(
            f"{name}: expected a result that autograd can differentiate by what it was given, found one that "
            "does not depend on it (detach, no_grad, NumPy?)"
        )
    if gradient[1:].any():
        raise ValueError(
            f"{name}: expected rows that do not depend on each other, found that the first result changes "
            "with the other inputs (statistics of the batch?)"
        )
