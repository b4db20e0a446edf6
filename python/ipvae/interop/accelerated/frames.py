"""The frames of a feeder that are to come."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Upcoming:
    """Hands out a feeder's frames as before, and lets the models see those that follow.

    Their feeders make a frame when it is asked for, some from random numbers in order, so frames that were
    seen ahead are kept for when their time comes.

    Args:
        feeder: one of theirs; its ``get_frame`` is replaced on the instance.
    """

    def __init__(self, feeder: Any) -> None:
        self._make = feeder.get_frame
        self._kept: dict[int, Tensor] = {}
        self.now: tuple[int, Tensor] | None = None
        feeder.get_frame = self.get_frame

    def get_frame(self, t: int) -> Tensor:
        """What ``feeder[t]`` returns."""
        frame = self._kept[t] if t in self._kept else self._make(t)
        self._kept = {at: kept for at, kept in self._kept.items() if at > t}
        self.now = (t, frame)
        return frame

    def after(self, frame: Tensor, n: int) -> list[Tensor] | None:
        """The frame that was handed out last and up to n - 1 that follow; None where it is another one."""
        if self.now is None or self.now[1] is not frame:
            return None
        t, found = self.now[0], [frame]
        for at in range(t + 1, t + n):
            if at not in self._kept:
                try:
                    self._kept[at] = self._make(at)
                except (IndexError, ValueError):  # the end of a sequence
                    break
            found.append(self._kept[at])
        return found
