"""Runs cases: contestants in turns, rows with everything needed to read them later."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ipvae.experiments.turns import take_turns

import ipvae_kernels
from ipvae_kernels.info import info

from . import check, memory, roofline
from .cases import Case
from .contestants import names, prepare
from .problem import Problem, Settings, Unavailable, make

Tell = Callable[[str], None]
Row = dict[str, Any]
FORMAT = 1
NOT_MEASURED, FAILED, OK = "not measured", "failed", "ok"


def machine(settings: Settings) -> dict[str, Any]:
    """Hardware, versions, commit and settings: what all rows of a file share."""
    versions = {}
    for name in ("numpy", "jax", "jaxlib"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "gpu": torch.cuda.get_device_name() if settings.device == "cuda" else None,
        "threads": settings.threads,
        "system": platform.platform(),
        "installation": info() | versions,
        "updates": settings.updates,
        "seconds": settings.seconds,
    }


def run(cases: list[Case], settings: Settings, tell: Tell) -> Iterator[list[Row]]:
    """Measures case by case; yields the rows of each, one per contestant.

    Args:
        cases: in this order.
        settings: how.
        tell: receives a line on what happens next.
    """
    torch.set_num_threads(settings.threads)
    peaks = roofline.measure(settings.device)
    per = " per core" if settings.device == "cpu" else ""
    tell(f"peaks: {peaks['flops'] / 1e9:.0f} Gflop/s{per}, {peaks['bytes'] / 1e9:.1f} GB/s")
    for number, case in enumerate(cases, 1):
        tell(f"{number} of {len(cases)}: {case.name}")
        yield measure(case, settings, peaks, tell)


def measure(case: Case, settings: Settings, peaks: roofline.Peaks, tell: Tell) -> list[Row]:
    """The rows of a case; who cannot run, or computes something else, has one without a time."""
    problem = make(case, settings, tell)
    reference = next((b for b in settings.backends if ipvae_kernels.backends()[b] == "available"), "eager")
    rows, ready = {}, {}
    for name in names(case, settings):
        row = rows[name] = _row(problem, name, settings)
        try:
            if settings.memory:
                row["peak_mib"] = memory.peak(case.name, name, settings)
            prepared = prepare(name, problem, settings)
            row |= {"note": prepared.note, "compile_seconds": prepared.compile_seconds}
            found = check.run(prepared, name, reference)
        except Unavailable as reason:
            row |= {"status": NOT_MEASURED, "reason": str(reason)}
            continue
        except Exception as error:  # a compiler's, a device's: the others keep their times
            row |= _failure(error)
            continue
        row["check"] = found
        if not found["ok"]:
            row |= {"status": FAILED, "reason": f"differs from {found['against']}: {found['found']}"}
            continue
        ready[name] = prepared
    runs = {name: _repeated(prepared.run, case.calls) for name, prepared in ready.items()}
    taken, errors = take_turns(runs, settings.seconds, settings.device)
    for name, seconds in taken.items():
        rows[name] |= _figures(problem, [s / case.calls for s in seconds], peaks, settings)
    for name, cause in errors.items():
        rows[name] |= _failure(cause)
    for row in rows.values():
        row["faster_than"] = {
            other: rows[other]["median"] / row["median"]
            for other in taken
            if row["status"] == OK and rows[other] is not row
        }
    return list(rows.values())


def _failure(error: Exception) -> Row:
    return {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}


def _repeated(run: Callable[[], object], calls: int) -> Callable[[], object]:
    def repeat() -> None:
        for _ in range(calls):
            run()

    return repeat


def _row(problem: Problem, contestant: str, settings: Settings) -> Row:
    case = problem.case
    return {
        "case": case.name, "group": case.group, "op": case.op, "axis": case.axis, "contestant": contestant,
        "device": settings.device, "sizes": case.sizes, "estimator": case.estimator,
        "temperature": case.temperature,
        "state": {
            "name": case.state, "updates": settings.updates, "nonzero": problem.nonzero, "rate": problem.rate
        },
        "status": OK, "reason": "", "note": "", "check": None, "compile_seconds": None, "peak_mib": None,
        "median": None, "p20": None, "p80": None, "rounds": 0, "per_second": None, "spikes_per_second": None,
        "operations": case.operations(problem.nonzero), "bytes": case.bytes(), "roofline": None,
        "faster_than": {},
    }  # fmt: skip


def _figures(problem: Problem, seconds: list[float], peaks: roofline.Peaks, settings: Settings) -> Row:
    """Quantiles; sample-steps (sampling: counts) and spikes (of the hard draw, one a step) per second."""
    case = problem.case
    p20, median, p80 = (float(q) for q in np.quantile(seconds, (0.2, 0.5, 0.8)))
    sizes = case.sizes
    units = sizes["B"] * sizes["T"] if "B" in sizes else sizes["N"]
    spikes = units * problem.rate * sizes.get("K", 1)
    return {
        "median": median, "p20": p20, "p80": p80, "rounds": len(seconds), "per_second": units / median,
        "spikes_per_second": spikes / median,
        "roofline": roofline.fraction(
            case, problem.nonzero, median, peaks, settings.device, settings.threads
        ),
        "peaks": dict(peaks),
    }  # fmt: skip


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """Of the checkout around the working directory, "+" where it has changes; else unknown."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
