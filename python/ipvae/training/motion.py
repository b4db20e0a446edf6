"""Still inputs made to move: what ``ipvae train --motion`` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..data import JitterFeeder, RotationFeeder
from ..fields import ConfigError

if TYPE_CHECKING:
    from .module import Frames

MOTIONS = ("none", "jitter", "rotation")


def moving(motion: str, shape: tuple[int, ...], steps: int) -> Frames | None:
    """Makes frames of inputs, as `train` asks for them.

    Args:
        motion: a name of `MOTIONS`.
        shape: of an input, (C, H, W).
        steps: frames of each input.

    Returns:
        A function of inputs [B, M] and a seed that gives frames [steps, B, M]; None for still inputs.

    Raises:
        ConfigError: for another motion.
    """
    if motion not in MOTIONS:
        raise ConfigError(f"motion: expected one of {', '.join(MOTIONS)}, found {motion!r}")
    if motion == "none":
        return None

    # A checkpoint knows `frames` by the plain values that it holds.
    def frames(x: Tensor, seed: int) -> Tensor:
        images = x.reshape(-1, *shape)
        if motion == "jitter":
            return JitterFeeder(images, seed=seed).frames(0, steps)
        return RotationFeeder(images).frames(0, steps)

    return frames
