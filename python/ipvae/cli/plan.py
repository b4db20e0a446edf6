"""``ipvae plan``."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..extras import explained
from .app import app, clear_errors
from .loading import machine

with explained():
    import typer

if TYPE_CHECKING:
    from ..planning import Costs, Layout

GPU_PROFILE, CPU_PROFILE = "h100", "epyc-avx512"


@app.command()
@clear_errors
def plan(
    features: Annotated[int, typer.Option(min=1, help="Neurons K of the dictionary.")] = 65_536,
    inputs: Annotated[int, typer.Option(min=1, help="Inputs M.")] = 768,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many GPUs there are.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many processes on a CPU, a thread each; 1 without --gpus.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of all devices.")] = 1024,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps of a training update.")] = 16,
    rate: Annotated[float, typer.Option(min=0.0, help="Mean count of a neuron and step.")] = 0.01,
    profile: Annotated[
        str | None,
        typer.Option(help="Constants of a device: h100 (from its data sheet), epyc-avx512, or a file."),
    ] = None,
    fit: Annotated[
        Path | None,
        typer.Option(help="First measure this machine's CPU, ten minutes, and write its profile."),
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="Draw time against features, to sizes beyond what was measured.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain values.")] = False,
) -> None:
    """Say what a run will take, on one device or many, before it is started.

    Every layout "data x model" of the devices: rows of a batch over some, neurons over others.

    [bold]Examples:[/]

    ipvae plan --features 1000000 --inputs 2304 --gpus 8

    ipvae plan --features 131072 --inputs 256 --batch 8 --processes 2 --curve curve.png
    """
    machine(None)
    from ..planning import Costs, layouts
    from ..planning.layouts import advice

    if gpus is not None and processes is not None:
        raise ValueError(f"--processes: expected none beside --gpus {gpus}, found {processes}")
    if fit is not None:
        profile = str(_fitted(fit))
    costs = Costs.load(profile or (CPU_PROFILE if gpus is None else GPU_PROFILE))
    devices = gpus or processes or 1
    per_host = 1 if gpus is not None else devices
    found = layouts(costs, features, inputs, batch, devices, steps=steps, rate=rate, per_host=per_host)
    if curve is not None:
        _draw(curve, costs, inputs, batch, devices, steps, rate, per_host)
    said = advice(found, batch)
    if as_json:
        values = [dataclasses.asdict(layout) for layout in found]
        typer.echo(json.dumps({"layouts": values, "advice": said, "profile": costs.name}, indent=1))
        return
    off = max(map(abs, costs.errors), default=math.inf)
    source = "from its data sheet, nothing measured"
    if costs.source == "measured":
        source = f"measured {costs.date}, within {100 * off:.0f} % of {len(costs.checked)} other runs"
    typer.echo(
        f"{costs.name} ({source}); K {features:,}, M {inputs:,}, B {batch:,}, T {steps}, rate {rate:g}"
    )
    for row in _rows(found, batch):
        typer.echo("  ".join(cell.rjust(width) for cell, width in zip(row, _WIDTHS, strict=True)))
    typer.echo(said)
    if any(layout.predicted for layout in found):
        typer.echo("* outside of what was measured: a prediction")


_WIDTHS = (12, 12, 13, 12, 12, 12)


def _rows(found: list[Layout], batch: int) -> list[tuple[str, ...]]:
    def size(value: float, fits: bool) -> str:
        return f"{value / 2**30:.2f} GiB" + ("" if fits else "!")

    head = ("data x model", "a step", "rows a second", "an update", "memory", "in training")
    rows = [head]
    for layout in found:
        mark = "*" if layout.predicted else ""
        rows.append((
            layout.name, f"{1e3 * layout.step:.3g} ms{mark}", f"{batch / layout.step:,.0f}",
            f"{1e3 * layout.update:.3g} ms", size(layout.bytes, layout.fits),
            size(layout.training_bytes, layout.training_fits),
        ))  # fmt: skip
    return [*rows, *([] if all(x.training_fits for x in found) else [("", "", "", "", "", "! no room")])]


def _fitted(path: Path) -> Path:
    """Measures this machine and writes its profile."""
    import sys

    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from ..planning.fit import ALONE, CHECKED, SHARED, fit, measure_all, measure_training

    def progress(runs: list[Any]) -> Any:
        return tqdm(runs, desc="measuring", unit="run", disable=not sys.stderr.isatty())

    runs = [*ALONE, *SHARED]
    seconds = measure_all([*runs, *CHECKED], progress)
    costs = fit(runs, seconds[: len(runs)], path.stem, backward=measure_training(ALONE[4]), memory=_memory())
    checked = tuple(zip(CHECKED, seconds[len(runs) :], strict=True))
    dataclasses.replace(costs, checked=checked).save(path)
    return path


def _memory() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None


def _draw(
    path: Path, costs: Costs, inputs: int, batch: int, devices: int, steps: int, rate: float, per_host: int
) -> None:
    from ..checkpoint import atomic_file
    from ..planning.curves import curves

    figure: Any = curves(costs, inputs, batch, devices, steps=steps, rate=rate, per_host=per_host)
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix.lstrip(".") or "png")
