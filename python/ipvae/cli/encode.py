"""``ipvae encode``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from ..extras import explained
from .app import app, clear_errors
from .loading import machine
from .options import Model, Seed, Threads

with explained():
    import typer


@app.command()
@clear_errors
def encode(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="A .npy, .safetensors or .parquet file, or a folder of such, in the order of their names; "
            "else what --data of the other commands takes, whole."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for part-*.parquet; the same command goes on.")],
    key: Annotated[
        str | None, typer.Option(help="Tensor of a safetensors file, column of a Parquet file.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Inference steps; where left out 128, and 1 where an encoder infers."),
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="Average the counts of so many steps.")] = 1,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of a file.")] = 10_000,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows at a time; the result does not depend on it.")
    ] = 1000,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, each with its share of the threads; nor on this.")
    ] = 1,
    shard_neurons: Annotated[
        int,
        typer.Option(min=1, help="Processes that share the neurons of a model too wide for one device."),
    ] = 1,
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Encode a data set of any size into sparse codes in Parquet.

    Each row has its "index", the "neurons" that are not silent, and their "values", counts of the last step.

    Stopped anywhere, the same command goes on; files are the same for any workers, batches and stops.

    [bold]Example:[/] ipvae encode run activations.npy --out codes --workers 2

    [bold]Next:[/] python -c "from ipvae.corpus import read_codes; print(read_codes('codes').shape)"
    """
    machine(threads)
    from ..corpus import encode_corpus

    plan = encode_corpus(
        model, data, out, key=key, steps=steps, last=last, seed=seed, batch_size=batch_size,
        part_rows=part_rows, workers=workers, shard_neurons=shard_neurons, progress=sys.stderr.isatty(),
    )  # fmt: skip
    size = sum(plan.path(part).stat().st_size for part in range(plan.parts))
    dense = 4 * plan.rows * plan.n_latents
    typer.echo(
        f"{plan.rows:,} rows, {plan.parts:,} files in {out}, {size / 2**20:.1f} MiB; dense float32 would "
        f"take {dense / 2**20:.1f}"
    )
