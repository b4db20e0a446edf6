"""How a run ends: what training raises, and whether the model collapsed."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.config import IPVAEConfig, VAEConfig
from .config import TrainConfig

# What counts as collapsed at the end of a run.
COLLAPSED_R2, COLLAPSED_SILENCE = 0.1, 0.95


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


class CollapseWarning(UserWarning):
    """A model that was trained explains next to nothing or is silent; the message says what to change."""


def collapse(r2: float, zeros: float, model: VAEConfig, config: TrainConfig) -> str | None:
    """What is wrong with the outcome of a run and what to change; None where nothing is.

    Args:
        r2: at the last inference step.
        zeros: share of silent neurons there, in [0, 1].
        model: of the run.
        config: of the run.
    """
    if r2 >= COLLAPSED_R2 and zeros <= COLLAPSED_SILENCE:
        return None
    awake, plain = IPVAEConfig(n_inputs=1).init_log_rate, TrainConfig(max_steps=1)
    advice = []
    if config.beta_outer > plain.beta_outer:
        beta = f"beta_outer {config.beta_outer:g}; default {plain.beta_outer:g}"
        advice.append(f"a smaller weight of the KL ({beta})")
    if isinstance(model, IPVAEConfig) and model.init_log_rate[1] < awake[0]:
        advice.append(f"neurons that start awake (init_log_rate {model.init_log_rate}; default {awake})")
    if r2 < COLLAPSED_R2 and config.lr != plain.lr:
        advice.append(f"another learning rate (lr {config.lr:g}; default {plain.lr:g})")
    advice += ["more updates (max_steps or epochs)", "inputs in [0, 1] or of variance near 1"]
    return (
        f"the model collapsed: R2 {r2:.3f}, {100 * zeros:.1f} % of the neurons silent at the last inference "
        f"step (expected at least {COLLAPSED_R2:g} and at most {100 * COLLAPSED_SILENCE:g} %). "
        f"Try {'; '.join(advice)}"
    )


@dataclass(frozen=True)
class Outcome:
    """How a fit ended; plain values, since another process may have run it."""

    steps: int
    seconds: float
    stopped_by: str | None
    rows: list[dict[str, float]]
    collapsed: str | None = None
