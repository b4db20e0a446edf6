"""Contestants timed in turns, so that what else the machine does slows them all: demo and benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

MIN_ROUNDS, MAX_ROUNDS = 3, 50
# PyTorch's threads spin for some milliseconds after a parallel operation; whoever runs next would pay.
SETTLE_SECONDS = 0.02
# The pause lets threads and caches go cold, which whoever runs in a loop never sees: shorter runs are timed
# right after an untimed one. 10^6 hard counts: 2.05 ms, and 2.91 ms from cold.
WARM_SECONDS = 0.25

Name = TypeVar("Name")


def take_turns(
    runs: Mapping[Name, Callable[[], object]], seconds: float, device: str = "cpu", least: int = 1
) -> tuple[dict[Name, list[float]], dict[Name, Exception]]:
    """Seconds of every run, and the errors of those that failed on the way; all have run before.

    Rounds in which each contestant runs once. One drops out after `MAX_ROUNDS`, after `MIN_ROUNDS` if it has
    used its share of the time, and before that if it alone has used up the time of all.

    Args:
        runs: by contestant.
        seconds: for all together.
        device: synchronised where it is a GPU.
        least: rounds that each gets in any case.
    """
    taken: dict[Name, list[float]] = {name: [] for name in runs}
    errors: dict[Name, Exception] = {}
    waiting = list(runs)
    while waiting:
        for name in list(waiting):
            try:
                taken[name].append(_timed(runs[name], taken[name], device))
            except Exception as error:  # a device's: the others go on
                errors[name] = error
                del taken[name]
                waiting.remove(name)
                continue
            rounds, used = len(taken[name]), sum(taken[name])
            enough = rounds >= MIN_ROUNDS and used >= seconds / len(runs)
            if enough or rounds >= MAX_ROUNDS or (used >= seconds and rounds >= least):
                waiting.remove(name)
    return taken, errors


def elapsed(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one run."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def synchronize(device: str) -> None:
    """Waits for what a GPU still does."""
    if device == "cuda":
        torch.cuda.synchronize()


def _timed(run: Callable[[], object], taken: list[float], device: str) -> float:
    """Seconds of a run; a short one comes right after an untimed one."""
    time.sleep(SETTLE_SECONDS)
    if taken and taken[-1] < WARM_SECONDS:
        run()
    return elapsed(run, device)
