"""``ipvae bench``: measure; ``ipvae bench state``: train what that needs; ``ipvae bench report``: show it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from ipvae.cli import clear_errors

app = typer.Typer(
    name="bench", add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


class Suite(str, Enum):
    """Sets of cases."""

    QUICK = "quick"
    MAIN = "main"
    GROWTH = "growth"
    FULL = "full"


class Device(str, Enum):
    """Where to run."""

    CPU = "cpu"
    CUDA = "cuda"


StateDir = Annotated[
    Path | None, typer.Option(help="Where trained states are kept; the user's cache where left out.")
]
Updates = Annotated[
    int | None,
    typer.Option(min=1, help="Optimiser steps behind the states; 200 for quick, 3,000 for the others."),
]


@app.callback(invoke_without_command=True)
@clear_errors
def bench(
    context: typer.Context,
    suite: Annotated[
        Suite, typer.Option(help="quick: two minutes; main: the table of the README; growth; full: both.")
    ] = Suite.QUICK,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case, or those with this in their name; repeatable.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="And here, as a flat table.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A checkout of hadivafaii/IterativeVAE."),
    ] = None,
    device: Device = Device.CPU,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Backend of ipvae_kernels to measure; repeatable; left out: that of the device."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out: baseline, compiled, graphed, jax_scan, authors or accelerated; repeatable."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.0, help="Time for each case; 5 for quick, 30 for the others where left out."),
    ] = None,
    memory: Annotated[
        bool | None,
        typer.Option(help="Measure peak memory, a process per row; not for quick where left out."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice where left out.")
    ] = None,
    updates: Updates = None,
    state_dir: StateDir = None,
) -> None:
    """Time the kernels against plain PyTorch, torch.compile, JAX and the authors' code, in turns.

    Each contestant must first show that it computes the same thing. A row says why where it has no time.

    [bold]Examples:[/]

    ipvae bench

    ipvae bench --suite full --json rows.json --reference IterativeVAE

    [bold]Next:[/] ipvae bench report rows.json
    """
    if context.invoked_subcommand is not None:
        return
    import torch

    import ipvae_kernels

    from . import cases, contestants, measure, report
    from .problem import Settings
    from .states import UPDATES, cache_dir

    quick = suite is Suite.QUICK and not case
    backends = tuple(backend or [device.value])
    for name in backends:
        if name not in ipvae_kernels.backends():
            known = ", ".join(ipvae_kernels.backends())
            raise ValueError(f"--backend: expected one of {known}; found {name!r}")
    for name in without or ():
        if name not in contestants.GPU_PORTS:
            raise ValueError(f"--without: expected one of {', '.join(contestants.GPU_PORTS)}; found {name!r}")
    if device is Device.CUDA and not torch.cuda.is_available():
        raise ValueError("--device: torch finds no CUDA device")
    for file in (json_file, csv_file):
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f"no folder {file.parent}")
    settings = Settings(
        device=device.value, threads=threads or torch.get_num_threads(), backends=backends,
        seconds=(5.0 if quick else 30.0) if seconds is None else seconds,
        updates=updates or UPDATES["quick" if quick else "full"],
        state_dir=(state_dir or cache_dir()).absolute(),
        reference=None if reference is None else reference.absolute(),
        memory=not quick if memory is None else memory, without=tuple(without or ()),
    )  # fmt: skip
    results = report.Results(measure.machine(settings), [])
    for rows in measure.run(cases.select(suite.value, case or ()), settings, report.tell):
        report.print_case(rows)
        results.rows.extend(rows)
        # After every case, so that an interrupted run keeps what it has.
        if json_file is not None:
            results.to_json(json_file)
        if csv_file is not None:
            results.to_csv(csv_file)


@app.command()
@clear_errors
def state(updates: Updates = None, state_dir: StateDir = None) -> None:
    """Train the states that cases run on, where they are not there yet: minutes.

    [bold]Example:[/] ipvae bench state
    """
    from . import report
    from .states import STATES, UPDATES, cache_dir, load, nonzero

    for name, spec in STATES.items():
        if spec.trained:
            found = load(name, updates or UPDATES["full"], (state_dir or cache_dir()).absolute(), report.tell)
            share, rate = nonzero(found.model, found.x[:200], found.model.config.t_train)
            typer.echo(
                f"{name}: {spec.neurons} neurons, {spec.pixels} pixels; {share:.1%} of counts not 0, "
                f"mean count {rate:.2f}"
            )


@app.command()
@clear_errors
def report(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="JSON of ipvae bench.")],
    out: Annotated[Path | None, typer.Option(help="Folder for report.md and the plots.")] = None,
) -> None:
    """Print tables of what was measured, and draw plots: growth, speed-up, roofline.

    [bold]Example:[/] ipvae bench report rows.json --out report
    """
    from . import report as show

    results = [show.Results.from_json(file) for file in files]
    show.print_report(results)
    if out is not None:
        for path in show.write_report(results, out):
            typer.echo(str(path))
