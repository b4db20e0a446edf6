"""Records that are sparse, and records that do not fit."""

from __future__ import annotations

import _thread
import dataclasses
import math
import threading
from typing import Any

import pytest
import torch

import ipvae_kernels as ik
from ipvae_kernels import memory
from ipvae_kernels.rollout import sparse

Problem = Any


@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("moving", [0, 11])
def test_sparse_counts_are_the_dense_ones(
    moving: int, every: int, gaussian: str, problem: Problem, backend: str, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    x, params = problem(moving=moving, dtype=dtype, gaussian=gaussian)
    monkeypatch.setattr(sparse, "_CHUNK_BYTES", 4 * 3 * 9 * 2)  # two steps
    how = {"record_every": every, "backend": backend}
    start = ik.infer(x[:1] if moving else x, params, 1, seed=4, backend=backend).state
    theirs = ik.infer(x, params, 11, state=start, record=("kl", "counts"), **how)
    ours = ik.infer(x, params, 11, state=start, record=iter(["sparse_counts", "kl"]), **how)
    assert list(ours.records) == ["sparse_counts", "kl"]
    rows = ours.records["sparse_counts"]
    assert rows.is_sparse
    assert rows.is_coalesced()
    assert torch.equal(rows.to_dense(), theirs.records["counts"])
    assert torch.equal(rows.indices(), rows.to_dense().to_sparse().indices())
    assert torch.equal(ours.records["kl"], theirs.records["kl"])
    assert torch.equal(ours.state.log_rate, theirs.state.log_rate)
    frames = x[:2] if moving else x
    both = ik.infer(
        frames, params, 2, state=start, record=("counts", "sparse_counts"), backend=backend
    ).records
    assert torch.equal(both["sparse_counts"].to_dense(), both["counts"])


def test_sparse_counts_of_a_decoder_and_of_prepared_parameters(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    decoder = torch.nn.Linear(9, 7)
    alone = dataclasses.replace(params, dictionary=None)
    for given, options in ((alone, {"decoder": decoder}), (ik.prepare(params), {})):
        records = [
            ik.infer(x, given, 4, seed=1, record=(name,), **options).records[name]
            for name in ("counts", "sparse_counts")
        ]
        assert torch.equal(records[0], records[1].to_dense())


def test_an_interrupt_keeps_sparse_counts(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    x, params = problem(50, 64, 512, dtype=torch.float32)
    monkeypatch.setattr(sparse, "_CHUNK_BYTES", 4 * 50 * 512 * 200)
    timer = threading.Timer(1.5, _thread.interrupt_main)
    timer.start()
    with pytest.raises(ik.Interrupted) as caught:
        ik.infer(x, params, 10**6, seed=1, record=("sparse_counts", "kl"))
    timer.cancel()
    state, records = caught.value.result
    assert 0 < state.step == caught.value.steps < 10**6
    assert len(records["sparse_counts"]) == len(records["kl"]) == state.step
    few = ik.infer(x, params, state.step, seed=1, record=("counts",))
    assert torch.equal(few.state.log_rate, state.log_rate)
    assert torch.equal(few.records["counts"], records["sparse_counts"].to_dense())


def test_an_interrupt_between_calls_keeps_sparse_counts(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = problem(dtype=torch.float32)
    monkeypatch.setattr(sparse, "_CHUNK_BYTES", 4 * 3 * 9)  # a step
    taken, calls = sparse._sparse, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return taken(*arguments)

    monkeypatch.setattr(sparse, "_sparse", interrupted)
    with pytest.raises(ik.Interrupted) as caught:
        ik.infer(x, params, 9, seed=1, record=("sparse_counts",))
    state, records = caught.value.result
    assert (caught.value.steps, state.step, len(records["sparse_counts"])) == (3, 3, 3)
    assert torch.equal(state.log_rate, ik.infer(x, params, 3, seed=1).state.log_rate)
    calls[:] = [1, 1, 1]
    with pytest.raises(KeyboardInterrupt) as first:
        ik.infer(x, params, 9, seed=1, record=("sparse_counts",))
    assert not isinstance(first.value, ik.Interrupted)


def test_bad_arguments_beside_sparse_counts_are_named(problem: Problem) -> None:
    x, params = problem(moving=5, dtype=torch.float32)
    for arguments, message in (
        ({"steps": 4}, "x: expected one frame per step, steps = 4, found 5 frames"),
        ({"steps": 6}, "x: expected one frame per step, steps = 6, found 5 frames"),
        ({"x": "frames"}, "x: expected a torch.Tensor"),
        ({"state": 3}, "state: expected a State or None, found int"),
        ({"n_inner": 0}, "n_inner: expected"),
    ):
        given = {"x": x, "params": params, "steps": 5, "record": ("sparse_counts",), **arguments}
        with pytest.raises((TypeError, ValueError), match=message):
            ik.infer(**given)


def test_compiled_graphs_refuse_sparse_counts(problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"'sparse_counts' is not served by torch\.compile and torch\.func"):
        torch.vmap(
            lambda x: ik.infer(x, params, 2, seed=1, record=("sparse_counts",)).records, randomness="same"
        )(torch.stack([x, x]))


def test_records_that_do_not_fit_are_refused_with_what_would(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = problem(2, 7, 100_000, dtype=torch.float32)
    monkeypatch.setattr(memory, "available", lambda device: 2**30)
    # 800,000 bytes a step.
    with pytest.raises(MemoryError) as caught:
        ik.infer(x, params, 2_000, seed=1, record=("counts",))
    said = str(caught.value)
    assert "counts of 2,000 steps take 1.49 GiB, 1 GiB are available" in said
    assert "1,342 recorded steps fit: steps=1,342, or record_every=2" in said
    assert "'sparse_counts' holds what is not 0" in said
    monkeypatch.setattr(memory, "available", lambda device: 300_000)
    with pytest.raises(MemoryError, match=r"0 recorded steps fit$"):
        ik.infer(x, params, 2_000, seed=1, record=("log_rate",))
    with pytest.raises(
        MemoryError, match=r"pack: two copies of the dictionary takes .* pack=False copies nothing"
    ):
        ik.prepare(problem(2, 300, 130_000, dtype=torch.float32)[1], pack=True)


def test_memory_is_what_the_system_leaves(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    left = memory.available(cpu)
    assert left is None or left > 2**20
    assert memory.available(torch.device("meta")) is None
    group = tmp_path / "memory"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.usage_in_bytes").write_text("900000\n")
    (group / "memory.stat").write_text("cache 7\ninactive_file 20000\nactive_file 3\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert memory.available(cpu) == 1_000_000 - 900_000 + 20_003
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert memory.available(cpu) == 499_999
    assert [memory.size(n) for n in (0, 999, 2**20, 3 * 2**40)] == ["0 bytes", "999 bytes", "1 MiB", "3 TiB"]


def test_an_estimate_says_bytes_and_seconds(problem: Problem) -> None:
    x, params = problem(4, 30, 600, dtype=torch.float32)
    found = ik.estimate(x, params, 10**6, record=("counts", "kl"), record_every=10, seed=1)
    assert found.bytes == 4 * 600 * 4 + 10**5 * (4 * 600 + 4) * 4
    assert found.fits == (found.available is None or found.available >= found.bytes)
    assert 0 < found.seconds < math.inf
    assert "GiB" in str(found) or "MiB" in str(found)
    # So many are all run, however slow the machine: what follows them is a guess.
    rows = ik.estimate(x, params, 256, record=("sparse_counts",), seed=1)
    events = ik.infer(x, params, 256, record=("sparse_counts",), seed=1).records["sparse_counts"]._nnz()
    assert rows.bytes == pytest.approx(28 * events + 4 * 600 * 4, rel=1e-3)
    moving = ik.estimate(x.expand(50, -1, -1), ik.prepare(params), 50)
    assert moving.bytes == 4 * 600 * 4
    with pytest.raises(ValueError, match=r"record_every: expected"):
        ik.estimate(x, params, 3, record_every=0)
    with pytest.raises(ValueError, match=r"x: expected one frame per step, steps = 49, found 50 frames"):
        ik.estimate(x.expand(50, -1, -1), params, 49)
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor"):
        ik.estimate("x", params, 49)
