"""Philox4x32-10 with the project's counter layout (``docs/design/randomness.md``), which is not Triton's own.

Tiles are [R, N]: samples by neurons. A stream travels as five values: the key k0, k1 and the counter words
sample (uint32 [R, 1]), step and high (kind and inner iteration), scalars.
"""

import triton
import triton.language as tl

from .math import minus_log1m

BLOCKS = tl.constexpr(2**20)  # of one draw


@triton.jit
def philox(c0, c1, c2, c3, k0, k1, ROUNDS: tl.constexpr = 10):
    """The bijection on four uint32 words; 7 rounds serve the known answers alone."""
    for _ in tl.static_range(ROUNDS):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def load_key(seed_ptr):
    """The key from a seed on the device, int64 []; read at run time, so graphs replay with new noise."""
    seed = tl.load(seed_ptr)
    return seed.to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def first_words(k0, k1, sample, step, high, first, N: tl.constexpr):
    """Word 0 of the neurons first .. first + N - 1, [R, N]; ``first`` and N are multiples of 4.

    Four neighbouring neurons share one evaluation: they are one 16-byte access of a thread.
    """
    group = (first // 4 + tl.arange(0, N // 4)).to(tl.uint32)[None, :]
    zero = (group ^ group) ^ (sample ^ sample)
    a, b, c, d = philox(zero + group, zero + sample, zero + step, zero + high, k0, k1)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def own_words(k0, k1, sample, step, high, neuron, block):
    """Words 4 block - 3 .. 4 block of every neuron (uint32 [1, N]), four tiles [R, N]; block = 1, 2, ..."""
    zero = (neuron ^ neuron) ^ (sample ^ sample)
    return philox(zero + neuron, zero + sample, zero + step, zero + (high | block.to(tl.uint32)), k0, k1)


@triton.jit
def uniform(word):
    """Uniform in the open interval (0, 1)."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.32830644e-10, 0.99999994)


@triton.jit
def complement(word):
    """The word of one minus the uniform; ``~`` fails in the interpreter of Triton before 3.9."""
    return word ^ 0xFFFFFFFF


@triton.jit
def exponential(word):
    """Standard exponential; small where the uniform is small."""
    return minus_log1m(uniform(word), uniform(complement(word)))
