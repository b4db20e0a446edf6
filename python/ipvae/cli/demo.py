"""``ipvae demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..extras import explained
from .app import app, clear_errors
from .loading import machine
from .options import Seed, Threads

with explained():
    import typer


@app.command()
@clear_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier demo's is replaced.")] = Path(
        "demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; the recipe's where left out.")
    ] = None,
    seed: Seed = 0,
    eval_steps: Annotated[int, typer.Option(min=1, help="Inference steps of the evaluation.")] = 1000,
    latents: Annotated[int | None, typer.Option(min=1, help="Neurons; the recipe's where left out.")] = None,
    timing: Annotated[bool, typer.Option(help="Time training and inference against plain PyTorch.")] = True,
    threads: Threads = None,
) -> None:
    """Train on natural images, see what was learned, and time it: a few minutes on two CPU cores.

    Leaves a model, a checkpoint, metrics.json and five figures. Needs no download.

    [bold]Example:[/] ipvae demo --out demo

    [bold]Next:[/] ipvae eval demo/model --data patches
    """
    machine(threads)
    from ..experiments.demo import run

    run(
        out, steps=steps, seed=seed, n_latents=latents, eval_steps=eval_steps,
        timing_seconds=15.0 if timing else 0.0,
    )  # fmt: skip
