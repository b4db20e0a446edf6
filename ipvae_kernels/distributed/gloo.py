"""Event loops of gloo that wait for a CPU rather than take it: without it a sum may cost a scheduler's tick.

The loop tries the lock of a connection, and where another thread holds it, comes back at once to events that
are still there (gloo/transport/tcp/pair.cc, handleEvents). Woken by data it may take the CPU from that very
thread, and then spins until the scheduler's next tick, some 4 ms: with two processes on two cores one sum in
ten, more where processes compute in between. A thread of Linux's SCHED_BATCH takes no CPU from others when it
wakes. 32 KB between two processes: 1.34 ms a sum on average before, .27 to .34 after
(docs/design/experiments.md).
"""

from __future__ import annotations

import os
from collections.abc import MutableSet
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from torch.distributed import ProcessGroup

_TASKS = Path("/proc/self/task")
_LOOP = "gloo_tcp_loop"  # the thread's name
_SEEN: MutableSet[ProcessGroup] = WeakSet()


def calm_loops(group: ProcessGroup) -> None:
    """Does so for the loops of this process, once a group; where the system does not let it, nothing changes.

    Args:
        group: that sums will be asked of; its loops are there.
    """
    if group in _SEEN:
        return
    _SEEN.add(group)
    if not (hasattr(os, "SCHED_BATCH") and _TASKS.is_dir()):
        return
    for task in _TASKS.iterdir():
        with suppress(OSError):  # it ended, or the system refuses
            if (task / "comm").read_text().strip() == _LOOP:
                os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
