"""How a run hears Ctrl-C and SIGTERM: the step at hand is finished first."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HEARD = (signal.SIGINT, signal.SIGTERM)
# Of several processes each hears a Ctrl-C from the terminal and from its parent: within so many seconds they
# are one.
ECHO_SECONDS = 1.0


class StopRequest:
    """The signal that asked a run to stop, if one did.

    The first waits for whoever looks at `heard`, the second acts at once.

    Attributes:
        heard: name of the first signal; None: there was none.
        launcher: of Lightning's strategy, where it starts processes: they get every signal too.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        self.launcher: Any = None
        self._caller = os.getpid()
        self._when = 0.0

    @property
    def elsewhere(self) -> bool:
        """Whether this is another process than the one that made the object."""
        return os.getpid() != self._caller

    def listen(self) -> None:
        """Takes the signals over. Only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in HEARD:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.heard is None
        if first:
            self.heard, self._when = signal.Signals(number).name, time.monotonic()
        if self.launcher is not None:
            self.launcher.kill(number)
        alone = self.launcher is None and not self.elsewhere
        if not first and (alone or time.monotonic() - self._when > ECHO_SECONDS):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def restored() -> Iterator[None]:
    """Puts the handlers that `StopRequest.listen` replaces back in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in HEARD}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
