"""Wide dictionaries, which the CPU reads as they are: bits of packed ones, half the bytes, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ipvae_kernels as ik

Problem = Any
RECORDS = ("log_rate", "counts", "reconstruction", "recon", "kl", "squared_error", "spikes", "zeros")


def assert_same(ours: ik.InferResult, theirs: ik.InferResult) -> None:
    torch.testing.assert_close(ours.state.log_rate, theirs.state.log_rate, rtol=0, atol=0)
    for name in theirs.records:
        torch.testing.assert_close(ours.records[name], theirs.records[name], rtol=0, atol=0)


# Neurons and pixels beside whole vectors, panels and blocks; rows of one tile and of several.
SIZES = [(1, 7, 1025), (3, 70, 2500), (9, 64, 1024), (33, 37, 1100), (64, 9, 1030), (131, 5, 1030)]


@pytest.mark.parametrize("gaussian", ["", "identity"])
@pytest.mark.parametrize(("batch", "pixels", "neurons"), SIZES)
def test_a_dictionary_that_is_read_gives_the_bits_of_a_packed_one(
    batch: int, pixels: int, neurons: int, gaussian: str, instruction_set: str, problem: Problem
) -> None:
    x, params = problem(batch, pixels, neurons, dtype=torch.float32, gaussian=gaussian)
    packed, read = (ik.prepare(params, pack=pack) for pack in (True, False))
    assert read.bytes < packed.bytes / 8
    if instruction_set == "amx":
        packed = ik.prepare(params, pack=False)  # digits have other roundings; what reads is not AMX
    for options in ({}, {"n_inner": 2}, {"single_draw": True}):
        results = [ik.infer(x, given, 3, seed=2, record=RECORDS, **options) for given in (packed, read)]
        assert_same(*results)


@pytest.mark.parametrize("log_rate", [-6.0, -3.0, 1.0])
def test_few_spikes_are_gathered_and_many_turned_to_the_same_bits(
    log_rate: float, instruction_set: str, problem: Problem
) -> None:
    x, params = problem(5, 70, 1100, dtype=torch.float32)
    params = dataclasses.replace(params, log_rate_init=params.log_rate_init * 0.1 + log_rate)
    read = ik.prepare(params, pack=False)
    theirs = ik.infer(x, read if instruction_set == "amx" else ik.prepare(params, pack=True), 2, seed=1)
    torch.set_num_threads(1)
    assert_same(ik.infer(x, read, 2, seed=1), theirs)
    halves = [
        ik.infer(part, read, 2, seed=1, sample_offset=offset).state.log_rate
        for part, offset in ((x[:2], 0), (x[2:], 2))
    ]
    assert torch.equal(torch.cat(halves), theirs.state.log_rate)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_bfloat16_is_its_numbers_in_float32(backend: str, instruction_set: str, problem: Problem) -> None:
    x, params = problem(4, 70, 2500, dtype=torch.float32)
    half = dataclasses.replace(params, dictionary=params.dictionary.bfloat16())
    wide = dataclasses.replace(params, dictionary=half.dictionary.float())
    ours, theirs = (
        ik.infer(x, ik.prepare(given, pack=False), 4, seed=3, record=RECORDS, backend=backend)
        for given in (half, wide)
    )
    assert_same(ours, theirs)


def test_what_bfloat16_does_not_serve_is_named(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    half = dataclasses.replace(params, dictionary=params.dictionary.bfloat16())
    with pytest.raises(ValueError, match="pack: expected False or None for a bfloat16 dictionary"):
        ik.prepare(half, pack=True)
    with pytest.raises(TypeError, match=r"params\.dictionary: expected dtype"):
        ik.infer(x, half, 2)
    with pytest.raises(TypeError, match=r"params\.dictionary: expected dtype"):
        ik.elbo(x, ik.prepare(half), 2)
    with pytest.raises(TypeError, match=r"params\.log_bias: expected dtype"):
        ik.prepare(dataclasses.replace(half, log_bias=half.log_bias.bfloat16()))
    with pytest.raises(ValueError, match=r"params.dictionary: expected shape \[M, K\]"):
        ik.prepare(dataclasses.replace(half, dictionary=half.dictionary[0]))
    with pytest.raises(ValueError, match=r"params.dictionary: expected finite values"):
        ik.prepare(dataclasses.replace(half, dictionary=half.dictionary * float("inf")))
    half_of_double = dataclasses.replace(problem()[1], dictionary=half.dictionary)
    ready = ik.prepare(half_of_double)
    assert ik.infer(x.double(), ready, 2, seed=1).state.log_rate.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_read_where_it_lies(dtype: torch.dtype, tmp_path: Path, problem: Problem) -> None:
    x, params = problem(2, 30, 3000, dtype=torch.float32)
    path = tmp_path / "dictionary.safetensors"
    save_file({"dictionary": params.dictionary.to(dtype)}, path)
    with safe_open(path, framework="pt") as file:
        mapped = dataclasses.replace(params, dictionary=file.get_tensor("dictionary"))
    ready = ik.prepare(mapped, pack=False)
    assert ready.inputs.dictionary.data_ptr() == mapped.dictionary.data_ptr()
    same = dataclasses.replace(params, dictionary=params.dictionary.to(dtype).float())
    assert_same(
        ik.infer(x, ready, 3, seed=1, record=("counts",)),
        ik.infer(x, ik.prepare(same, pack=False), 3, seed=1, record=("counts",)),
    )


def test_nothing_wide_is_copied(problem: Problem) -> None:
    _, params = problem(1, 64, 270_000, dtype=torch.float32)  # more than AMX would pack
    ready = ik.prepare(params)
    assert ready.bytes < 2**21
    assert ik.prepare(problem(1, 64, 512, dtype=torch.float32)[1]).bytes > 2 * 4 * 64 * 512


def test_gradients_of_many_rows_at_a_time_are_those_of_few(instruction_set: str, problem: Problem) -> None:
    """From 8 MiB on the backward takes 64 rows at a time; so many in two calls, each row by itself here."""
    x, params = problem(67, 70, 30_100, dtype=torch.float32)

    def gradients(part: slice) -> list[torch.Tensor]:
        tensors = [t.detach().clone().requires_grad_() for t in vars(params).values()]
        rows = x[part].clone().requires_grad_()
        options = {
            "seed": 1,
            "sample_offset": part.start,
            "estimator": "fini2",
            "n_inner": 2,
            "checkpoint": 2,
        }
        result = ik.elbo(rows, ik.PoissonParams(*tensors), 2, **options)
        return list(torch.autograd.grad(result.recon.sum() + result.kl.sum(), [rows, *tensors]))

    of_rows, *whole = gradients(slice(0, 67))
    parts = [gradients(slice(first, min(first + 9, 67))) for first in range(0, 67, 9)]
    joined = torch.cat([part[0] for part in parts])
    if instruction_set == "amx":  # units of its integers are of a call's rows
        assert float((of_rows - joined).abs().max() / joined.abs().max()) < 1e-5
    else:
        assert torch.equal(of_rows, joined)
    for i, value in enumerate(whole):
        total = torch.stack([part[i + 1] for part in parts]).sum(0)
        assert float((value - total).abs().max() / total.abs().max()) < 1e-5
