"""``ipvae plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..extras import explained
from .app import app, clear_errors
from .loading import chosen, load_data, machine, model_for, part_of
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


@app.command(cls=KernelCommand)
@clear_errors
def plot(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the figures; those of the same names are replaced.")],
    data: Data = "patches",
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.TEST,
    steps: Steps = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many samples.")] = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Draw what a model learned and does: features, convergence, spikes, reconstructions, training curves.

    Training curves need the log of the run, which lies beside the model where 'ipvae train' left it.

    [bold]Example:[/] ipvae plot demo/model --data patches --out figures

    [bold]Next:[/] ipvae eval demo/model --data patches
    """
    place = machine(threads, backend, device, matmul_precision)
    splits = load_data(data, data_dir, split)
    net = model_for(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, _ = part_of(splits, split, limit)

    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from ..evaluation.evaluate import evaluate as run
    from ..figures import draw
    from ..training.history import read_history

    folder = model if model.is_dir() else model.parent
    histories = (read_history(run_dir) for run_dir in (folder, folder.parent))
    with tqdm(total=len(x), desc="inference", unit="sample") as bar:
        result = run(
            net, x, steps, batch_size=200, marks=(), seed=seed, backend=backend,
            progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    about = chosen(splits, split, x, data)
    history = next(filter(None, histories), {})
    for path in draw(net, x, result.r2, result.zeros, history, out, about=about, seed=seed, backend=backend):
        typer.echo(str(path))
