"""One declaration of a rollout's options: configuration, schemas, C struct and public functions agree."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels.backend import compiled
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.problem import FLOATS, OTHERS, Inputs, Trajectory, Upstream, constants, taken

# Of the fields: what another thing than an argument of the same name says.
CELL = {"cell", "clamp_xi", "clamp_dxi"}  # the parameters' type, and pairs of clamps
STATE = {"step"}
DRAWN = {"estimator", "temperature", "n_arrivals"}  # infer draws hard counts
IN_C = {"steps": "n_steps", "beta_inner": "leak", "drive": "expected"}


def test_schemas_have_every_field_of_the_constants() -> None:
    assert set(FLOATS) | set(OTHERS) == set(RolloutConfig._fields)
    for name, parts in {
        "infer": (Inputs,), "elbo": (Inputs,), "elbo_backward": (Upstream, Inputs, Trajectory)
    }.items():  # fmt: skip
        op = getattr(torch.ops.ipvae_kernels, name).default
        names = [argument.name for argument in op._schema.arguments]
        tensors = [field for part in parts for field in part._fields]
        expected = [*tensors, "seed", "floats", *OTHERS, "mapped"]
        assert names[: len(expected)] == expected


def test_the_struct_has_every_field_of_the_constants() -> None:
    if compiled.reason() is not None:
        pytest.skip(str(compiled.reason()))
    args = compiled.load().RolloutArgs()
    for name in set(RolloutConfig._fields) - {"matmul_precision"}:  # on tensor cores, by Triton alone
        assert hasattr(args, IN_C.get(name, name)), name


@pytest.mark.parametrize(("function", "without"), [(ik.infer, DRAWN), (ik.elbo, set())])
def test_public_functions_have_every_field_of_the_constants(function: object, without: set[str]) -> None:
    assert set(RolloutConfig._fields) - CELL - STATE - without <= set(signature(function).parameters)  # type: ignore[arg-type]


def test_arguments_are_taken_apart_as_they_were_put_together() -> None:
    cfg = RolloutConfig(3, n_inner=2, beta_inner=0.5, clamp_u=4.0, estimator="cubic", n_arrivals=7, step=5)
    seed, tensors = torch.tensor(4), Inputs(*torch.zeros(6).unbind())
    inputs, found_seed, found, rest = taken((*tensors, *constants(seed, cfg), "counts", 2), Inputs)
    assert isinstance(inputs, Inputs)
    assert all(a is b for a, b in zip(inputs, tensors, strict=True))
    assert (found_seed, found, rest) == (seed, cfg, ("counts", 2))
