"""Long inference in stretches of steps, so that an interrupt loses little and keeps what is done.

A sequence may be cut anywhere without a change of a bit; so it is, about twice a second. Between stretches,
and within long ones (``csrc/cpu/cpu.cpp``), Python handles its signals.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from . import eager
from .config import RolloutConfig
from .eager import RECORDS, record_shapes
from .problem import Inputs

if TYPE_CHECKING:
    from .op import InferResult

FIRST_WORK = 2**30  # multiply-adds of the first stretch: .03 to .3 s on one or two cores
_SECONDS = 0.5  # of each that follows: 0.3 ms to start one (M 256, K 512) is little of it


class Inference(Protocol):
    """A backend's module, or what stands for it."""

    def infer(
        self, inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
    ) -> list[Tensor]:
        """As in ``eager.py``."""


class Interrupted(KeyboardInterrupt):
    """``infer`` was interrupted, by Ctrl-C as a rule, and says how far it came.

    Attributes:
        result: the :class:`InferResult` of the steps that were finished, as if only they had been asked for:
            continue from ``result.state``, whose ``step`` says how many they are.
    """

    result: InferResult

    def __init__(self, steps: int, tensors: list[Tensor]) -> None:
        super().__init__(f"interrupted after {steps} steps; the exception's result holds state and records")
        self.steps, self.tensors = steps, tensors


def infer(
    module: Inference,
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
) -> list[Tensor]:
    """What ``module.infer`` returns, computed in stretches on a CPU.

    On a GPU a call only queues its work, so that there an interrupt comes when the host waits.

    Raises:
        Interrupted: without its ``result``, which the public function fills in.
    """
    x, log_rate = inputs.x, inputs.log_rate
    length = 1 if cfg.steps == 1 else _first_length(x, inputs.dictionary, cfg, compiled=module is not eager)
    done, records = 0, []

    def empty(n: int) -> list[Tensor]:
        shapes = record_shapes(x.shape[-2], inputs.dictionary.shape, log_rate.shape)
        return [x.new_empty((n, *shapes[name])) for name in RECORDS if name in record]

    def rows(steps: int) -> int:
        return (cfg.step + steps) // record_every - cfg.step // record_every

    try:
        if length >= cfg.steps:
            whole: list[Tensor] = module.infer(inputs, seed, cfg, record, record_every)
            return whole
        records = empty(rows(cfg.steps))
        while done < cfg.steps:
            steps, started = min(length, cfg.steps - done), time.perf_counter()
            part = cfg._replace(step=cfg.step + done, steps=steps)
            frames = x[done : done + steps] if x.dim() == 3 else x
            stretch = inputs._replace(x=frames, log_rate=log_rate)
            state, *new = module.infer(stretch, seed, part, record, record_every)
            for every, of_part in zip(records, new, strict=True):
                every[rows(done) : rows(done + steps)] = of_part
            done, log_rate = done + steps, state
            length = min(4 * length, int(length * _SECONDS / (time.perf_counter() - started)) + 1)
    except KeyboardInterrupt as interrupt:
        kept = [every[: rows(done)] for every in records or empty(0)]
        raise Interrupted(done, [log_rate, *kept]) from interrupt
    return [log_rate, *records]


def _first_length(x: Tensor, dictionary: Tensor, cfg: RolloutConfig, compiled: bool) -> int:
    """Steps of the first stretch."""
    if x.device.type != "cpu":
        return cfg.steps
    pixels, neurons = dictionary.shape
    # A neuron's draws and update cost as much as some 100 multiply-adds, a step by itself as 10^4, and where
    # PyTorch's operators compute it, 10^6.
    work = (x.shape[-2] * neurons * (2 * pixels + 100) + (10_000 if compiled else 10**6)) * cfg.n_inner
    return max(1, FIRST_WORK // work)
