"""``ipvae reproduce``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from ..extras import explained
from .app import app, clear_errors
from .loading import machine
from .options import Threads

with explained():
    import typer


@app.command()
@clear_errors
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Of an experiment; --list shows them.")] = None,
    preset: Annotated[str, typer.Option(help="quick (a minute, on digits), short or long.")] = "short",
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0 on.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of trials and results; the same goes on.")] = Path(
        "reproduced"
    ),
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the files of MNIST lie, or are downloaded to.")
    ] = None,
    fashion_dir: Annotated[
        Path | None, typer.Option(help="Where the files of Fashion-MNIST lie; of ood and transfer.")
    ] = None,
    emnist_dir: Annotated[
        Path | None, typer.Option(help="Where the files of EMNIST's letters lie; of ood.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trials at a time, each with its share of the threads.")
    ] = 1,
    list_all: Annotated[bool, typer.Option("--list", help="Show the experiments and their time.")] = False,
    threads: Threads = None,
) -> None:
    """Run an experiment of the paper, or one beyond it: table, figure and answers.

    Each trial has a file of its own: the same command goes on where it was stopped, and repeats nothing.
    Experiments share trainings.

    [bold]Examples:[/]

    ipvae reproduce --list

    ipvae reproduce convergence --preset quick --out quick

    [bold]Next:[/] ipvae train --data mnist --drive expected --out run
    """
    machine(threads)
    from ..experiments.catalogue import EXPERIMENTS
    from ..experiments.reproduce import reproduce as run
    from ..experiments.trials import Workshop

    if list_all or name is None:
        for experiment in EXPERIMENTS.values():
            times = ", ".join(f"{preset} {minutes:g} min" for preset, minutes in experiment.minutes.items())
            typer.echo(f"{experiment.name}: {experiment.question} A seed takes about: {times}.")
        return
    if name not in EXPERIMENTS:
        raise ValueError(f"name: expected one of {', '.join(EXPERIMENTS)}, found {name!r}")
    experiment = EXPERIMENTS[name]
    _present("--fashion-dir", "fashion-mnist", fashion_dir)
    _present("--emnist-dir", "emnist-letters", emnist_dir)
    folders = {"mnist": data_dir, "fashion-mnist": fashion_dir, "emnist-letters": emnist_dir}
    workshop = Workshop(out, folders=folders, progress=False)
    values = run(
        experiment, workshop, preset, seeds, jobs=jobs, command=_command(), progress=sys.stderr.isatty()
    )
    typer.echo((out / f"{name}.md").read_text())
    typer.echo(f"{len(values['results'])} rows in {out / name}.json, .md and, where it has a figure, .png")


def _present(option: str, name: str, folder: Path | None) -> None:
    """Refuses a folder that lacks the set it is given for, before anything is trained."""
    from ..experiments.sets import load_set

    try:
        if folder is not None:
            load_set(name, folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option}: {error}") from error


def _command() -> str:
    """What was typed."""
    return shlex.join(["ipvae", *sys.argv[1:]])
