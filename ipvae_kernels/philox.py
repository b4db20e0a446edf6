"""Counter-based random numbers: every word is a pure function of the seed and of what it is for.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The
layout of the counter and the maps from words to numbers are specified in ``docs/design/randomness.md``; this
file is that page in PyTorch. 32-bit words are held in int64 tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RNG_VERSION = 1

KIND_UPDATE = 0  # counts that drive an update
KIND_LOSS = 1  # the fresh counts of a step, for the loss
KIND_ALONE = 2  # stand-alone poisson_sample and poisson_rsample
DRAWS = {"update": KIND_UPDATE, "loss": KIND_LOSS, "alone": KIND_ALONE}
"""The draws that a user can ask for, by name."""
SATURATED = 8  # added to a kind: the saturated count of the same relaxed draw

BLOCKS = 2**20  # of one draw

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LARGEST = 1.0 - 2.0**-24


class Stream(NamedTuple):
    """What a draw is for: all of a Philox counter but the word index, and where a batch begins in it.

    Attributes:
        kind: 0..15, see the ``KIND_*`` constants.
        inner: inner iteration of an update, 0..255.
        step: global time step, 0..2^32-1.
        sample_offset: global index of the first row of the batch at hand.
        neuron_offset: global index of its first neuron, a multiple of 4: four neurons share a block of words.
    """

    kind: int = KIND_ALONE
    inner: int = 0
    step: int = 0
    sample_offset: int = 0
    neuron_offset: int = 0

    def saturated(self) -> Stream:
        """The stream of the saturated count that belongs to this relaxed draw."""
        return self._replace(kind=self.kind + SATURATED)

    @property
    def high_word(self) -> int:
        """Counter word 3 with the block left at 0."""
        return self.kind << 28 | self.inner << 20


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of 32-bit words; int64 wraps, so its 64 bits are exact."""
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = 10) -> list[Tensor]:
    """The Philox4x32 bijection.

    Args:
        counter: four int64 tensors of 32-bit words, of shapes that broadcast.
        key: two int64 tensors of 32-bit words.
        rounds: 10 everywhere in this package; 7 is the smallest that passes the authors' tests.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _blocks(seed: Tensor, stream: Stream, sample: Tensor, word0: Tensor, block: Tensor | int) -> list[Tensor]:
    """The four output lanes of counters (word0, sample, step, high word | block)."""
    key = (seed & _MASK, (seed >> 32) & _MASK)
    step = torch.full_like(word0, stream.step)
    high = torch.zeros_like(word0) + stream.high_word + block
    return philox4x32((word0, sample + stream.sample_offset, step, high), key)


def words(seed: Tensor, stream: Stream, sample: Tensor, neuron: Tensor, i: Tensor) -> Tensor:
    """Word ``i`` of the draw of each (sample, neuron): the definition, for any indices.

    Args:
        seed: int64, shape [].
        stream: what the draw is for.
        sample: int64 tensor, counted from ``stream.sample_offset``.
        neuron: int64 tensor, counted from ``stream.neuron_offset``; the shapes of it, of ``sample`` and of
            ``i`` broadcast.
        i: int64 tensor, which word of the draw.

    Returns:
        int64 words in 0..2^32-1, of the broadcast shape.
    """
    shape = (sample | neuron | i).shape
    sample, i = sample.expand(shape), i.expand(shape)
    neuron = neuron.expand(shape) + stream.neuron_offset
    first = i == 0
    word0 = torch.where(first, neuron >> 2, neuron)
    block = torch.where(first, 0, 1 + ((i - 1) >> 2))
    lane = torch.where(first, neuron & 3, (i - 1) & 3)
    lanes = torch.stack(_blocks(seed, stream, sample, word0, block), dim=-1)
    return lanes.gather(-1, lane.unsqueeze(-1)).squeeze(-1)


def first_words(seed: Tensor, stream: Stream, shape: Sequence[int]) -> Tensor:
    """Word 0 of every neuron of a batch, [B, K]; four neighbouring neurons share an evaluation."""
    batch, neurons = shape
    group = torch.arange((neurons + 3) // 4, device=seed.device).expand(batch, -1) + stream.neuron_offset // 4
    sample = torch.arange(batch, device=seed.device).unsqueeze(-1)
    lanes = torch.stack(_blocks(seed, stream, sample, group, 0), dim=-1)
    return lanes.reshape(batch, lanes.shape[1] * 4)[:, :neurons]


def own_words(seed: Tensor, stream: Stream, sample: Tensor, neuron: Tensor, block: int, count: int) -> Tensor:
    """Words 4 block - 3, ... of each (sample, neuron): those of ``count`` blocks from ``block`` on.

    ``sample`` and ``neuron`` are int64 [N], ``block`` >= 1; the words are int64 [N, 4 count].
    """
    blocks = torch.arange(block, block + count, device=seed.device)
    word0 = (neuron + stream.neuron_offset).unsqueeze(-1).expand(-1, count)
    lanes = torch.stack(_blocks(seed, stream, sample.unsqueeze(-1), word0, blocks), dim=-1)
    return lanes.reshape(len(neuron), 4 * count)


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform in the open interval (0, 1): at least 2^-33, at most 1 - 2^-24.

    Its complement is ``uniform(~word)``, with full relative precision.
    """
    return ((word & _MASK).to(dtype) + 0.5).mul(2.0**-32).clamp(max=_LARGEST)


def exponential(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard exponential, with full relative precision at both ends; small where the uniform is small."""
    value = uniform(word, dtype)
    return torch.where(value < 0.25, -torch.log1p(-value), -torch.log(uniform(~word, dtype)))


def normal(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normal by inversion, from the tail that is nearer."""
    value, complement = uniform(word, dtype), uniform(~word, dtype)
    tail = torch.special.ndtri(torch.minimum(value, complement))
    return torch.where(value < complement, tail, -tail)
