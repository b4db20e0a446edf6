"""Which draw of a step uses which stream; ``csrc/common/schedule.h`` is the same for the kernels."""

from __future__ import annotations

from ..philox import KIND_LOSS, KIND_UPDATE, Stream
from .config import RolloutConfig


def loss_stream(cfg: RolloutConfig, t: int) -> Stream:
    """The fresh draw of step t of a rollout, for its loss and its records."""
    return Stream(KIND_LOSS, 0, cfg.step + t, cfg.sample_offset, cfg.neuron_offset)


def update_stream(cfg: RolloutConfig, t: int, j: int) -> Stream:
    """The draw that drives update j of step t; with ``single_draw`` the fresh one of the step before."""
    if cfg.single_draw and cfg.step + t > 0:
        return loss_stream(cfg, t - 1)
    return Stream(KIND_UPDATE, j, cfg.step + t, cfg.sample_offset, cfg.neuron_offset)
