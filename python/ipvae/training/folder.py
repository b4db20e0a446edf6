"""One run per folder: the lock on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..extras import explained
from .outcome import TrainingError

with explained():
    import filelock
    from lightning.pytorch.utilities import rank_zero_only


LOCK = ".lock"


def first_process() -> bool:
    """Whether this is the only process of a run, or the first of those that share it."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def alone_in(out_dir: Path, lock: str = LOCK) -> Iterator[None]:
    """Keeps a second run out of a folder.

    The lock is the operating system's, so it goes with its process, however that ends.

    Args:
        out_dir: of the run; created.
        lock: name of the file; those with different ones do not keep each other out.

    Raises:
        TrainingError: another process, or another call in this one, has the lock.
    """
    if not first_process():
        yield
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    owner = out_dir / f"{lock}.owner"
    held = filelock.FileLock(out_dir / lock, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        try:
            who = owner.read_text()
        except OSError:
            who = "another process"
        raise TrainingError(
            f"{out_dir}: {who} is training in this folder; wait for its end, or give another one"
        ) from None
    try:
        with suppress(OSError):  # it only helps a message
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        held.release()
