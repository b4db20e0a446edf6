"""The demo: train an iP-VAE on natural images, look at what it learned, and time it against plain PyTorch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ipvae_kernels.info import info

from ..checkpoint import atomic_file
from ..data import DataSplits, load_dataset
from ..evaluation.evaluate import evaluate
from ..evaluation.metrics import r2_from_error, total_variation
from ..extras import explained
from ..figures import FIGURES, draw
from ..models.config import IPVAEConfig
from ..models.iterative import IterativeVAE
from ..models.poisson import IPVAE
from ..training.config import TrainConfig
from ..training.folder import alone_in
from ..training.recipes import DEMO_MODEL, DEMO_TRAIN
from ..training.run import train
from .timing import Timing, compare

with explained():
    from rich.console import Console
    from rich.table import Table
    from tqdm.auto import tqdm  # type: ignore[import-untyped]


EVAL_STEPS = 1000
MARKS = (1, 16, 64, 128, 256, 1000)
# Step -> (R2, share of silent neurons) in the paper, for van Hateren patches and 120,000 updates.
PUBLISHED = {
    16: (0.708, 0.369),
    64: (0.813, 0.574),
    128: (0.828, 0.688),
    256: (0.830, 0.746),
    1000: (0.830, 0.773),
}
# What tells the demo's own folder from any other, and what of it a new run replaces.
METRICS = "metrics.json"
FOLDERS = ("model", "checkpoints", "logs")
BY = "ipvae demo"
# Held for the whole of a demo; that of the training inside is another one.
LOCK = ".demo.lock"


class Mark(TypedDict):
    """Measures of the held-out patches at one inference step."""

    step: int
    r2: float
    r2_standard_error: float
    zeros: float
    spikes: float


def run(
    out: str | PathLike[str],
    *,
    steps: int | None = None,
    seed: int = 0,
    n_latents: int | None = None,
    eval_steps: int = EVAL_STEPS,
    data: DataSplits | None = None,
    timing_seconds: float = 15.0,
    progress: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains, evaluates, draws and times, and leaves everything in a folder.

    Args:
        out: the folder; created, or an earlier demo's, whose files are replaced.
        steps: optimizer steps; None: those of the recipe.
        seed: of the weights, the order of the data and the noise.
        n_latents: K; None: that of the recipe.
        eval_steps: inference steps of the evaluation.
        data: images with a test set; None: natural-image patches.
        timing_seconds: about how long the comparison with plain PyTorch may take; 0 leaves it out.
        progress: draw progress bars.
        console: where to print; None: standard output.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        FileExistsError: `out` is not empty and not a demo's.
        TrainingError: another demo, or a training, runs in `out`.
    """
    out = Path(out)
    _refuse_foreign(out)  # before a lock lies in it
    with alone_in(out, LOCK):
        return _run(
            out, steps, seed, n_latents, eval_steps, data, timing_seconds, progress, console or Console()
        )


def _run(
    out: Path,
    steps: int | None,
    seed: int,
    n_latents: int | None,
    eval_steps: int,
    data: DataSplits | None,
    timing_seconds: float,
    progress: bool,
    console: Console,
) -> dict[str, Any]:
    """`run` in a folder that no other demo touches meanwhile."""
    model_config, train_config = _configs(steps, seed, n_latents)  # refused before anything is removed
    started = time.perf_counter()
    with alone_in(out):
        _claim(out)
    console.print("[bold]1 of 4[/]  Data: whitening the natural images that come with scikit-learn")
    splits = load_dataset("patches", seed=seed) if data is None else data
    if splits.shape != model_config.shape:
        model_config = dataclasses.replace(
            model_config, n_inputs=splits.train.shape[1], input_shape=splits.shape
        )
    console.print(splits.about, style="dim", highlight=False, markup=False)
    console.print(f"[bold]2 of 4[/]  Training: {_describe(model_config, train_config)}", highlight=False)
    model = IPVAE(model_config)
    result = train(model, splits, train_config, out, accelerator="cpu", progress=progress)
    console.print(f"[bold]3 of 4[/]  Inference: {eval_steps:,} steps on {len(splits.test)} held-out patches")
    marks, curves = measure(model, splits.test, eval_steps, seed=seed, progress=progress)
    draw(
        model, splits.test, curves["r2"], curves["zeros"], result.history, out, about="held-out patches",
        seed=seed,
    )  # fmt: skip
    timings: list[Timing] = []
    if timing_seconds > 0:
        console.print(
            "[bold]4 of 4[/]  Speed: the same loop in plain PyTorch (experiments/baseline.py), in turns"
        )
        timings = compare(model, splits.train[: train_config.batch_size], timing_seconds, progress=progress)
    metrics: dict[str, Any] = {
        "by": BY,
        "complete": True,
        "data": splits.about,
        "model": model_config.to_dict(),
        "train": train_config.to_dict(),
        "training_seconds": result.seconds,
        "total_seconds": time.perf_counter() - started,
        "marks": marks,
        "curves": {name: curve.tolist() for name, curve in curves.items()},
        "speed": timings,
        "installation": info(),
    }
    _write_metrics(out, metrics)
    report(metrics, out, console)
    return metrics


def _configs(steps: int | None, seed: int, n_latents: int | None) -> tuple[IPVAEConfig, TrainConfig]:
    """The demo's recipe; None: as it stands there."""
    neurons = DEMO_MODEL.n_latents if n_latents is None else n_latents
    max_steps = DEMO_TRAIN.max_steps if steps is None else steps
    return (
        dataclasses.replace(DEMO_MODEL, seed=seed, n_latents=neurons),
        dataclasses.replace(DEMO_TRAIN, seed=seed, max_steps=max_steps),
    )


def measure(
    model: IterativeVAE, x: Tensor, steps: int, *, seed: int = 0, progress: bool = True
) -> tuple[list[Mark], dict[str, np.ndarray[Any, Any]]]:
    """R2 with its standard error over samples, and sparsity, at `MARKS` and the last step; and all curves.

    Args:
        model: with either cell.
        x: [N, M].
        steps: of inference.
        seed: of the noise.
        progress: draw a progress bar.

    Returns:
        The marks, and R2, zeros and spikes of every step.
    """
    batch = max(1, -(-len(x) // 20))
    with tqdm(total=len(x), desc="inference", unit="patch", disable=not progress) as bar:
        result = evaluate(
            model, x, steps, batch_size=batch, marks=(), seed=seed,
            progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    marks: list[Mark] = []
    state, done, variation = None, 0, total_variation(x)
    for mark in sorted({m for m in MARKS if m <= steps} | {steps}):
        # The same noise as above, this time patch by patch at the mark alone.
        if mark - 1 > done:
            state = model.infer(x, mark - 1 - done, state=state, seed=seed).state
        state, records = model.infer(x, 1, state=state, seed=seed, record=("squared_error",))
        done = mark
        r2 = r2_from_error(records["squared_error"][0], variation).double()
        marks.append(
            Mark(
                step=mark, r2=float(r2.mean()), r2_standard_error=float(r2.std() / len(x) ** 0.5),
                zeros=float(result.zeros[mark - 1]), spikes=float(result.spikes[mark - 1]),
            )
        )  # fmt: skip
    return marks, {"r2": result.r2, "zeros": result.zeros, "spikes": result.spikes}


def report(metrics: dict[str, Any], out: Path, console: Console) -> None:
    """Prints the tables, the verdict and what to try next."""
    config, recipe, marks = metrics["model"], metrics["train"], metrics["marks"]
    console.print(_convergence_table(marks, recipe["max_steps"]))
    console.print(verdict(marks), highlight=False)
    if metrics["speed"]:
        kernels = metrics["installation"].get("CPU kernels", "no compiled kernels")
        sizes = (
            f"{config['n_inputs']} pixels, {config['n_latents']} neurons, "
            f"1 or {torch.get_num_threads()} threads, whichever suits each; kernels: {kernels.split(';')[0]}"
        )
        console.print(_speed_table(metrics["speed"], sizes))
    minutes = metrics["total_seconds"] / 60
    console.print(f"\nTrained in {metrics['training_seconds']:.0f} s; all of it took {minutes:.1f} min.")
    console.print(f"Everything is in {out}/:", highlight=False)
    console.print(f"  model/  checkpoints/last.ckpt  logs/  {METRICS}", highlight=False)
    console.print(f"  {'  '.join(FIGURES)}", highlight=False)
    console.print("\n[bold]Next[/]", highlight=False)
    for command, what in (
        (f"ipvae eval {out}/model --data patches", "the full table, and measures as JSON"),
        (f"ipvae infer {out}/model --data patches --record counts --out spikes.npz", "spikes to look at"),
        (f"ipvae plot {out}/model --data patches --out figures", "the figures, of other data or more steps"),
        ("ipvae train --data digits --out run", "your own model; --help shows the recipes"),
    ):
        console.print(f"  {command}", soft_wrap=True, highlight=False)
        console.print(f"      {what}", style="dim", highlight=False)


def verdict(marks: Sequence[Mark]) -> str:
    """Whether inference went on improving beyond the steps it was trained for, said plainly."""
    by_step = {mark["step"]: mark for mark in marks}
    last = marks[-1]
    if 16 not in by_step or last["step"] == 16:
        return f"R2 at step {last['step']}: {last['r2']:.3f}."
    first, change = by_step[16], last["r2"] - by_step[16]["r2"]
    numbers = f"R2 {first['r2']:.3f} at step 16, {last['r2']:.3f} at step {last['step']:,}"
    if change < 0:
        return (
            f"[bold]Note:[/] R2 is lower at the end than at step 16 ({numbers}): inference of this model "
            "does not go on improving beyond the steps it was trained for."
        )
    sparser = " and sparser" if last["zeros"] > first["zeros"] else ""
    return f"Inference goes on beyond the steps of training: better{sparser} ({numbers})."


def _convergence_table(marks: Sequence[Mark], updates: int) -> Table:
    table = Table(title="\nHeld-out patches", title_justify="left", title_style="bold")
    for name in ("step", "R2", "silent", "spikes", "paper* R2", "paper* silent"):
        table.add_column(name, justify="right", no_wrap=True)
    for mark in marks:
        published = PUBLISHED.get(mark["step"])
        table.add_row(
            f"{mark['step']:,}", f"{mark['r2']:.3f} ± {mark['r2_standard_error']:.3f}",
            f"{100 * mark['zeros']:.1f} %", f"{mark['spikes']:.1f}",
            f"{published[0]:.3f}" if published else "", f"{100 * published[1]:.1f} %" if published else "",
        )  # fmt: skip
    table.caption = (
        f"R2 ± standard error over patches, share of silent neurons, spikes per patch; {updates:,} updates.\n"
        "* Another data set (van Hateren), 120,000 updates: for orientation, not for comparison."
    )
    table.caption_justify = "left"
    return table


def _speed_table(timings: Sequence[Timing], sizes: str) -> Table:
    table = Table(title="\nSpeed on this machine", title_justify="left", title_style="bold")
    for name, justify in (
        ("", "left"),
        ("batch", "right"),
        ("plain PyTorch", "right"),
        ("ipvae", "right"),
        ("faster", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for t in timings:
        table.add_row(
            t["what"], str(t["batch"]), f"{1e3 * t['plain_seconds']:.1f} ms",
            f"{1e3 * t['ours_seconds']:.1f} ms", f"{t['speedup']:.1f} x",
        )  # fmt: skip
    repeats = min(t["repeats"] for t in timings)
    table.caption = (
        f"Medians of at least {repeats} runs in turns; {sizes}.\n"
        "* The released model's estimator with its cut of the arrivals, temperature 0.1."
    )
    table.caption_justify = "left"
    return table


def _describe(model: IPVAEConfig, train: TrainConfig) -> str:
    return (
        f"{model.n_latents} neurons, {model.t_train} inference steps, {train.max_steps:,} updates of "
        f"{train.batch_size} patches, beta {train.beta_outer:g}, estimator {model.estimator}"
    )


def _refuse_foreign(out: Path) -> None:
    """Refuses a folder that holds anything but a demo, or a file."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: expected a folder, found a file")
    if out.is_dir() and any(not path.name.startswith(LOCK) for path in out.iterdir()):
        try:
            own = json.loads((out / METRICS).read_text()).get("by") == BY
        except (OSError, ValueError, AttributeError):
            own = False
        if not own:
            raise FileExistsError(f"{out}: not empty and not an earlier demo; give another folder with --out")


def _claim(out: Path) -> None:
    """Makes the folder the demo's, and empties it of an earlier demo's files."""
    _write_metrics(out, {"by": BY, "complete": False})
    for name in FIGURES:
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)


def _write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    with atomic_file(out / METRICS) as file:
        file.write(json.dumps(metrics, indent=1).encode() + b"\n")
