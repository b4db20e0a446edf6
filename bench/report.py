"""Tables and plots from rows; nothing here measures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ipvae.checkpoint import atomic_file
from ipvae.experiments.turns import MIN_ROUNDS
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .contestants import label
from .measure import FORMAT, OK, Row

_console = Console()
OURS = ("cpu", "cuda")  # the compiled kernels, with which everything else is compared


@dataclass(frozen=True)
class Results:
    """A run.

    Attributes:
        machine: what `measure.machine` tells.
        rows: in the order in which they were measured.
    """

    machine: dict[str, Any]
    rows: list[Row]

    @classmethod
    def from_json(cls, path: Path) -> Results:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: for a file that is something else.
        """
        try:
            values = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise ValueError(f"{path}: expected format {FORMAT}, found {values['format']}")
            return cls(values["machine"], values["rows"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a file of ipvae bench ({error})") from error

    def to_json(self, path: Path) -> None:
        """All of it."""
        text = json.dumps({"format": FORMAT, "machine": self.machine, "rows": self.rows}, indent=1)
        with atomic_file(path) as file:
            file.write(text.encode() + b"\n")

    def to_csv(self, path: Path) -> None:
        """A line per row; nested values under names joined by a dot; commit, CPU, GPU and threads in each."""
        shared = {name: self.machine[name] for name in ("commit", "cpu", "gpu", "threads")}
        lines = [_flat({**row, "check": (row["check"] or {}).get("ok")}) | shared for row in self.rows]
        names = list(dict.fromkeys(name for line in lines for name in line))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(lines)


class Roof(NamedTuple):
    """What bounds a machine: no point of the plot lies above it.

    Attributes:
        flops: operations per second: of a matrix product on all cores in use, or what a contestant reached if
            that is more (matrix units compute in narrower formats than the product that was timed).
        bytes: per second: of a copy through memory, or what a contestant reached if that is more (what fits
            into a cache never crosses the bus).
    """

    flops: float
    bytes: float


def roof(results: Sequence[Results]) -> Roof:
    """The bound over all rows of all runs."""
    flops, rates = [], []
    for result in results:
        for row in result.rows:
            if row["status"] == OK:
                cores = result.machine["threads"] if row["device"] == "cpu" else 1
                flops += [row["peaks"]["flops"] * cores, row["operations"] / row["median"]]
                rates += [row["peaks"]["bytes"], row["bytes"] / row["median"]]
    return Roof(max(flops), max(rates))


def tell(text: str) -> None:
    """A line of progress: which case runs now."""
    _console.print(text, style="dim", highlight=False, markup=False)


def print_case(rows: Sequence[Row]) -> None:
    """The rows of one case as they come."""
    _print(_case(rows))


def print_report(results: Sequence[Results]) -> None:
    """All tables."""
    for section in _sections(results):
        _print(section)


def write_report(results: Sequence[Results], out: Path) -> list[Path]:
    """Writes ``report.md`` and the plots there are rows for.

    Args:
        results: of one or more runs.
        out: folder, created if need be.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = []
    for title, header, lines, notes in _sections(results):
        rule = ["---", *["---:"] * (len(header) - 1)]
        text += [f"### {title}", "", *("| " + " | ".join(line) + " |" for line in (header, rule, *lines)), ""]
        text += [*(f"- {note}" for note in notes), ""] if notes else []
    written = [out / "report.md"]
    with atomic_file(written[0]) as file:
        file.write("\n".join(text).encode())
    for name, draw in (("growth", _draw_growth), ("speedup", _draw_speedup), ("roofline", _draw_roofline)):
        figure = draw(results)
        if figure is not None:
            written.append(out / f"{name}.png")
            with atomic_file(written[-1]) as file:
                figure.savefig(file, format="png", dpi=150)
    return written


def title_of(row: Row) -> str:
    """A case in words."""
    sizes = ", ".join(f"{name} {size:,}" for name, size in row["sizes"].items())
    how = row["estimator"] + (f" tau {row['temperature']:g}" if row["temperature"] else "")
    state = row["state"]
    return f"{row['case']}: {sizes}, {how}; {state['nonzero']:.1%} of counts not 0, mean {state['rate']:.2f}"


def seconds_text(*seconds: float) -> str:
    """One time, or a range, with three digits and a unit, that of the last."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if seconds[-1] >= s), (1e-6, "us"))
    return "..".join(f"{value / scale:.3g}" for value in seconds) + f" {unit}"


class Section(NamedTuple):
    """A table: title, header, lines, and notes to stand below."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


_HEADER = ("contestant", "median", "20..80 %", "of ours", "MiB", "/ s", "roofline")


def _case(rows: Sequence[Row]) -> Section:
    """The rows of a case; the column "of ours" is the time over that of the compiled kernels."""
    measured = {row["contestant"]: row["median"] for row in rows if row["status"] == OK}
    ours = next((name for name in OURS if name in measured), None)
    lines, notes = [], []
    for row in rows:
        name, peak = label(row["contestant"]), "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        note = [row["note"]]
        if row["compile_seconds"] is not None:
            note.append(f"compiled in {row['compile_seconds']:.1f} s")
        if row["status"] == OK:
            ratio = f"{row['median'] / measured[ours]:.1f} x" if ours else ""
            spread = seconds_text(row["p20"], row["p80"])
            speed, bound = f"{row['per_second']:.2e}", f"{row['roofline']:.1%}"
            lines.append([name, seconds_text(row["median"]), spread, ratio, peak, speed, bound])
            if row["rounds"] < MIN_ROUNDS:
                note.append(f"rounds: {row['rounds']}")
        else:
            lines.append([name, "-", "-", "-", peak, "-", "-"])
            note.append(f"{row['status']}: {row['reason']}")
        if any(note):
            notes.append(f"{name}: {'; '.join(filter(None, note))}")
    return Section(title_of(rows[0]), _HEADER, lines, notes)


def _sections(results: Sequence[Results]) -> Iterator[Section]:
    """Every table."""
    for result in results:
        machine = result.machine
        where = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads, {machine['commit']}"
        ratios, others = _ratios(result.rows)
        if ratios:
            lines = [
                [case, *(f"{ratios[case, name]:.1f} x" if (case, name) in ratios else "" for name in others)]
                for case in dict.fromkeys(case for case, _ in ratios)
            ]
            header = ("case", *(label(name) for name in others))
            yield Section(f"How many times faster the compiled kernels are ({where})", header, lines)
        for case in dict.fromkeys(row["case"] for row in result.rows):
            yield _case([row for row in result.rows if row["case"] == case])
        slopes = _slopes(result.rows)
        if slopes:
            title = "Growth: slope of log time over log size, up to each size"
            yield Section(title, ("axis", "contestant", "slopes"), slopes)


def _ratios(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], float], list[str]]:
    """How much faster the compiled kernels are, (case, other) -> ratio, and the others; growth left out."""
    ratios = {
        (row["case"], other): ratio
        for row in rows
        if row["contestant"] in OURS and not row["axis"]
        for other, ratio in row["faster_than"].items()
    }
    return ratios, list(dict.fromkeys(other for _, other in ratios))


def _axis_value(row: Row) -> float:
    """Size along the axis of a growth row; of the firing rate, the share of counts that are not 0."""
    return float(row["state"]["nonzero"] if row["axis"] == "firing" else row["sizes"][row["axis"]])


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(axis, contestant) -> sorted (size, median)."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["axis"] and row["status"] == OK:
            curves.setdefault((row["axis"], row["contestant"]), []).append((_axis_value(row), row["median"]))
    return {key: sorted(points) for key, points in curves.items()}


def _slopes(rows: Sequence[Row]) -> list[list[str]]:
    """Where it bends: one slope for each pair of neighbouring sizes."""
    lines = []
    for (axis, contestant), points in _curves(rows).items():
        if len(points) > 1:
            sizes, times = np.log(np.array(points)).T
            slopes = np.diff(times) / np.diff(sizes)
            text = ", ".join(f"{b[0]:.3g}: {s:.2f}" for b, s in zip(points[1:], slopes, strict=True))
            lines.append([axis, label(contestant), text])
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _print(section: Section) -> None:
    table = Table(
        title=section.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(section.header):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in section.lines:
        table.add_row(*line)
    _console.print(table)
    for note in section.notes:
        _console.print(f"  {note}", style="dim", highlight=False, markup=False)


# What the sizes of a case are called.
_SIZES = {
    "B": "B inputs", "T": "T steps", "K": "K neurons", "M": "M pixels", "N": "N counts",
    "firing": "counts that are not 0, %",
}  # fmt: skip


def _where(results: Sequence[Results]) -> str:
    """The machines, for a title."""
    found = {f"{r.machine['gpu'] or r.machine['cpu']}, {r.machine['threads']} threads" for r in results}
    return "; ".join(sorted(found))


def _figure(width: float, height: float, title: str, results: Sequence[Results]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{title}\n{_where(results)}", fontsize=10)
    return figure


def _draw_growth(results: Sequence[Results]) -> Any:
    """Time against K, T, B and firing rate; None without growth rows."""
    rows = [row for row in _timed(results) if row["axis"]]
    curves = _curves(rows)
    axes_there = list(dict.fromkeys(axis for axis, _ in curves))
    if not axes_there:
        return None
    figure = _figure(4.0 * len(axes_there), 3.9, "Growth: seconds of a run of inference", results)
    for plot, axis in zip(figure.subplots(1, len(axes_there), squeeze=False)[0], axes_there, strict=True):
        for (of, contestant), points in curves.items():
            if of == axis:
                sizes, times = np.array(points).T
                plot.loglog(
                    100 * sizes if axis == "firing" else sizes, times, marker="o", markersize=3,
                    label=label(contestant),
                )  # fmt: skip
        fixed = next(row["sizes"] for row in rows if row["axis"] == axis)
        plot.set_title(", ".join(f"{name} {n:,}" for name, n in fixed.items() if name != axis), fontsize=9)
        plot.set_xlabel(_SIZES[axis])
        plot.set_ylabel("seconds")
        plot.legend(frameon=False)
    return figure


def _draw_speedup(results: Sequence[Results]) -> Any:
    """Bars: how much faster the compiled kernels are than each other, by case; None without such rows."""
    rows = _timed(results)
    ratios, others = _ratios(rows)
    if not ratios:
        return None
    cases = list(dict.fromkeys(case for case, _ in ratios))[::-1]
    sizes = {row["case"]: ", ".join(f"{name} {n:,}" for name, n in row["sizes"].items()) for row in rows}
    height = 1.2 + 0.16 * len(cases) * (len(others) + 1)
    figure = _figure(8.0, height, "How many times faster the compiled kernels are", results)
    plot = figure.subplots()
    bar = 1.0 / (len(others) + 1)
    for i, other in enumerate(others):
        bars = [(y, ratios[case, other]) for y, case in enumerate(cases) if (case, other) in ratios]
        places, values = np.array(bars).T
        plot.barh(places - i * bar, values, bar, label=f"than {label(other)}")
    middle = np.arange(len(cases)) - bar * (len(others) - 1) / 2
    plot.set_yticks(middle, [f"{case}\n{sizes[case]}" for case in cases], fontsize=7)
    plot.set_ylim(-1.0, len(cases) - 0.5)
    plot.set_xscale("log")
    plot.axvline(1.0, color="black", linewidth=0.8)
    plot.set_xlabel("times faster, 1 is equal")
    figure.legend(frameon=False, loc="outside lower center", ncols=len(others), fontsize=8)
    return figure


def _draw_roofline(results: Sequence[Results]) -> Any:
    """Operations per second against operations per byte, under what the machine can do; None without rows."""
    rows = _timed(results)
    if not rows:
        return None
    figure = _figure(7.0, 4.8, "Roofline: all cases, at their least operations and bytes", results)
    plot = figure.subplots()
    for contestant in dict.fromkeys(row["contestant"] for row in rows):
        own = [row for row in rows if row["contestant"] == contestant]
        plot.loglog(
            [row["operations"] / row["bytes"] for row in own],
            [row["operations"] / row["median"] for row in own],
            "o", markersize=4, label=label(contestant),
        )  # fmt: skip
    bound = roof(results)
    intensity = np.array(sorted((*plot.get_xlim(), bound.flops / bound.bytes)))  # straight lines in between
    plot.loglog(
        intensity, np.minimum(bound.flops, intensity * bound.bytes), "k-", linewidth=0.8,
        label=f"bound: {bound.flops / 1e9:,.0f} Gflop/s, {bound.bytes / 1e9:,.0f} GB/s",
    )  # fmt: skip
    plot.set_xlabel("operations per byte, as counted")
    plot.set_ylabel("operations per second")
    plot.legend(frameon=False)
    return figure


def _timed(results: Sequence[Results]) -> list[Row]:
    return [row for result in results for row in result.rows if row["status"] == OK]
