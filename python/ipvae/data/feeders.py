"""Moving input: a `Feeder` makes the frames of any stretch of time, so no long sequence is ever held.

Frames depend on the time step alone, never on how a sequence is cut into stretches. Motion follows the
released code's feeders, but for two things: each sample has a random walk of its own, and rotated images keep
their histogram as interpolation leaves it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipvae.inputs import Inputs, as_tensor, dense, whole
from ipvae_kernels import checks, philox

KIND_GAZE = 3  # kind of draw, see docs/design/randomness.md
MOST_DIFFUSION = 1e12  # pixels^2 a step; far beyond any image
BLOCK = 256  # steps of a random walk that are drawn at once


class Feeder(ABC):
    """Frames of B moving inputs of M pixels.

    Attributes:
        batch: B.
        pixels: M, of the flattened frames.
        length: number of frames there are; None where they never end.
    """

    batch: int
    pixels: int
    length: int | None = None

    def frames(self, start: int, stop: int) -> Tensor:
        """Frames of the steps start..stop-1, bit-identical however a sequence is cut.

        Returns:
            [stop - start, B, M], dtype and device of the images.

        Raises:
            IndexError: unless 0 <= start < stop <= length.
        """
        return self._frames(*self._range(start, stop))

    def _range(self, start: int, stop: int) -> tuple[int, int]:
        start, stop = whole("start", start), whole("stop", stop)
        if not 0 <= start < stop or (self.length is not None and stop > self.length):
            end = "" if self.length is None else f" <= {self.length}"
            raise IndexError(f"start, stop: expected 0 <= start < stop{end}, found {start}, {stop}")
        return start, stop

    def chunks(self, steps: int, size: int) -> Iterator[Tensor]:
        """Frames of the steps 0..steps-1, at most ``size`` at a time: each [<= size, B, M]."""
        steps, size = whole("steps", steps), whole("size", size)
        if size < 1:
            raise ValueError(f"size: expected at least 1 step, found {size}")
        return (self.frames(start, min(start + size, steps)) for start in range(0, steps, size))

    @abstractmethod
    def _frames(self, start: int, stop: int) -> Tensor:
        """`frames` for a range that has been checked."""


class SequenceFeeder(Feeder):
    """A given sequence.

    Args:
        sequence: [T, B, M], tensor or array, floating point; likewise the images of the others.
    """

    def __init__(self, sequence: Inputs) -> None:
        self.sequence = as_tensor("sequence", sequence)
        if self.sequence.ndim != 3:
            raise ValueError(f"sequence: expected [T, B, M], found {list(self.sequence.shape)}")
        self.length, self.batch, self.pixels = self.sequence.shape

    def _frames(self, start: int, stop: int) -> Tensor:
        return self.sequence[start:stop]


class RotationFeeder(Feeder):
    """Images that turn at a constant speed around their centre; bilinear, zeros come in at the corners.

    Args:
        images: [B, C, H, W], floating point.
        degrees_per_step: speed, degrees a step, counterclockwise.
        start_degrees: angle of frame 0.
    """

    def __init__(self, images: Inputs, degrees_per_step: float = 8.0, start_degrees: float = 0.0) -> None:
        self.images = _checked(images)
        self.batch, self.pixels = len(self.images), self.images[0].numel()
        self.degrees_per_step = checks.number("degrees_per_step", degrees_per_step)
        self.start_degrees = checks.number("start_degrees", start_degrees)

    def _frames(self, start: int, stop: int) -> Tensor:
        # math, not torch: vectorised sines may round differently from one length to the next.
        angles = [
            math.radians((self.start_degrees + self.degrees_per_step * t) % 360) for t in range(start, stop)
        ]
        cos = self.images.new_tensor([math.cos(a) for a in angles]).view(-1, 1, 1, 1)
        sin = self.images.new_tensor([math.sin(a) for a in angles]).view(-1, 1, 1, 1)
        height, width = self.images.shape[-2:]
        x, y = _centred_grid(self.images, height, width)
        centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
        return _sample(self.images, centre_x + (cos * x - sin * y), centre_y + (sin * x + cos * y))


class JitterFeeder(Feeder):
    """Images seen by an eye that drifts: each sample's gaze is an Ornstein-Uhlenbeck walk of its own.

    gaze <- (1 - harmonic) gaze + sqrt(diffusion) N(0, 1) on each axis, from the centre at rest; frame 0 shows
    the image after the first move. The released ``JitterFeeder`` has these constants (and one walk for the
    whole batch).

    Args:
        images: [B, C, H, W], floating point.
        diffusion: variance of one move, pixels^2.
        harmonic: pull to the centre, share of the distance per step, 0 to 1.
        window: (height, width) of the frames, cut from larger images, within which the gaze stays; None for
            frames as large as the images, zeros outside them.
        seed: of the walks.
        sample_offset: global index of the first sample: sample b walks like sample b + offset of the whole
            batch.
    """

    def __init__(
        self,
        images: Inputs,
        *,
        diffusion: float = 0.6,
        harmonic: float = 0.03,
        window: tuple[int, int] | None = None,
        seed: int = 0,
        sample_offset: int = 0,
    ) -> None:
        self.images = _checked(images)
        self.diffusion = checks.number("diffusion", diffusion, 0.0, MOST_DIFFUSION)
        self.harmonic = checks.number("harmonic", harmonic, 0.0, 1.0)
        channels, height, width = self.images.shape[1:]
        self.window = (height, width) if window is None else _pair("window", window)
        if not (1 <= self.window[0] <= height and 1 <= self.window[1] <= width):
            raise ValueError(f"window: expected at most the images' ({height}, {width}), found {window}")
        free = (width - self.window[1], height - self.window[0])  # (x, y)
        limit = (math.inf, math.inf) if window is None else free
        self._limit = torch.tensor(limit, dtype=torch.float64, device="cpu") / 2
        self.batch, self.pixels = len(self.images), channels * math.prod(self.window)
        self.seed = checks.seed(checks.integer("seed", seed, -(2**63), 2**63 - 1), self._limit.device)
        _, self.sample_offset = checks.stream(0, 1, sample_offset, self.batch)
        self._starts = [self._limit.new_zeros(self.batch, 2)]  # gaze before each block
        self._latest: tuple[int, Tensor] | None = None

    def gaze(self, start: int, stop: int) -> Tensor:
        """Displacement of the gaze, [stop - start, B, 2] float64, (x right, y down) in pixels."""
        start, stop = self._range(start, stop)
        blocks = [self._block(index) for index in range(start // BLOCK, -(-stop // BLOCK))]
        first = start // BLOCK * BLOCK
        return torch.cat(blocks)[start - first : stop - first]

    def _block(self, index: int) -> Tensor:
        """Steps index * BLOCK and on, [BLOCK, B, 2]. Of earlier blocks only the ends are kept."""
        while len(self._starts) <= index:
            self._starts.append(self._walk(len(self._starts) - 1)[-1])
        if self._latest is None or self._latest[0] != index:
            self._latest = index, self._walk(index)
        return self._latest[1]

    def _walk(self, index: int) -> Tensor:
        stream = philox.Stream(KIND_GAZE, step=index, sample_offset=self.sample_offset)
        words = philox.first_words(self.seed, stream, (self.batch, 2 * BLOCK))
        moves = philox.normal(words, torch.float64).mul_(math.sqrt(self.diffusion)).view(self.batch, BLOCK, 2)
        path, gaze = torch.empty_like(moves).transpose(0, 1), self._starts[index]
        for t in range(BLOCK):
            gaze = torch.clamp(gaze * (1 - self.harmonic) + moves[:, t], -self._limit, self._limit)
            path[t] = gaze
        return path

    def _frames(self, start: int, stop: int) -> Tensor:
        gaze = self.gaze(start, stop).to(self.images)[..., None, None]
        height, width = self.images.shape[-2:]
        x, y = _centred_grid(self.images, *self.window)
        return _sample(
            self.images, (width - 1) / 2 + (x + gaze[:, :, 0]), (height - 1) / 2 + (y + gaze[:, :, 1])
        )


def _checked(images: Inputs) -> Tensor:
    if isinstance(images, np.ndarray):
        images = as_tensor("images", images)
    dense("images", images)
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        found = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images: expected floating point [B, C, H, W], none of them 0, found {found}")
    return images


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name}: expected (height, width), found {value!r}")
    return whole(name, value[0]), whole(name, value[1])


def _centred_grid(like: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Pixel coordinates relative to the centre of a frame: x [1, W] and y [H, 1]."""
    x = torch.arange(width, dtype=like.dtype, device=like.device) - (width - 1) / 2
    y = torch.arange(height, dtype=like.dtype, device=like.device) - (height - 1) / 2
    return x.unsqueeze(0), y.unsqueeze(1)


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples [T, B, C h w] of images [B, C, H, W] at pixels that broadcast to [T, B, h, w]."""
    batch, _, height, width = images.shape
    x, y = x + torch.zeros_like(y), y + torch.zeros_like(x)  # broadcast
    steps = len(x)
    x, y = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1  # what grid_sample takes, without align_corners
    grid = torch.stack([x, y], dim=-1)
    grid = grid.expand(steps, batch, *grid.shape[2:]).flatten(0, 1)
    repeated = images.expand(steps, *images.shape).flatten(0, 1)
    sampled = F.grid_sample(repeated, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.view(steps, batch, -1)
