"""Peak memory of one run, in a process: ``python -m ipvae_bench.memory CASE CONTESTANT SETTINGS``."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .problem import Settings, Unavailable, make

MIB = 2.0**20


def peak(case: str, contestant: str, settings: Settings) -> float:
    """MiB that the first run of a case takes on top of what the process holds before it.

    Parameters, inputs, compiled code and imported packages are there before, so what counts is what the
    run allocates: on the CPU the resident set, on a GPU torch's allocator.

    Raises:
        Unavailable: it cannot take part, or the process was killed.
    """
    values = json.dumps(dataclasses.asdict(settings), default=str)
    command = [sys.executable, "-m", __name__, case, contestant, values]
    # In another folder, since Python would import a package that lies in the working directory.
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=settings.state_dir)
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        raise Unavailable(f"killed by {name} while its memory was measured; out of memory?")
    if result.returncode != 0:
        raise RuntimeError(f"memory of {case}, {contestant}: {result.stderr.strip()}")
    answer = json.loads(result.stdout.splitlines()[-1])
    if "unavailable" in answer:
        raise Unavailable(answer["unavailable"])
    return float(answer["mib"])


def settings_of(values: dict[str, Any]) -> Settings:
    """`Settings` from their JSON."""
    reference = None if values["reference"] is None else Path(values["reference"])
    paths = {"state_dir": Path(values["state_dir"]), "reference": reference}
    lists = {name: tuple(values[name]) for name in ("backends", "without")}
    return Settings(**{**values, **paths, **lists})


def main(case: str, contestant: str, values: str) -> None:
    """Prints {"mib": ...} or {"unavailable": reason}."""
    from .cases import CASES
    from .contestants import prepare

    settings = settings_of(json.loads(values))
    torch.set_num_threads(settings.threads)
    try:
        prepared = prepare(contestant, make(CASES[case], settings), settings)
        before = _reset(settings.device)
        prepared.run()
        answer: dict[str, object] = {"mib": (_highest(settings.device) - before) / MIB}
    except Unavailable as reason:
        answer = {"unavailable": str(reason)}
    print(json.dumps(answer))


def _reset(device: str) -> float:
    """Starts a new peak; returns bytes held now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    # What the allocator keeps of memory freed before, by a compilation for instance, is given back first.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is resident now
    return _status("VmRSS")


def _highest(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(name: str) -> float:
    (kib,) = re.findall(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024.0 * float(kib)


if __name__ == "__main__":
    main(*sys.argv[1:])
