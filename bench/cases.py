"""The registry: what is timed, on which state, and how many operations and bytes it needs at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ipvae_kernels.poisson.estimators import ESTIMATORS
from ipvae_kernels.rollout.config import DRIVES

from .states import STATES

Op = Literal["sample", "rsample", "infer", "train", "amortised"]

SAMPLED = (1000, 1000)
"""Shape of the log rates of the sampling cases: 10^6."""
SMALL, SMALL_CALLS = (1, 64), 1000
"""Shape of the case that shows what a call costs whatever it computes, and calls of one timing."""
FLOAT = 4
# Floating operations of a draw or of the update of one neuron (exp, log1p, the clamps' softplus), by rule of
# thumb; the integer work of the random numbers is not in it.
POINTWISE = 50


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        name: unique.
        group: where the report shows it: "sampling", "inference", "training", "growth".
        op: "sample" (hard counts), "rsample" (relaxed counts and their gradient), "infer" (T steps with hard
            counts, recon and KL of each step), "train" (loss over T steps, backward, clipped optimiser step),
            "amortised" (the same of a P-VAE with a linear encoder and the state's decoder, of one step).
        state: name of a trained state; "uniform" for log rates uniform on -8..4.
        batch: B; of sampling cases the rows of ``shape``.
        steps: T.
        estimator: how counts are drawn and differentiated.
        temperature: of relaxed counts.
        axis: of growth cases: "K", "T", "B" or "firing", the size that varies.
        only: contestants by name, where not all run; backends of `ipvae_kernels` always do.
        shape: of the log rates of sampling cases.
        calls: runs that are timed together; the time is that of one.
        drive: of the updates, as of `ipvae_kernels.infer`.
    """

    name: str
    group: Literal["sampling", "inference", "training", "growth"]
    op: Op
    state: str
    batch: int = 1000
    steps: int = 1
    estimator: str = "hard"
    temperature: float = 0.0
    axis: Literal["", "K", "T", "B", "firing"] = ""
    only: tuple[str, ...] = ()
    shape: tuple[int, int] = SAMPLED
    calls: int = 1
    drive: str = "paper"

    @property
    def sizes(self) -> dict[str, int]:
        """B, T, K and M of a rollout; N of a sampling case."""
        if self.op in ("sample", "rsample"):
            return {"N": math.prod(self.shape)}
        spec = STATES[self.state]
        return {"B": self.batch, "T": self.steps, "K": spec.neurons, "M": spec.pixels}

    def operations(self, nonzero: float) -> float:
        """Floating operations that a run needs.

        A step decodes two draws (2 M operations per non-zero count where counts are hard, per neuron where
        they are relaxed) and feeds the error back once (2 M K); backward takes two products for each product.

        Args:
            nonzero: share of counts that are not 0.
        """
        if self.op in ("sample", "rsample"):
            return float(POINTWISE * math.prod(self.shape))
        b, t, k, m = self.sizes.values()
        hard = ESTIMATORS[self.estimator].half_width is None
        share = nonzero if hard else 1.0
        if self.op == "amortised":  # encodes once and decodes one draw
            products = 2 * m * k * (1 + share)
        elif (hidden := STATES[self.state].hidden_weights) > 0:  # each pass of an MLP is dense
            products = 6.0 * hidden
        else:
            products = 2 * m * k * (1 + share + (1.0 if self.drive == "expected" else share))
        backward = 0.0 if self.op == "infer" else 2 * products
        return b * t * (products + backward + 3 * POINTWISE * k)

    def bytes(self) -> float:
        """Bytes that must cross the memory bus, everything that can stay in cache staying there.

        Sampling: log rates in, counts out, and with gradient the upstream one in and the result out.
        Inference: dictionary and inputs in, recon, KL and final state out. Training besides: the state of
        every step out and in, gradient and both moments of the dictionary out and in.
        """
        if self.op in ("sample", "rsample"):
            return float(FLOAT * math.prod(self.shape) * (2 if self.op == "sample" else 4))
        b, t, k, m = self.sizes.values()
        inference = m * k + b * m + 2 * t * b + b * k
        training = 2 * t * b * k + 7 * m * k if self.op in ("train", "amortised") else 0
        return float(FLOAT * (inference + training))


def _sampling() -> list[Case]:
    """Hard counts, and relaxed ones with gradient, of trained and of uniform log rates."""
    floor = Case("sample-floor", "sampling", "sample", "uniform", 1, only=("baseline",))
    cases = [
        replace(floor, shape=SMALL, calls=SMALL_CALLS),
        Case("quick-sample-hard", "sampling", "sample", "paper", only=("baseline",)),
        Case("quick-sample-fini2", "sampling", "rsample", "paper", estimator="fini2", only=("baseline",)),
    ]
    for state in ("paper", "uniform"):
        cases.append(Case(f"sample-{state}-hard", "sampling", "sample", state))
        for estimator in ("sigmoid", "cubic"):
            for temperature in (0.01, 0.1, 1.0):
                name = f"sample-{state}-{estimator}-{temperature:g}"
                case = Case(name, "sampling", "rsample", state, 1000, 1, estimator, temperature)
                cases.append(case)
    return cases


def _inference() -> list[Case]:
    return [
        Case("quick-infer", "inference", "infer", "paper", 32, 16, only=("baseline",)),
        Case("infer-paper", "inference", "infer", "paper", 200, 16),
        Case("infer-paper-1000", "inference", "infer", "paper", 200, 1000),
        Case("infer-784", "inference", "infer", "pixels784", 100, 128),
        Case("infer-latency", "inference", "infer", "paper", 1, 128),
        Case("infer-wide", "inference", "infer", "wide", 32, 64),
    ]


def _training() -> list[Case]:
    def case(
        name: str, estimator: str, temperature: float, state: str, batch: int, steps: int, *only: str
    ) -> Case:
        return Case(name, "training", "train", state, batch, steps, estimator, temperature, only=only)

    driven = case("train-784-fini2", "fini2", 0.0, "pixels784", 100, 16, "baseline")
    return [
        case("quick-train-sigmoid-0.1", "sigmoid", 0.1, "paper", 16, 16, "baseline"),
        case("quick-train-cubic-0.1", "cubic", 0.1, "paper", 16, 16, "baseline"),
        case("quick-train-fini2", "fini2", 0.0, "paper", 16, 16, "baseline"),
        case("train-paper-sigmoid-1", "sigmoid", 1.0, "paper", 200, 16),
        case("train-paper-sigmoid-0.1", "sigmoid", 0.1, "paper", 200, 16),
        case("train-paper-sigmoid-0.01", "sigmoid", 0.01, "paper", 200, 16),
        case("train-paper-cubic-0.1", "cubic", 0.1, "paper", 200, 16),
        case("train-paper-fini2", "fini2", 0.0, "paper", 200, 16),
        case("train-784", "sigmoid", 0.1, "pixels784", 100, 16),
        *(replace(driven, name=f"{driven.name}-{drive}", drive=drive) for drive in DRIVES),
        case("train-784-128", "sigmoid", 0.1, "pixels784", 100, 128),
        case("mlp-784-sigmoid-0.1", "sigmoid", 0.1, "mlp784", 100, 16, "baseline"),
        case("mlp-784-fini2", "fini2", 0.0, "mlp784", 100, 16, "baseline"),
        Case(
            "amortised-784", "training", "amortised", "pixels784", 100, 1, "sigmoid", 0.1, only=("authors",)
        ),
    ]  # fmt: skip


GROWTH = {
    "K": [2**i for i in range(7, 16)],
    "T": [4**i for i in range(7)],
    "B": [4**i for i in range(6)],
    "firing": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0],
}
"""Sizes of the growth cases, and of the firing rate the intended share of non-zero counts."""


def _growth() -> list[Case]:
    def case(axis: Literal["K", "T", "B", "firing"], size: float, state: str, batch: int, steps: int) -> Case:
        return Case(
            f"growth-{axis}-{size:g}", "growth", "infer", state, batch, steps, axis=axis, only=("baseline",)
        )

    cases = [case("K", k, "paper" if k == 512 else f"paper-k{k}", 16, 16) for k in GROWTH["K"]]
    cases += [case("T", t, "paper", 16, int(t)) for t in GROWTH["T"]]
    cases += [case("B", b, "paper", int(b), 16) for b in GROWTH["B"]]
    cases += [case("firing", share, f"paper-firing{share:g}", 64, 16) for share in GROWTH["firing"]]
    return cases


CASES: dict[str, Case] = {case.name: case for case in (*_sampling(), *_inference(), *_training(), *_growth())}

_LARGE = [case for case in CASES.values() if not case.name.startswith("quick-")]
SUITES: dict[str, tuple[str, ...]] = {
    "quick": tuple(name for name in CASES if name.startswith("quick-")),
    "main": tuple(case.name for case in _LARGE if case.group != "growth"),
    "growth": tuple(case.name for case in _LARGE if case.group == "growth"),
    "full": tuple(case.name for case in _LARGE),
}
"""Names of cases; "quick" has smaller batches than the paper, and plain PyTorch alone to compare with."""


def select(suite: str, only: Sequence[str] = ()) -> list[Case]:
    """The cases of a suite, or those of all with one of the given names, or with a given word in their name.

    Raises:
        ValueError: for an unknown suite, or a word that fits no case.
    """
    if not only:
        if suite not in SUITES:
            raise ValueError(f"--suite: expected one of {', '.join(SUITES)}; found {suite!r}")
        return [CASES[name] for name in SUITES[suite]]
    found: set[str] = set()
    for word in only:
        fitting = {word} if word in CASES else {name for name in CASES if word in name}
        if not fitting:
            raise ValueError(f"--case: {word!r} is in the name of no case; there are {', '.join(CASES)}")
        found |= fitting
    return [case for name, case in CASES.items() if name in found]
