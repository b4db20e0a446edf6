"""The constants of a rollout, in one plain tuple."""

from __future__ import annotations

from typing import NamedTuple

MATMUL_PRECISIONS = ("float32", "tf32", "bf16")
DRIVES = ("paper", "sampled", "expected")
"""What drives an update; see ``drive.py``."""


class RolloutConfig(NamedTuple):
    """Sizes and constants of a rollout.

    Attributes:
        steps: T, number of time steps.
        n_inner: updates per step; 1 in the paper.
        beta_inner: weight of the pull towards the prior, used where n_inner > 1.
        decay: weight of the pull of a log rate towards 0.
        drive: what drives an update, one of :data:`DRIVES`. The kernels are told whether rates stand in for
            counts; what "sampled" and "expected" subtract is in ``log_bias``.
        clamp_u, clamp_du: ceilings of the log rate and of its update; Gaussian cells: of the mean.
        kl: "exact" or "released".
        single_draw: the fresh draw of step t also drives the update of step t + 1; needs n_inner = 1.
        estimator, temperature, n_arrivals: of the counts, see ``poisson_rsample``.
        step: global index of the first step.
        sample_offset: global index of the first row of the batch.
        neuron_offset: global index of the first neuron, a multiple of 4.
        cell: a name of the table ``cells.CELLS``.
        clamp_xi, clamp_dxi: of Gaussian cells, ceilings of log sigma and of its update.
        matmul_precision: format of matrix products on tensor cores, one of :data:`MATMUL_PRECISIONS`; without
            tensor cores they are float32.
    """

    steps: int
    n_inner: int = 1
    beta_inner: float = 1.0
    decay: float = 0.0
    drive: str = "paper"
    clamp_u: float = 10.0
    clamp_du: float = 10.0
    kl: str = "exact"
    single_draw: bool = False
    estimator: str = "hard"
    temperature: float = 0.0
    n_arrivals: int | None = None
    step: int = 0
    sample_offset: int = 0
    neuron_offset: int = 0
    cell: str = "poisson"
    clamp_xi: float = 2.0
    clamp_dxi: float = 3.0
    matmul_precision: str = "float32"

    @property
    def leak(self) -> float:
        """The weight of the pull in force: none with one inner iteration, as in the released code."""
        return self.beta_inner if self.n_inner > 1 else 0.0

    @property
    def expected(self) -> bool:
        """Whether updates are driven by rates in place of counts."""
        return self.drive == "expected"
