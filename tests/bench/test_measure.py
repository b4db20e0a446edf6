"""Contestants agree, those that do not get no time, and rows say what they must."""

import contextlib
import dataclasses
import functools
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from ipvae.experiments import baseline as plain
from ipvae.experiments import turns
from ipvae_bench import check, measure, memory, roofline
from ipvae_bench.cases import CASES
from ipvae_bench.contestants import baseline, names, prepare
from ipvae_bench.problem import Problem, Settings, Unavailable, make

import ipvae_kernels

PEAKS = roofline.Peaks(flops=1e11, bytes=1e10)
ROLLOUTS = ("quick-infer", "quick-train-sigmoid-0.1", "quick-train-cubic-0.1", "quick-train-fini2")


@pytest.mark.parametrize("case", ROLLOUTS)
@pytest.mark.parametrize("contestant", ["cpu", "eager", "baseline"])
def test_contestants_agree(settings: Settings, case: str, contestant: str) -> None:
    prepared = prepare(contestant, make(CASES[case], settings), settings)
    assert (found := check.run(prepared, contestant, "cpu"))["ok"], found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", [*ROLLOUTS, "quick-sample-hard", "quick-sample-fini2"])
@pytest.mark.parametrize("contestant", ["cuda", "triton", "baseline", "graphed", "jax_scan"])
def test_contestants_agree_on_a_gpu(settings: Settings, case: str, contestant: str) -> None:
    settings = dataclasses.replace(settings, device="cuda")
    try:
        prepared = prepare(contestant, make(CASES[case], settings), settings)
    except Unavailable as reason:
        pytest.skip(str(reason))
    for _ in range(2):  # a graph must still have its memory when it is replayed again
        assert (found := check.run(prepared, contestant, "cuda"))["ok"], found


@pytest.mark.parametrize(
    "case", ["quick-infer", "quick-train-fini2", "quick-sample-hard", "quick-sample-fini2"]
)
def test_jax_agrees(settings: Settings, case: str) -> None:
    pytest.importorskip("jax")
    prepared = prepare("jax_scan", make(CASES[case], settings), settings)
    assert prepared.compile_seconds is not None
    assert (found := check.run(prepared, "jax_scan", "cpu"))["ok"], found


@pytest.mark.parametrize("case", ["quick-infer", "quick-train-sigmoid-0.1", "quick-sample-hard"])
@pytest.mark.parametrize("contestant", ["authors", "accelerated"])
def test_the_authors_code_agrees(
    settings: Settings, shared: Callable[[str], Path], case: str, contestant: str
) -> None:
    with_them = dataclasses.replace(settings, reference=shared("IterativeVAE"))
    try:
        prepared = prepare(contestant, make(CASES[case], with_them), with_them)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert (found := check.run(prepared, contestant, "cpu"))["ok"], found


def test_wrong_counts_get_no_time(settings: Settings) -> None:
    prepared = prepare("baseline", make(CASES["quick-sample-hard"], settings), settings)
    wrong = dataclasses.replace(prepared, run=lambda: {"counts": prepared.run()["counts"] + 0.1})
    assert not check.run(wrong, "baseline", "cpu")["ok"]


def test_a_lost_gradient_gets_no_time(settings: Settings) -> None:
    problem = make(CASES["quick-train-fini2"], settings)

    def detached(u: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        return plain.step(u.detach(), *rest)

    loss: Any = functools.partial(plain.loss, step=detached)
    wrong = baseline.with_parts(problem, plain.sample, loss, problem.arrivals)
    assert not check.run(wrong, "baseline", "cpu")["ok"]


def test_rows(settings: Settings) -> None:
    case = dataclasses.replace(CASES["quick-infer"], only=("baseline", "authors"))
    ours, plain, authors = measure.measure(case, settings, PEAKS, lambda _: None)
    json.dumps(ours)
    for row in (ours, plain):
        assert row["status"] == "ok"
        assert row["check"]["ok"]
        assert row["p20"] <= row["median"] <= row["p80"]
        assert row["per_second"] == pytest.approx(32 * 16 / row["median"])
        assert row["roofline"] > 0
    assert ours["faster_than"] == {"baseline": pytest.approx(plain["median"] / ours["median"])}
    assert ours["sizes"] == {"B": 32, "T": 16, "K": 512, "M": 256}
    assert 0 < ours["state"]["nonzero"] < 1
    assert authors["status"] == "not measured"
    assert authors["reason"] == "no --reference"
    assert authors["median"] is None


def test_who_fails_takes_nobody_along(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(baseline, "prepare", broken)
    case = dataclasses.replace(CASES["quick-infer"], only=("baseline",))
    ours, plain = measure.measure(case, settings, PEAKS, lambda _: None)
    assert ours["median"] > 0
    assert (plain["status"], plain["reason"]) == ("failed", "RuntimeError: out of luck")
    assert plain["median"] is None


def test_a_wrong_checkout_is_named(settings: Settings, tmp_path: Path) -> None:
    there = dataclasses.replace(settings, reference=tmp_path)
    with pytest.raises(Unavailable, match=r"is not a checkout of hadivafaii/IterativeVAE"):
        prepare("authors", make(CASES["quick-infer"], there), there)


def test_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    taken, errors = turns.take_turns(runs, 0.0, "cpu")
    assert not errors
    assert order == ["a", "b"]
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 1, "b": 1}
    order.clear()
    taken, _ = turns.take_turns(runs, 60.0, "cpu")
    # From the second round on a short run comes right after an untimed one.
    assert order[:6] == ["a", "b", "a", "a", "b", "b"]
    assert all(len(seconds) == turns.MAX_ROUNDS for seconds in taken.values())


def test_who_fails_while_timed_takes_nobody_along(settings: Settings) -> None:
    calls: list[int] = []

    def breaks() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    taken, errors = turns.take_turns({"good": lambda: None, "bad": breaks}, 60.0, "cpu")
    assert list(taken) == ["good"]
    assert len(taken["good"]) == turns.MAX_ROUNDS
    assert str(errors["bad"]) == "out of memory"


def test_triton_compiles_in_a_run_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares runs of the same seed: the run that compiles must not take the first one."""
    problem = make(CASES["quick-infer"], settings)
    seeds: list[int] = []

    def infer(*_: object, seed: int, **__: object) -> tuple[Any, Any]:
        seeds.append(seed)
        return SimpleNamespace(log_rate=torch.zeros(1)), {}

    monkeypatch.setattr(type(problem.copy_model()), "infer", infer)
    monkeypatch.setattr(ipvae_kernels, "backends", lambda: {"triton": "available"})
    prepare("triton", problem, settings).run()
    assert seeds == [1, 1]


def test_names(settings: Settings) -> None:
    everyone = ["cpu", "baseline", "compiled", "jax_scan", "authors", "accelerated"]
    assert names(CASES["infer-paper"], settings) == everyone
    assert names(CASES["growth-K-512"], settings) == ["cpu", "baseline"]
    fewer = dataclasses.replace(settings, without=("compiled", "authors"))
    assert names(CASES["infer-paper"], fewer) == ["cpu", "baseline", "jax_scan", "accelerated"]
    on_gpu = dataclasses.replace(settings, device="cuda", backends=("triton",))
    assert names(CASES["infer-paper"], on_gpu)[:4] == ["triton", "baseline", "compiled", "graphed"]
    with pytest.raises(Unavailable, match="a CUDA graph needs a GPU"):
        prepare("graphed", make(CASES["quick-infer"], settings), settings)


def test_a_graph_keeps_what_it_reads(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replay would otherwise use memory that has been given to others."""
    models: list[Any] = []
    copy = Problem.copy_model

    def tracked(self: Problem) -> Any:
        model = copy(self)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(Problem, "copy_model", tracked)
    for name in ("Stream", "CUDAGraph", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, contextlib.nullcontext)
    problem = dataclasses.replace(make(CASES["quick-infer"], settings), device="cuda")
    prepared = prepare("graphed", problem, settings)
    assert models
    assert all(model() is not None for model in models)
    prepared.run()


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux' /proc"
)
def test_memory(settings: Settings) -> None:
    mib = memory.peak("quick-infer", "baseline", settings)
    assert 0.1 < mib < 200
    with pytest.raises(Unavailable, match="no --reference"):
        memory.peak("quick-infer", "authors", settings)


def test_settings_survive_json(settings: Settings) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    assert memory.settings_of(values) == settings


def test_roofline_takes_the_tighter_bound() -> None:
    case = CASES["infer-paper"]
    by_operations = roofline.fraction(case, 0.5, 1.0, PEAKS, "cpu", 1)
    assert by_operations == pytest.approx(case.operations(0.5) / 1e11)
    slow = roofline.Peaks(flops=1e11, bytes=1.0)
    assert roofline.fraction(case, 0.5, 1.0, slow, "cpu", 1) == pytest.approx(case.bytes())
