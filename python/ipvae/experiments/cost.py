"""``ipvae reproduce cost``: spikes and synaptic operations of an image against dense multiply-adds."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..evaluation.evaluate import evaluate
from ..models.amortised import AmortisedVAE
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, ORANGE, new_figure, set_heading, with_grid
from .mnist import AMORTISED, CLAMP, UPDATES, inference_steps
from .reproduce import Claim, Experiment, Report, Results, above, bar, ended, first_found, found
from .trials import Trial, Workshop

# Energy of 32-bit floating point operations in a 45 nm process at .9 V, picojoules, without memory: Horowitz,
# "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9.
PICOJOULES = {"add": 0.9, "multiply-add": 4.6}
# label: model, fields, share of the updates as in `mnist`.
ROWS: dict[str, tuple[str, dict[str, Any], float]] = {
    "iP-VAE": ("ip-vae", CLAMP, 1.0),
    "iP-VAE, exact natural gradient": ("ip-vae", {"drive": "expected", **CLAMP}, 1.0),
    "P-VAE, linear encoder": ("p-vae", {}, AMORTISED),
    "P-VAE, MLP encoder": ("p-vae", {"encoder": "mlp"}, 6.0),
    "P-VAE, convolutional encoder": ("p-vae", {"encoder": "conv"}, 2.0),
}
QUICK = 60
TIMED = 3


def trials(preset: str, seeds: int) -> list[Trial]:
    """Trainings are those of `mnist` where it has them."""
    quick = preset == "quick"
    options: dict[str, Any] = {
        "images": 100 if quick else 500, "marks": [1, 8, 32] if quick else [1, 4, 16, 64, 256, 1000]
    }  # fmt: skip
    shown = [label for label in ROWS if not quick or label != "P-VAE, convolutional encoder"]
    return [
        Trial(
            label, ROWS[label][0], "digits" if quick else "mnist", seed, ROWS[label][1],
            {"max_steps": QUICK if quick else round(ROWS[label][2] * UPDATES[preset])}, options,
        )
        for label in shown for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2, spikes, operations, energy and time of an image, after some numbers of steps."""
    x = workshop.data(trial.data).test[: trial.options["images"]]
    marks = sorted({inference_steps(model, mark) for mark in trial.options["marks"]})
    result = evaluate(model, x, marks[-1], marks=())
    spikes = result.spikes.cumsum()
    return {
        str(mark): {
            "r2": float(result.r2[mark - 1]), "spikes": float(spikes[mark - 1]),
            **operations(model, float(spikes[mark - 1]), mark),
            "seconds": image_seconds(model, x, mark),
        }
        for mark in marks
    }  # fmt: skip


def operations(model: VAE, spikes: float, steps: int) -> dict[str, float]:
    """Of an image, and their energy.

    Dense: what the products with the dictionary take where nothing is skipped, 2 M K multiply-adds a step. By
    events: M K multiply-adds once, for what the input drives, then an addition for each of the K neurons that
    a spike inhibits (the Gram form; `ipvae_kernels` computes either). A network that encodes is dense, and
    each spike adds a feature of M pixels.

    Args:
        model: with a linear decoder.
        spikes: in all steps.
        steps: of inference.

    Returns:
        "dense" and "once" in multiply-adds, "events" in additions, "dense_joules" and "joules".
    """
    pixels, neurons = model.config.n_inputs, model.config.n_latents
    if isinstance(model, AmortisedVAE):
        once, each = multiply_adds(model.encoder, model), pixels
        dense = once + pixels * neurons
    else:
        once, each, dense = pixels * neurons, neurons, 2 * pixels * neurons * steps
    events = spikes * each
    picojoules = once * PICOJOULES["multiply-add"] + events * PICOJOULES["add"]
    return {
        "dense": float(dense), "once": float(once), "events": events,
        "dense_joules": dense * PICOJOULES["multiply-add"] * 1e-12, "joules": picojoules * 1e-12,
    }  # fmt: skip


def multiply_adds(encoder: nn.Module, model: VAE) -> int:
    """Of a network for one image, as PyTorch counts them."""
    x = torch.zeros(1, *model.config.shape, dtype=model.like.dtype, device=model.like.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(x)
    return int(counter.get_total_flops()) // 2


def image_seconds(model: VAE, x: torch.Tensor, steps: int) -> float:
    """Shortest time of an inference of all images, an image."""
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        model.infer(x, steps, seed=0)
        times.append(time.perf_counter() - started)
    return min(times) / len(x)


def report(results: Results) -> Report:
    """A row for each model and number of steps."""
    rows = []
    for label in results:
        for mark in next(iter(ended(results, label)), {}):
            cell = {name: found(results, label, mark, name) for name in NAMES}
            rows.append([
                label, mark, cell["r2"].show(), cell["spikes"].show(0),
                cell["dense"].show(2, 1e-6).partition(" ")[0], cell["once"].show(2, 1e-6).partition(" ")[0],
                cell["events"].show(2, 1e-6), cell["dense_joules"].show(2, 1e6).partition(" ")[0],
                cell["joules"].show(2, 1e6), cell["seconds"].show(1, 1e6),
            ])  # fmt: skip
    columns = [
        "model", "steps", "R2", "spikes", "dense multiply-adds, M", "multiply-adds by events, M",
        "additions by events, M", "dense, uJ", "by events, uJ", "time, us",
    ]  # fmt: skip
    energies = ", ".join(f"{name} {value} pJ" for name, value in PICOJOULES.items())
    return Report(columns, rows, list(_claims(results)), _figure(results), [
        "Of an image, over all steps. Dense: products with the dictionary, 2 M K a step. By events: M K "
        "once, then K additions a spike (Gram form); of a P-VAE its encoder, then M additions a spike.",
        f"Energy is an estimate from {energies} (Horowitz, ISSCC 2014, 45 nm), without memory, which costs "
        "more than arithmetic in most machines.",
        "Larger encoders are here for what they cost. They did not train well by this recipe, so that their "
        "R2 says nothing of what they can.",
        "Draws, exponentials and clamps, K a step, are left out; they are additions of no synapse.",
        "The exact natural gradient is driven by rates: the events are those of its counts, while its own "
        "products are dense.",
        f"Time: the shortest of {TIMED} inferences of all images at once by this package, on the processor "
        "above.",
    ])  # fmt: skip


NAMES = ("r2", "spikes", "dense", "once", "events", "dense_joules", "joules", "seconds")


def _claims(results: Results) -> list[Claim]:
    ours, label = "iP-VAE", "P-VAE, linear encoder"
    marks = list(first_found({ours: results[ours]}))
    claims = []
    for mark in (marks[len(marks) // 2], marks[-1]):
        dense, events = (found(results, ours, mark, name) for name in ("dense_joules", "joules"))
        claims.append(Claim(
            f"by events {int(mark):,} steps cost less energy than dense", above(dense, events),
            f"{events.show(2, 1e6)} uJ against {dense.show(2, 1e6)} uJ",
        ))  # fmt: skip
    goal = found(results, label, "1", "r2")
    enough = next((mark for mark in marks if found(results, ours, mark, "r2").mean >= goal.mean), None)
    theirs = found(results, label, "1", "joules")
    claim = f"the iP-VAE by events reaches the R2 of the {label} for less energy"
    if enough is None:
        return [*claims, Claim(claim, False, f"R2 {goal.show()} is not reached")]
    mine = found(results, ours, enough, "joules")
    evidence = f"R2 {goal.show()} by {enough} steps: {mine.show(2, 1e6)} uJ against {theirs.show(2, 1e6)} uJ"
    return [*claims, Claim(claim, above(theirs, mine), evidence)]


def _figure(results: Results) -> Any:
    figure, (ax,) = new_figure((6.4, 4.0), 1, 1)
    colors = (BLUE, GREEN, ORANGE, ORANGE, ORANGE)
    for label, color, marker in zip(results, colors, "oos^v", strict=False):
        marks = list(next(iter(ended(results, label)), {}))
        energy = [found(results, label, mark, "joules") for mark in marks]
        r2 = [found(results, label, mark, "r2") for mark in marks]
        ax.errorbar(
            [1e6 * m.mean for m in energy], [m.mean for m in r2], yerr=[bar(m) for m in r2],
            fmt=f"{marker}-", color=color, label=label, lw=1.5, ms=4,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("energy of an image by events, uJ (estimate)")
    ax.set_ylabel("$R^2$")
    ax.legend(frameon=False, fontsize=8)
    with_grid(ax)
    set_heading(figure, "Reconstruction against synaptic operations")
    return figure


COST = Experiment(
    "cost", "What does inference by spikes cost an image, beside dense products and beside an encoder?",
    "The iP-VAEs and P-VAEs of `mnist`, and P-VAEs with larger encoders, infer 500 test images. Spikes "
    "are counted, operations follow from them and from the sizes, energy from a table.",
    {"quick": 0.4, "short": 9.0, "long": 600.0}, trials, measure, report,
)  # fmt: skip
