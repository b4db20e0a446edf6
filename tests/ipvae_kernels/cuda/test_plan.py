"""How rollouts are laid out on a GPU: the plan, which needs none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

BLOCK, CLUSTER, GRID = 1, 2, 3
DEVICES = {
    "H100": {},
    "A100": {"sms": 108, "shared": 166_912, "max_cluster": 1},
    "small": {"sms": 20, "shared": 101_376, "max_cluster": 1},
}
SIZES = [(1, 1, 1), (1, 512, 256), (200, 512, 256), (100, 512, 784), (7, 10**6, 4096), (10**6, 512, 256)]


def _args(module: ModuleType, batch: int, neurons: int, pixels: int, cell: int = 0, n_inner: int = 1) -> Any:
    args = module.RolloutArgs()
    args.n_rows, args.n_latents, args.n_inputs, args.cell, args.n_inner = (
        batch,
        neurons,
        pixels,
        cell,
        n_inner,
    )
    return args


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("cell", [0, 1], ids=["poisson", "gaussian"])
def test_every_size_has_a_plan(
    cell: int,
    backward: bool,
    size: tuple[int, int, int],
    device: str,
    emulated_module: ModuleType,
    limits: Callable[..., Any],
) -> None:
    batch, neurons, pixels = size
    of_device = limits(**DEVICES[device])
    plan = emulated_module.cuda_plan(_args(emulated_module, *size, cell=cell), backward, of_device, 0, 0, 0)
    assert plan.tiles * plan.rows >= batch > (plan.tiles - 1) * plan.rows
    assert plan.slice * plan.team >= neurons
    assert plan.inputs >= pixels
    assert plan.chunk * plan.team >= pixels
    assert plan.slice % 32 == plan.inputs % 32 == 0
    assert plan.shared_bytes <= of_device.shared
    assert 1 <= plan.teams <= plan.tiles
    if plan.kind == GRID:
        assert plan.teams * plan.team <= of_device.sms  # all run at once
    if plan.kind == CLUSTER:
        assert plan.team <= of_device.max_cluster
    if plan.kind == BLOCK:
        assert plan.team == 1
    if plan.resident:
        assert plan.shared_bytes >= 4 * plan.inputs * plan.slice


def test_the_paper_sizes_stay_on_chip(emulated_module: ModuleType, limits: Callable[..., Any]) -> None:
    for size in [(200, 512, 256), (100, 512, 784), (1, 512, 256)]:
        for backward in (False, True):
            args = _args(emulated_module, *size)
            plan = emulated_module.cuda_plan(args, backward, limits(), 0, 0, 0)
            assert (plan.kind, plan.resident) == (CLUSTER, True)
            assert plan.tiles * plan.team <= 132  # one wave


def test_workspaces_are_counted_in_64_bits(emulated_module: ModuleType, limits: Callable[..., Any]) -> None:
    args = _args(emulated_module, 16, 10**9, 4096)
    plan = emulated_module.cuda_plan(args, True, limits(), 0, 0, 0)
    assert plan.workspace_bytes > 2**36


def test_what_a_device_cannot_do_is_refused(emulated_module: ModuleType, limits: Callable[..., Any]) -> None:
    args = _args(emulated_module, 8, 512, 256)
    with pytest.raises(ValueError, match="no team of kind 2 with 0 blocks"):
        emulated_module.cuda_plan(args, False, limits(max_cluster=1), CLUSTER, 0, 0)
    with pytest.raises(ValueError, match="no team of kind 3 with 500 blocks"):
        emulated_module.cuda_plan(args, False, limits(), GRID, 500, 0)
    with pytest.raises(ValueError, match="limits of a device"):
        emulated_module.cuda_plan(args, False, emulated_module.DeviceLimits(), 0, 0, 0)
