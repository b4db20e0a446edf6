"""The generator: published answers, a pure-Python evaluation, the ends of its uniform interval, laws."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scipy import stats

from ipvae_kernels import philox
from ipvae_kernels.philox import Stream

# Known answers published with Random123: rounds, counter, key, output.
KNOWN = """
7  00000000 00000000 00000000 00000000  00000000 00000000  5f6fb709 0d893f64 4f121f81 4f730a48
7  ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  5207ddc2 45165e59 4d8ee751 8c52f662
7  243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  4dfccaba 190a87f0 c47362ba b6b5242a
10 00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
10 ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
10 243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


def rows_of(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("row", rows_of(KNOWN), ids=lambda row: f"{row[0]} rounds of {row[1]}")
def test_known_answers(row: list[str]) -> None:
    rounds, *words = int(row[0]), *(torch.tensor(int(word, 16)) for word in row[1:])
    output = philox.philox4x32(words[:4], words[4:6], rounds)
    assert [hex(int(word)) for word in output] == [hex(int(word)) for word in words[6:]]


def test_known_answers_are_the_shared_ones(shared: Callable[[str], Path]) -> None:
    assert rows_of(shared("kat/philox4x32.txt").read_text()) == rows_of(KNOWN)


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    mask = 0xFFFFFFFF
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & mask, (a >> 32) ^ counter[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter


def python_word(seed: int, kind: int, inner: int, step: int, sample: int, neuron: int, i: int) -> int:
    """The table of docs/design/randomness.md."""
    block, lane = (0, neuron & 3) if i == 0 else (1 + ((i - 1) >> 2), (i - 1) & 3)
    first = neuron >> 2 if i == 0 else neuron
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    return python_philox([first, sample, step, kind << 28 | inner << 20 | block], key)[lane]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
def test_words_follow_the_documented_layout(seed: int) -> None:
    streams = [Stream(), Stream(0, 255, 2**32 - 1, 0), Stream(9, 3, 7, 2**32 - 8), Stream(1, 0, 2**31, 5)]
    streams.append(Stream(2, 0, 1, 6, neuron_offset=2**31 + 4))
    for stream in streams:
        for sample, neuron, i in [
            (0, 0, 0),
            (3, 5, 0),
            (7, 2**32 - 1, 0),
            (1, 6, 1),
            (2, 7, 4),
            (0, 8, 5),
            (4, 9, 2**22 - 4),
        ]:
            if neuron + stream.neuron_offset >= 2**32:
                continue
            word = philox.words(torch.tensor(seed), stream, *(torch.tensor(n) for n in (sample, neuron, i)))
            where = sample + stream.sample_offset, neuron + stream.neuron_offset
            expected = python_word(seed, stream.kind, stream.inner, stream.step, *where, i)
            assert int(word) == expected, (stream, sample, neuron, i)


@pytest.mark.parametrize("neurons", [1, 3, 4, 9])
def test_fast_paths_give_the_same_words(neurons: int) -> None:
    seed, stream = torch.tensor(11), Stream(1, 2, 3, 4, 8)
    sample, neuron = torch.arange(5)[:, None], torch.arange(neurons)
    first = philox.words(seed, stream, sample, neuron, torch.tensor(0))
    assert torch.equal(philox.first_words(seed, stream, (5, neurons)), first)
    rows = torch.tensor([4, 0, 2])
    own = philox.own_words(seed, stream, rows, rows % neurons, 2, 3)
    expected = philox.words(seed, stream, rows[:, None], (rows % neurons)[:, None], torch.arange(5, 17))
    assert torch.equal(own, expected)


def test_offsets_shift_rows_and_neurons() -> None:
    seed = torch.tensor(3)
    whole = philox.first_words(seed, Stream(step=2), (6, 5))
    part = philox.first_words(seed, Stream(step=2, sample_offset=2), (4, 5))
    assert torch.equal(whole[2:], part)
    part = philox.first_words(seed, Stream(step=2, neuron_offset=4), (6, 1))
    assert torch.equal(whole[:, 4:], part)


def test_every_field_of_the_index_matters() -> None:
    streams = [Stream(), Stream(kind=3), Stream(inner=1), Stream(step=1), Stream(sample_offset=1000)]
    streams.append(Stream().saturated())
    draws = [philox.first_words(torch.tensor(s), stream, (8, 8)) for stream in streams for s in (0, 1 << 32)]
    for a in range(len(draws)):
        for b in range(a):
            assert (draws[a] == draws[b]).sum() == 0


ENDS = torch.tensor([0, 1, 2, 2**8, 2**30, 2**31, 2**32 - 2**9, 2**32 - 2, 2**32 - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_of_the_uniform_interval(dtype: torch.dtype) -> None:
    value = philox.uniform(ENDS, dtype)
    assert value.dtype == dtype
    assert float(value[0]) == 2.0**-33
    assert float(value[-1]) == 1.0 - 2.0**-24
    assert bool(((value > 0) & (value < 1) & (1 - value > 0)).all())
    assert bool((value.diff() >= 0).all())
    complement = philox.uniform(~ENDS, dtype)
    assert float(complement[-1]) == 2.0**-33
    torch.testing.assert_close(value + complement, torch.ones_like(value), rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_keeps_its_digits_at_both_ends(dtype: torch.dtype) -> None:
    value = philox.exponential(ENDS, dtype)
    assert bool((torch.isfinite(value) & (value > 0)).all())
    exact = [
        -math.log1p(-(int(w) + 0.5) * 2.0**-32) if w < 2**31 else -math.log((2**32 - int(w) - 0.5) * 2.0**-32)
        for w in ENDS
    ]
    exact = torch.tensor(exact, dtype=torch.float64)
    exact[0] = -math.log1p(-(2.0**-33))
    torch.testing.assert_close(value.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_first_arrival_and_hard_count_agree() -> None:
    word = philox.first_words(torch.tensor(5), Stream(), (1000, 64))
    for rate in (1e-4, 0.01, 0.3, 1.0, 4.0):
        arrives = philox.exponential(word, torch.float64) < rate
        counts = philox.uniform(word, torch.float64) < -math.expm1(-rate)
        assert torch.equal(arrives, counts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_symmetric_and_finite_at_the_ends(dtype: torch.dtype) -> None:
    value = philox.normal(ENDS, dtype)
    assert bool(torch.isfinite(value).all())
    assert bool((value.diff() >= 0).all())
    assert torch.equal(philox.normal(~ENDS & 0xFFFFFFFF, dtype), -value)
    assert float(value[0]) == pytest.approx(stats.norm.ppf(2.0**-33), rel=1e-5)


@pytest.mark.parametrize(
    ("draw", "law"),
    [(philox.uniform, "uniform"), (philox.exponential, "expon"), (philox.normal, "norm")],
    ids=["uniform", "exponential", "normal"],
)
def test_laws(draw: Callable[[torch.Tensor, torch.dtype], torch.Tensor], law: str) -> None:
    word = philox.first_words(torch.tensor(17), Stream(), (500, 200))
    assert stats.kstest(draw(word, torch.float64).flatten().numpy(), law).pvalue > 1e-3
