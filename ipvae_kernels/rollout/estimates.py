"""How much memory and time inference takes, before it starts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, memory
from . import records, sparse
from .op import InferResult, infer
from .shapes import check_steps
from .task import Params

_PROBE = 0.1  # seconds that are measured, at least
_SETTLED = 256  # and steps of sparse counts: in the first few, more neurons spike than later


class Estimate(NamedTuple):
    """What a call of :func:`infer` takes.

    Attributes:
        bytes: of its results, the state and the records.
        available: bytes that can be had where x is; None where nobody says.
        seconds: as measured with some steps of the same call.
    """

    bytes: int
    available: int | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the results fit into memory, as far as is known."""
        return self.available is None or self.bytes <= self.available

    def __str__(self) -> str:
        left = "" if self.available is None else f" of {memory.size(self.available)} available"
        return f"{memory.size(self.bytes)}{left}, {self.seconds:.3g} s"


def estimate(
    x: Tensor,
    params: Params,
    steps: int,
    *,
    record: Iterable[str] = (),
    record_every: int = 1,
    **options: Any,
) -> Estimate:
    """Memory and time of a call of :func:`infer`, measured with its first steps: some .1 s of them.

    Sparse counts are taken to be as many as in these steps, at least 256 of them. Rates, and with them times,
    may change later.

    Args:
        x: as of :func:`infer`.
        params: as of :func:`infer`.
        steps: as of :func:`infer`.
        record: as of :func:`infer`.
        record_every: as of :func:`infer`.
        options: further arguments of :func:`infer`.

    Returns:
        Bytes and seconds.

    Raises:
        TypeError, ValueError: as of :func:`infer`.
    """
    steps, names = checks.integer("steps", steps, 1, 2**32), tuple(record)
    every = checks.integer("record_every", record_every, 1, 2**32)
    checks.tensor("x", x)
    check_steps(x, steps)

    def run(n: int) -> tuple[float, InferResult]:
        begun = time.perf_counter()
        frames = x[:n] if x.dim() == 3 else x
        result = infer(frames, params, n, record=names, record_every=min(every, n), **options)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - begun, result

    run(1)  # sets up what is set up once
    n, (seconds, result) = 1, run(1)
    least = _SETTLED if sparse.NAME in names else 0
    while n < steps and (seconds < _PROBE or n < least):
        n = min(4 * n, steps)
        seconds, result = run(n)
    dense = [name for name in names if name != sparse.NAME]
    of_step = float(records.step_bytes(x, result.state.log_rate, dense))
    if sparse.NAME in names:
        rows = result.records[sparse.NAME]
        of_step += (rows.values().nbytes + rows.indices().nbytes) / len(rows)
    size = result.state.log_rate.nbytes + int(steps // every * of_step)
    return Estimate(size, memory.available(x.device), seconds * steps / n)
