"""How much memory there is, and refusals of what it cannot hold before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import torch

_GROUPS = Path("/sys/fs/cgroup")
# Less is not looked at: asking the system takes some 100 microseconds, little of the time to fill so much.
SMALL = 2**28


def available(device: torch.device) -> int | None:
    """Bytes that can be had on a device; None where nobody says: CPUs elsewhere than on Linux.

    Of a CPU the least of what the system and the control group of the process leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + idle)
    if device.type != "cpu":
        return None
    left = [n for n in (_of_system(), _of_group()) if n is not None]
    return min(left, default=None)


def check(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Refuses what does not fit.

    Args:
        what: that takes the memory, as the message begins.
        needed: bytes.
        device: where.
        advice: what would fit.

    Raises:
        MemoryError: less is available.
    """
    if needed < SMALL:
        return
    left = available(device)
    if left is not None and needed > left:
        raise MemoryError(f"{what} takes {size(needed)}, {size(left)} are available; {advice}")


def size(n: float) -> str:
    """Bytes in the unit that people read."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1024
    return f"{n:.3g} TiB"


def _of_system() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    found = fields.get("MemAvailable")
    return None if found is None else 1024 * int(found.split()[0])


def _of_group() -> int | None:
    """What the control group leaves, of the second or the first version; a limit "max" is none."""
    for folder, limit, used in (
        (_GROUPS, "memory.max", "memory.current"),
        (_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # What the group's cache of files holds is given up for whoever asks.
            files = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            return int((folder / limit).read_text()) - int((folder / used).read_text()) + files
        except (OSError, ValueError):
            continue
    return None
