"""Neurons shared by 2 and 4 gloo processes: spikes, records, losses and gradients are those of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import ipvae_kernels as ik

if not distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

from ipvae_kernels import distributed as sharded
from ipvae_kernels.distributed import fused
from ipvae_kernels.distributed.collectives import summed
from ipvae_kernels.distributed.turns import Turns
from ipvae_kernels.rollout.cpu import Exchange

B, M, K, T = 6, 12, 42, 4  # of 42 neurons the last process has fewer
RECORDS = ("log_rate", "counts", "reconstruction", "recon", "kl", "squared_error", "spikes", "zeros")
OWN = ("dictionary", "log_bias", "log_rate_init", "state_init")
PER_NEURON = ("log_rate", "counts", "kl_per_neuron")


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, M, generator=torch.Generator().manual_seed(0), dtype=dtype)


def poisson(dtype: torch.dtype = torch.float64) -> ik.PoissonParams:
    g = torch.Generator().manual_seed(1)
    made = [0.1 * torch.randn(M, K, generator=g), *(0.2 * torch.randn(n, generator=g) for n in (M, K))]
    return ik.PoissonParams(
        *(t.to(dtype) for t in made),
        torch.tensor(-1.0, dtype=dtype),
        0.5 * torch.randn(K, generator=g).to(dtype),
    )


def gaussian() -> ik.GaussianParams:
    p, g = poisson(), torch.Generator().manual_seed(2)
    start = 0.3 * torch.randn(2, K, generator=g, dtype=torch.float64)
    return ik.GaussianParams(
        p.dictionary, p.log_sigma, p.log_bias, torch.tensor([-1.0, -1.5]).double(), start, "relu"
    )


def leaves(params: Any) -> Any:
    found = {f.name: getattr(params, f.name) for f in fields(params)}
    grown = {n: v.clone().requires_grad_() for n, v in found.items() if isinstance(v, Tensor)}
    return replace(params, **grown)


def gradients(params: Any, loss: Tensor, x: Tensor) -> dict[str, Tensor]:
    named = {f.name: v for f in fields(params) if isinstance(v := getattr(params, f.name), Tensor)} | {"x": x}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


# Each: what a process finds with the ops, of the package alone or sharded.
Ops = Any


def inferred(ops: Ops, params: Any, x: Tensor, **options: Any) -> dict[str, Tensor]:
    result = ops.infer(x, params, T, seed=3, record=RECORDS, **options)
    return {"state": result.state.log_rate, **result.records}


def trained(ops: Ops, params: Any, x: Tensor, **options: Any) -> dict[str, Tensor]:
    params, x = leaves(params), x.clone().requires_grad_()
    own = sharded.shard(params) if ops is sharded else params
    result = ops.elbo(
        x, own, T, seed=3, beta=2.0, record=("counts", "kl_per_neuron"), estimator="fini2", **options
    )
    found = {"loss": result.loss, "recon": result.recon, "kl": result.kl, "state": result.state.log_rate}
    of = gradients(params, result.loss, x)
    return {n: v.detach() for n, v in {**found, **result.records}.items()} | {
        f"grad {n}": v for n, v in of.items()
    }


def part_of(params: Any, ops: Ops) -> Any:
    return sharded.shard(params) if ops is sharded else params


CASES: dict[str, Callable[[Ops], dict[str, Tensor]]] = {
    "infer": lambda ops: inferred(ops, part_of(poisson(), ops), inputs()),
    "infer, expected": lambda ops: inferred(ops, part_of(poisson(), ops), inputs(), drive="expected"),
    "infer, inner": lambda ops: inferred(ops, part_of(poisson(), ops), inputs(), n_inner=2),
    "infer, moving": lambda ops: inferred(
        ops, part_of(poisson(), ops), torch.stack([inputs() * t for t in range(T)])
    ),
    "infer, gaussian": lambda ops: inferred(ops, part_of(gaussian(), ops), inputs()),
    "elbo": lambda ops: trained(ops, poisson(), inputs()),
    "elbo, expected": lambda ops: trained(ops, poisson(), inputs(), drive="expected"),
    "elbo, truncated": lambda ops: trained(ops, poisson(), inputs(), truncate=2),
    "infer, half": lambda ops: inferred(ops, part_of(halved(), ops), inputs(torch.float32), backend="eager"),
    "elbo, half": lambda ops: trained(ops, halved(), inputs(torch.float32)),
    "elbo, gaussian": lambda ops: trained(ops, gaussian(), inputs()),
}


# Cases of the fused kernels: options, whether parameters are Gaussian, whether frames move.
SINGLE: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "poisson": ({}, False, False), "composed": ({"backend": "eager"}, False, False),
    "expected": ({"drive": "expected"}, False, False), "inner": ({"n_inner": 3}, False, False),
    "single draw": ({"single_draw": True}, False, True), "some steps": ({"record_every": 3}, False, True),
    "gaussian": ({}, True, False), "wide": ({}, False, False), "halves": ({"overlap": True}, False, True),
    "halves, gaussian": ({"overlap": True}, True, False),
}  # fmt: skip


def single(ops: Ops, name: str) -> dict[str, Tensor]:
    """In float32, continued from where the first call ended."""
    options, other, moving = SINGLE[name]
    threads = torch.get_num_threads()
    params = narrowed(gaussian()) if other else poisson(torch.float32)
    if name == "wide":  # several blocks of neurons, and two threads for them
        params = repeated(params, 100)
        torch.set_num_threads(2)
    x = inputs(torch.float32)
    frames = torch.stack([x * (t + 1) for t in range(T)]) if moving else x
    own = part_of(params, ops)
    if ops is ik:
        options = {name: value for name, value in options.items() if name != "overlap"}
    first = ops.infer(frames, own, T, seed=3, **options)
    result = ops.infer(frames, own, T, state=first.state, record=(n for n in RECORDS), **options)
    torch.set_num_threads(threads)
    return {"state": result.state.log_rate, **result.records}


# Cases of the fused loss; the first is composed, to be compared with.
LOSSES: dict[str, dict[str, Any]] = {
    "composed": {"backend": "eager"}, "composed, halves": {"backend": "eager", "overlap": True}, "fused": {},
    "halves": {"overlap": True}, "segments": {"checkpoint": 3, "overlap": True}, "moving": {}, "wide": {},
    "expected": {"drive": "expected"}, "inner": {"n_inner": 3, "overlap": True}, "truncated": {"truncate": 2},
    "gaussian": {"overlap": True},
}  # fmt: skip


def loss_of(ops: Ops, name: str) -> dict[str, Tensor]:
    """A loss in float32 and its gradients, by samples of unlike weights, and of a state that is used on."""
    options, threads = dict(LOSSES[name]), torch.get_num_threads()
    if ops is ik:
        options.pop("overlap", None)
    params = narrowed(gaussian()) if name == "gaussian" else poisson(torch.float32)
    if name == "wide":
        params = repeated(params, 30)
        torch.set_num_threads(2)
    x = inputs(torch.float32)
    if name == "moving":
        x = torch.stack([x * (t + 1) for t in range(T)])
    params, x = leaves(params), x.clone().requires_grad_()
    own = part_of(params, ops)
    result = ops.elbo(
        x, own, T, seed=3, beta=2.0, estimator="sigmoid", temperature=0.5, n_arrivals=6, **options
    )
    weights = torch.linspace(0.5, 2.0, B)
    state = result.state.log_rate.square().sum()
    loss = result.loss + (result.recon * weights + result.kl * weights.flip(0)).sum()
    if ops is sharded:  # every process has its neurons' part
        state = summed(state, distributed.group.WORLD)
    found = {"recon": result.recon, "kl": result.kl, "state": result.state.log_rate, "loss": loss + state}
    of = gradients(params, loss + state, x)
    torch.set_num_threads(threads)
    return {n: v.detach() for n, v in found.items()} | {f"grad {n}": v for n, v in of.items()}


def halved() -> ik.PoissonParams:
    """Parameters in bfloat16, with which calls compute in float32."""
    return ik.PoissonParams(*(value.bfloat16() for value in vars(poisson()).values()))


def repeated(params: ik.PoissonParams, times: int) -> ik.PoissonParams:
    """Many neurons alike, of features so much smaller."""
    assert params.dictionary is not None
    return replace(
        params, dictionary=params.dictionary.repeat(1, times) / times, log_bias=params.log_bias.repeat(times),
        log_rate_init=params.log_rate_init.repeat(times),
    )  # fmt: skip


def narrowed(params: Any) -> Any:
    found = {f.name: getattr(params, f.name) for f in fields(params)}
    return replace(params, **{n: v.float() for n, v in found.items() if isinstance(v, Tensor)})


def refusals(rank: int) -> dict[str, str]:
    """What each process is told where processes call differently, or wrongly."""
    part = sharded.shard(poisson())
    calls: dict[str, Callable[[], Any]] = {
        "x": lambda: sharded.infer(inputs() + rank, part, T, seed=3),
        "steps": lambda: sharded.infer(inputs(), part, T + rank, seed=3),
        "seed": lambda: sharded.infer(inputs(), part, T, seed=rank),
        "kl": lambda: sharded.elbo(inputs(), part, T, seed=3, kl=("exact", "released")[rank % 2]),
        "decoder": lambda: sharded.infer(inputs(), part, T, decoder=torch.nn.Linear(K, M)),
        "params": lambda: sharded.infer(
            inputs(), replace(part, log_bias=part.log_bias[1:], dictionary=part.dictionary[:, 1:],
                              log_rate_init=part.log_rate_init[1:]), T, seed=3,
        ),
        "few": lambda: sharded.shard(replace(poisson(), log_bias=torch.zeros(3))),
        "group": lambda: sharded.infer(inputs(), part, T, group="all"),  # type: ignore[arg-type]
        "overlap": lambda: sharded.infer(inputs(), part, T, overlap=rank == 0),
        "a flag": lambda: sharded.infer(inputs(), part, T, overlap=1),  # type: ignore[arg-type]
        "seeds": lambda: sharded.infer(inputs(), part, T, seed=None if rank else 3),
        # What is wrong in one process alone, which the others must not wait for.
        "nan": lambda: sharded.elbo(
            inputs(), replace(part, dictionary=part.dictionary / (rank != 0)), T, seed=3
        ),
        "type": lambda: sharded.infer(
            inputs(), part if rank != 1 else replace(part, dictionary=part.dictionary.float()), T,
        ),
        "shape": lambda: sharded.infer(inputs(), replace(part, dictionary=part.dictionary[: M - rank]), T),
        "mine": lambda: sharded.infer(inputs(), part, T, seed="one" if rank == 0 else 3),  # type: ignore[arg-type]
        "order": lambda: sharded.shard(replace(poisson(), log_bias=poisson().log_bias.roll(rank))),
        "log_bias": lambda: sharded.shard(replace(poisson(), log_bias=torch.full((K,), float(rank)))),
    }  # fmt: skip
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            found[name] = str(error)
    return found


def turns(rank: int) -> dict[str, Any]:
    """Two halves that add up what they count; and where one of them fails, in the middle of the other."""

    def half(me: int, fails: int | None, order: list[int]) -> Callable[[Exchange], Tensor]:
        def run(exchange: Exchange) -> Tensor:
            total = torch.zeros(2)
            for i in range(4):
                order.append(me)
                if me == fails and i == 2:
                    raise RuntimeError(f"half {me}")
                sums = torch.tensor([float(i), float(rank)])
                exchange(sums)
                total += sums
            return total

        return run

    found: dict[str, Any] = {"order": []}
    group = distributed.group.WORLD
    found["sums"] = Turns(group).both(half(0, None, found["order"]), half(1, None, found["order"]))
    for fails in (0, 1):
        try:
            Turns(group).both(half(0, fails, []), half(1, fails, []))
        except RuntimeError as error:
            found[f"half {fails}"] = str(error)
    return found


def loops() -> list[int]:
    """How Linux schedules the threads of gloo's event loops, after a sharded call."""
    tasks = Path("/proc/self/task").glob("*/comm")
    return [os.sched_getscheduler(int(t.parent.name)) for t in tasks if t.read_text() == "gloo_tcp_loop\n"]


def distributed_tensors(world: int) -> dict[str, Tensor]:
    """The same by DTensor over a mesh of data and model, of which the second has all processes."""
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("data", "model"))
    whole = poisson()
    own = sharded.shard(whole, mesh)
    even = replace(
        whole, dictionary=whole.dictionary[:, : 4 * world], log_bias=whole.log_bias[: 4 * world],
        log_rate_init=whole.log_rate_init[: 4 * world],
    )  # fmt: skip
    model = mesh["model"]
    spread = replace(
        even, dictionary=distribute_tensor(even.dictionary, model, [Shard(1)]),
        log_bias=distribute_tensor(even.log_bias, model, [Shard(0)]),
        log_rate_init=distribute_tensor(even.log_rate_init, model, [Shard(0)]),
    )  # fmt: skip
    result = sharded.infer(inputs(), spread, T, seed=3, record=("counts", "kl"))
    assert isinstance(result.state.log_rate, DTensor)
    more = sharded.infer(inputs(), spread, T, state=result.state)
    alone = ik.infer(inputs(), even, 2 * T, seed=3)
    torch.testing.assert_close(more.state.log_rate.full_tensor(), alone.state.log_rate)
    by_mesh = sharded.infer(inputs(), own, T, seed=3, group=mesh)
    return {
        "counts": result.records["counts"].full_tensor(),
        "kl": result.records["kl"],
        "mesh": by_mesh.state.log_rate,
    }


def a_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {name: case(sharded) for name, case in CASES.items()}
    found["float32"] = {name: single(sharded, name) for name in SINGLE}
    found["losses"] = {name: loss_of(sharded, name) for name in LOSSES}
    found["loops"] = loops()
    found["refused"] = refusals(rank)
    found["dtensor"] = distributed_tensors(world)
    found["turns"] = turns(rank)
    torch.manual_seed(rank)
    part = sharded.shard(poisson())
    first = sharded.infer(inputs(), part, T)
    found["drawn"] = int(first.state.seed)
    found["continued"] = sharded.infer(inputs(), part, T, state=first.state).state.log_rate
    found["at once"] = sharded.infer(inputs(), part, 2 * T, seed=found["drawn"]).state.log_rate
    torch.save(found, f"{folder}/{rank}.pt")
    # Where a mesh was used torch 2.13 aborts half of the processes that end while others do not.
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request: pytest.FixtureRequest, run_ranks: Callable[[str, int], list[Any]]) -> list[dict[str, Any]]:
    """What each of 1, 2 and 4 processes found."""
    return run_ranks(__file__, request.param)


@pytest.mark.parametrize("name", CASES)
def test_processes_find_what_one_finds(name: str, ranks: list[dict[str, Any]]) -> None:
    """In float64, where no draw of these lies within rounding of a threshold: the same spikes everywhere."""
    expected = CASES[name](ik)
    for key, value in expected.items():
        parts = [found[name][key] for found in ranks]
        if key in ("state", *PER_NEURON):
            parts = [torch.cat(parts, -1)]
        elif key.removeprefix("grad ") in OWN:  # each has those of its columns, and 0 elsewhere
            parts = [torch.stack(parts).sum(0)]
        for part in parts:
            close = {"rtol": 1e-2, "atol": 1e-2} if "half" in name else {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(part, value, **close, msg=lambda text, k=key: f"{k}: {text}")


@pytest.mark.parametrize("name", SINGLE)
def test_fused_inference_is_that_of_one_process_but_for_a_counted_share(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    """In float32 the order of a sum may move a draw across a threshold and what follows: under 1 %."""
    expected = single(ik, name)
    for key, value in expected.items():
        parts = [found["float32"][name][key] for found in ranks]
        if key in ("state", *PER_NEURON):
            parts = [torch.cat(parts, -1)]
        for part in parts:
            wrong = (part - value).abs() > 1e-3 * (1.0 + value.abs())
            assert float(wrong.double().mean()) < (0.01 if key in ("state", *PER_NEURON) else 0.1), key
    if name == "poisson":
        assert expected["counts"].sum() > 100


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradients_are_those_of_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    """In float32, where no draw of these lies within rounding of a threshold; by the seams of the kernels."""
    expected = loss_of(ik, name)
    for key, value in expected.items():
        parts = [found["losses"][name][key] for found in ranks]
        if key == "state":
            parts = [torch.cat(parts, -1)]
        elif key.removeprefix("grad ") in OWN:
            parts = [torch.stack(parts).sum(0)]
        for part in parts:
            error = (part - value).abs().max() / value.abs().max()
            assert float(error) < 5e-6, key


def test_fused_calls_serve_where_the_kernels_are() -> None:
    on_cpu = ik.backends()["cpu"] == "available"
    x = inputs(torch.float32)
    assert bool(fused.rows_served(x, {"record": ("kl",)}, loss=False)) == on_cpu
    assert bool(fused.rows_served(x, {}, loss=True)) == on_cpu
    assert not fused.rows_served(x, {"record": ("sparse_counts",)}, loss=False)
    assert not fused.rows_served(x, {"record": ("counts",)}, loss=True)
    assert not fused.rows_served(x, {"estimator": "gumbel"}, loss=True)
    assert not fused.rows_served(x, {"record": (), "backend": "eager"}, loss=False)
    assert not fused.rows_served(inputs(), {"record": ()}, loss=False)


def test_halves_take_turns_and_end_together(ranks: list[dict[str, Any]]) -> None:
    """One sum after the other, so that their order is one everywhere; an error of either is the call's."""
    world = len(ranks)
    for found in ranks:
        assert found["turns"]["order"] == 4 * [0, 1]
        for sums in found["turns"]["sums"]:
            assert sums.tolist() == [6.0 * world, 4.0 * sum(range(world))]
        assert [found["turns"][f"half {fails}"] for fails in (0, 1)] == ["half 0", "half 1"]


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH is Linux's")
def test_loops_of_gloo_take_no_cpu_from_others(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert set(found["loops"]) == {os.SCHED_BATCH}


def test_a_seed_is_drawn_for_all_and_sequences_continue(ranks: list[dict[str, Any]]) -> None:
    assert len({found["drawn"] for found in ranks}) == 1
    for found in ranks:
        assert torch.equal(found["continued"], found["at once"])


def test_distributed_tensors(ranks: list[dict[str, Any]]) -> None:
    neurons = 4 * len(ranks)
    whole = poisson()
    even = replace(
        whole, dictionary=whole.dictionary[:, :neurons], log_bias=whole.log_bias[:neurons],
        log_rate_init=whole.log_rate_init[:neurons],
    )  # fmt: skip
    expected = ik.infer(inputs(), even, T, seed=3, record=("counts", "kl"))
    for found in ranks:
        torch.testing.assert_close(found["dtensor"]["counts"], expected.records["counts"])
        torch.testing.assert_close(found["dtensor"]["kl"], expected.records["kl"])
    state = torch.cat([found["dtensor"]["mesh"] for found in ranks], -1)
    torch.testing.assert_close(state, ik.infer(inputs(), whole, T, seed=3).state.log_rate)


def test_every_process_says_what_differs(ranks: list[dict[str, Any]]) -> None:
    """Nothing hangs, and nothing is computed of halves that do not belong together."""
    for found in ranks:
        refused = found["refused"]
        if len(ranks) > 1:
            for name in ("x", "steps", "seed", "kl"):
                assert refused[name].startswith(f"{name}: expected the same in all processes"), name
            assert refused["params"].startswith("params: expected a multiple of 4 neurons")
            assert refused["log_bias"].startswith("params.log_bias: expected the same in all processes")
            assert refused["overlap"].startswith("overlap: expected the same in all processes")
            assert refused["seeds"].startswith(
                "seed: expected the same in all processes of the group, found [3"
            )
            assert refused["order"].startswith("params.log_bias: expected the same in all processes")
            assert refused["few"].startswith("params: expected at least 4 neurons for each of")
        assert refused["a flag"].startswith("overlap: expected")
        assert refused["decoder"].startswith("decoder: not an option of a sharded call")
        assert refused["group"].startswith("group: expected a ProcessGroup, a DeviceMesh or None")


def test_what_is_wrong_in_one_process_ends_the_call_in_all(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        refused = found["refused"]
        mine = "" if rank == 0 else "process 0 of the group: "
        assert refused["nan"].startswith(f"{mine}params.dictionary: expected finite values"), refused["nan"]
        assert refused["mine"].startswith(f"{mine}seed: expected an int"), refused["mine"]
        if len(ranks) > 1:
            theirs = "" if rank == 1 else "process 1 of the group: "
            assert refused["type"].startswith(f"{theirs}x: expected dtype"), refused["type"]
            other = "" if rank else "process 1 of the group: "
            assert refused["shape"].startswith(f"{other}x: expected last dimension M = "), refused["shape"]


def test_without_a_group_the_error_says_so() -> None:
    with pytest.raises(ValueError, match=r"group: expected torch\.distributed to be initialised"):
        sharded.infer(inputs(), poisson(), T)


if __name__ == "__main__":
    a_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
