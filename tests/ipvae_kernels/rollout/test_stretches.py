"""Long inference: cut into stretches without a change of a bit, and interrupted without a loss."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import choice
from ipvae_kernels.rollout import stretches

Problem = Callable[..., tuple[Tensor, Any]]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of one step at first, then up to four times as long as the one before."""
    monkeypatch.setattr(stretches, "FIRST_WORK", 1)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize("options", [{"n_inner": 2}, {"single_draw": True}], ids=str)
def test_stretches_change_no_bit(
    options: dict[str, Any], moving: bool, problem: Problem, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = problem(moving=23 if moving else 0, dtype=torch.float32)
    start = ik.infer(x[:2] if moving else x, params, 2, seed=3, backend=backend, **options).state
    arguments = {"record": ik.rollout.op.RECORDS, "record_every": 3, "backend": backend, **options}
    cut = ik.infer(x, params, 23, state=start, **arguments)
    monkeypatch.setattr(stretches, "FIRST_WORK", 2**32)
    whole = ik.infer(x, params, 23, state=start, **arguments)
    assert torch.equal(cut.state.log_rate, whole.state.log_rate)
    assert cut.state.step == whole.state.step == 25
    for name, records in whole.records.items():
        assert torch.equal(cut.records[name], records), name


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("failing", [0, 3])
def test_an_interrupt_keeps_what_is_done(
    failing: int, problem: Problem, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stretch it falls into, the exception holds a run of the steps before."""
    x, params = problem(dtype=torch.float32)
    module = choice.implementation("ipvae_kernels.rollout", backend, x)
    calls, infer = [], module.infer

    def interrupted(*arguments: Any) -> list[Tensor]:
        if len(calls) == failing:
            raise KeyboardInterrupt
        calls.append(arguments)
        result: list[Tensor] = infer(*arguments)
        return result

    arguments = {"record": ("counts", "kl"), "record_every": 2, "seed": 4, "backend": backend}
    monkeypatch.setattr(module, "infer", interrupted)
    with pytest.raises(ik.Interrupted, match="interrupted after") as stopped:
        ik.infer(x, params, 1000, **arguments)
    result = stopped.value.result
    monkeypatch.setattr(module, "infer", infer)
    if not failing:
        assert result.state.step == 0
        assert torch.equal(result.state.log_rate, params.log_rate_init.expand(3, -1))
        assert result.records["counts"].shape == (0, 3, 9)
        return
    assert 3 <= result.state.step < 1000
    exact = ik.infer(x, params, result.state.step, **arguments)
    assert torch.equal(result.state.log_rate, exact.state.log_rate)
    assert list(result.records) == ["counts", "kl"]
    for name, records in exact.records.items():
        assert torch.equal(result.records[name], records), name


CHILD = """
import signal, sys, torch
import ipvae_kernels as ik
from ipvae_kernels.backend import choice
from ipvae_kernels.rollout import stretches
stretches.FIRST_WORK = 2**24  # a first stretch of milliseconds
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
torch.manual_seed(0)
params = ik.PoissonParams(
    0.1 * torch.randn(8, 16), torch.zeros(8), torch.full((16,), -2.0), torch.tensor(-1.0), torch.zeros(16)
)
x = torch.randn(2, 8)
arguments = {"seed": 1, "record": ["spikes"], "record_every": 1000, "backend": "cpu"}
ik.infer(x, params, 1, **arguments)
print("ready", flush=True)
try:
    ik.infer(x, params, 10**7, **arguments)
except KeyboardInterrupt as stop:
    print("stopped", flush=True)
    state, records = stop.result
    assert 0 < state.step < 10**7
    exact = ik.infer(x, params, state.step, **arguments)
    assert torch.equal(exact.state.log_rate, state.log_rate)
    assert torch.equal(exact.records["spikes"], records["spikes"])
    print("same", flush=True)
"""


def test_ctrl_c_ends_a_run_of_ten_million_steps() -> None:
    """The child checks what it kept against a run of as many steps."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
        guard = threading.Timer(120, child.kill)
        guard.start()
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(1.5)  # a few stretches
            child.send_signal(signal.SIGINT)
            assert child.stdout.read() == "stopped\nsame\n"
            assert child.wait() == 0
        finally:
            guard.cancel()
            child.kill()


def test_a_signal_ends_one_long_call(problem: Problem) -> None:
    """Not only between stretches: what the handler raises comes out of forward, backward and a draw."""
    x, params = problem(400, 64, 2048, dtype=torch.float32, grad=True)
    u = torch.full((4000, 1024), 7.0)
    loss = ik.elbo(x, params, 16, seed=1, checkpoint=4, backend="cpu").loss

    class Rang(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rang

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        for call in (
            lambda: ik.infer(x, params, 1000, seed=1, backend="cpu"),
            lambda: ik.elbo(x, params, 1000, seed=1, checkpoint=4, backend="cpu"),
            loss.backward,
            lambda: ik.poisson_rsample(u, seed=1, backend="cpu"),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Rang):
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


INTERRUPTED = """
import signal, torch, ipvae_kernels as ik

class Rang(Exception):
    pass

def ring(*_):
    raise Rang

signal.signal(signal.SIGALRM, ring)
torch.set_num_threads(8)
zeros = torch.zeros(8192)
quiet = zeros - 3.0
params = ik.PoissonParams(0.01 * torch.randn(8, 8192), torch.zeros(8), quiet, quiet[0], quiet)
for _ in range(30):
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        ik.elbo(torch.randn(1, 8), params, 100_000, seed=1, checkpoint=2000, backend="cpu")
    except Rang:
        print("ended", flush=True)
"""


def test_no_thread_of_a_team_that_is_told_to_end_is_left_waiting() -> None:
    """With more threads than cores one is often slow to leave a meeting, when another comes to the next."""
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.split() == 30 * ["ended"], run.stderr
