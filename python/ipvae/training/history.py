"""The logged measures of a run, read back from its CSV files."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_history(out_dir: str | PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """The CSV logs of all sessions of a run as one; where sessions overlap, the later one holds.

    Args:
        out_dir: of the run.

    Returns:
        "step" and every logged measure, [rows] each, NaN where a row has no value; empty without logs.
    """
    rows: list[dict[str, float]] = []
    for path in _sessions(Path(out_dir) / "logs"):
        session = _read_session(path)
        if session:
            rows = [row for row in rows if row["step"] < session[0]["step"]]
        for row in session:
            if rows and rows[-1]["step"] == row["step"]:
                rows[-1].update(row)
            else:
                rows.append(row)
    return columns(rows)


def _sessions(logs: Path) -> list[Path]:
    """The CSV files of a run's sessions, oldest first; other entries of the folder are nobody's business."""
    files = logs.glob("version_*/metrics.csv")
    numbered = [(path.parent.name.removeprefix("version_"), path) for path in files if path.is_file()]
    return [path for n, path in sorted((int(n), path) for n, path in numbered if re.fullmatch("[0-9]+", n))]


def _read_session(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV log. What cannot be read is left out with a warning: no damaged log fails a run."""
    rows, damaged = [], 0
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for cells in csv.DictReader(line.replace("\0", "?") for line in file):
                try:
                    row = {name: float(cell) for name, cell in cells.items() if cell}
                    row["step"] = float(int(row["step"]))
                except (KeyError, TypeError, ValueError, OverflowError):
                    damaged += 1
                else:
                    rows.append(row)
    except (OSError, csv.Error) as error:
        warnings.warn(f"{path}: the history leaves out what cannot be read ({error})", stacklevel=3)
    if damaged:
        warnings.warn(f"{path}: the history leaves out {damaged} damaged row(s)", stacklevel=3)
    return rows


def columns(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """A row each to a column each, [rows], NaN where a row has no such value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}
