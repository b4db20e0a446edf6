"""``ipvae eval``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from ..extras import explained
from .app import app, clear_errors
from .loading import chosen, load_data, machine, model_for, part_of, readout_data
from .options import (
    Backend,
    Data,
    DataDir,
    Device,
    KernelCommand,
    Model,
    Precision,
    Seed,
    Split,
    Steps,
    Threads,
)

with explained():
    import typer

SOLVERS = ("fista", "lasso", "omp")


@app.command("eval", cls=KernelCommand)
@clear_errors
def evaluate(
    model: Model,
    data: Data = "patches",
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.TEST,
    steps: Steps = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples at a time; the result does not depend on it.")
    ] = 200,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate the first so many samples.")] = None,
    readout: Annotated[
        bool, typer.Option("--readout", help="Logistic regression from latents to labels.")
    ] = False,
    readout_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Fit it to the first so many training samples; all where left out."),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=lambda: SOLVERS,
            help="Code the inputs with the same (linear) dictionary by a solver too: fista or lasso, with "
            "--penalty, or omp, with --nonzero. May be repeated.",
        ),
    ] = None,
    penalty: Annotated[
        float | None, typer.Option(help="Weight of the L1 norm; of an LCA, its own where left out.")
    ] = None,
    nonzero: Annotated[int | None, typer.Option(min=1, help="Neurons of an input, of omp.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all curves and measures here.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Measure a model as the paper does: hard spike counts, a thousand steps, held-out data.

    Prints R2, squared error, silent neurons, spikes, KL and -ELBO as inference goes on.

    [bold]Examples:[/]

    ipvae eval demo/model --data patches

    ipvae eval digits --data digits --readout --json digits.json

    [bold]Next:[/] ipvae infer digits --data digits --record counts --out spikes.npz
    """
    place = machine(threads, backend, device, matmul_precision)
    splits = load_data(data, data_dir, split)
    net = model_for(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, labels = part_of(splits, split, limit)
    fit = readout_data(splits, split.value, data, readout_limit) if readout else None

    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.evaluate import steps_of

    steps = steps_of(net, steps)
    marks = marks_up_to(steps)
    if fit is not None:
        typer.echo(
            f"The readout infers {len(fit[0]):,} training samples as well; --readout-limit shortens that."
        )
    with tqdm(total=len(x), desc="inference", unit="sample") as bar:
        result = run(
            net, x, steps, batch_size=batch_size, marks=marks, labels=None if fit is None else labels,
            train=fit, seed=seed, backend=backend, progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    title = f"{model} on {chosen(splits, split, x, data)}"
    print_evaluation(result, marks, title, iterative=net.iterative)
    solved = {name: _solved(net, x, name, penalty, nonzero) for name in solver or ()}
    if json_file is not None:
        about = {"model": str(model), "data": splits.about, "split": split.value}
        _write_json(json_file, {**about, **result.to_dict(), **({"solvers": solved} if solved else {})})
        typer.echo(f"All curves in {json_file}")


def _solved(net: Any, x: Any, solver: str, penalty: float | None, nonzero: int | None) -> dict[str, Any]:
    """Measures of a solver on the model's dictionary, which are printed too."""
    import dataclasses

    from ..evaluation.sparse_coding import sparse_codes

    if solver != "omp" and penalty is None:
        penalty = getattr(net.config, "penalty", None)
    how = {"n_nonzero": nonzero} if solver == "omp" else {"penalty": penalty}
    found = sparse_codes(net, x, solver, **how)
    energy = "" if found.penalised is None else f", energy {found.penalised:.4f}"
    typer.echo(
        f"The same dictionary by {solver}: R2 {found.r2:.4f}, squared error {found.squared_error:.3f}, "
        f"silent {100 * found.zeros:.1f} %{energy}; {found.seconds:.1f} s"
    )
    values = dataclasses.asdict(found)
    del values["codes"]
    return {**values, **how}


def marks_up_to(steps: int) -> list[int]:
    """1, 16, 64, 256, ... and the last step."""
    powers = [4**i for i in range(2, 16)]
    return sorted({mark for mark in (1, *powers) if mark < steps} | {steps})


def print_evaluation(result: Any, marks: list[int], title: str, *, iterative: bool = True) -> None:
    """Prints the measures at the marks as a table, and when R2 was reached."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold")
    names = ["step", "R2", "squared error", "silent", "spikes", "KL", "-ELBO"]
    for name in [*names, "accuracy"] if result.readout else names:
        table.add_column(name, justify="right")
    for mark in marks:
        i = mark - 1
        row = [
            f"{mark:,}", f"{result.r2[i]:.4f}", f"{result.squared_error[i]:.3f}",
            f"{100 * result.zeros[i]:.1f} %", f"{result.spikes[i]:.1f}",
            shown(result.kl[i], ".4f"), shown(result.nelbo[i], ".2f"),
        ]  # fmt: skip
        if result.readout:
            row.append(f"{100 * result.readout[mark].accuracy:.2f} %")
        table.add_row(*row)
    console = Console()
    console.print(table)
    if not iterative:
        console.print("An encoder infers in one step: there is no convergence to tell of.", highlight=False)
    elif result.r2[-1] > 0:
        console.print(
            f"R2 is at 95 % of its last value from step {result.steps_to(0.95):,}, at 99 % from step "
            f"{result.steps_to(0.99):,}.",
            highlight=False,
        )
    if result.r2.max() > result.r2[-1] + 0.005:
        best = int(result.r2.argmax())
        console.print(f"R2 was highest at step {best + 1:,}: {result.r2[best]:.4f}.", highlight=False)
    speed = result.summary()["sample_steps_per_second"]
    console.print(f"{speed:,.0f} sample-steps per second.", highlight=False)


def shown(value: float, form: str) -> str:
    """A measure, or "-" where it does not apply."""
    return "-" if math.isnan(value) else format(value, form)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    import json

    from ..checkpoint import atomic_file

    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")
