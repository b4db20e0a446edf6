"""Two halves of a batch by two threads, of which one computes while the other's sum is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from ..rollout.cpu import Exchange

Found = TypeVar("Found")


class _OtherFailedError(RuntimeError):
    """The other half of the batch failed."""


class Turns:
    """Whose turn it is. A thread has it from one sum to the next, and then it is the other's.

    Sums so come in one order in every process, and one group serves both threads.

    Args:
        group: of the processes.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._changed = threading.Condition()
        self._turn = 0
        self._over = [False, False]
        self._failed = False

    def both(self, first: Callable[[Exchange], Found], second: Callable[[Exchange], Found]) -> list[Found]:
        """What two functions find, each given its way to add up a tensor over the processes.

        The first runs in the calling thread, which hears of signals.
        """
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self._run, 1, second)
            try:
                mine = self._run(0, first)
            except _OtherFailedError:
                return [other.result()]  # which raises
            return [mine, other.result()]

    def _run(self, me: int, function: Callable[[Exchange], Found]) -> Found:
        failed = True
        try:
            self._wait(me)
            found = function(lambda sums: self._exchange(me, sums))
            failed = False
            return found
        finally:
            self._over[me] = True
            self._pass(1 - me, failed)

    def _exchange(self, me: int, sums: Tensor) -> None:
        on_its_way = distributed.all_reduce(sums, group=self._group, async_op=True)
        try:
            if not self._over[1 - me]:
                self._pass(1 - me)
            self._wait(me)
        finally:
            on_its_way.wait()  # it writes to the caller's memory

    def _pass(self, to: int, failed: bool = False) -> None:
        with self._changed:
            self._turn, self._failed = to, self._failed or failed
            self._changed.notify()

    def _wait(self, me: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == me or self._failed)
        if self._failed:
            raise _OtherFailedError
