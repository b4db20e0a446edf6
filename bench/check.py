"""Whether a contestant computes the right thing; a time is reported only after that."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

import ipvae_kernels

from .contestants import kernels
from .problem import Output, Prepared, Problem, upstream

SAMPLES = 16
"""Smallest number of samples behind a comparison of means: smaller batches run several times."""
ERRORS, RELATIVE = 5.0, 0.01
"""Means may differ by so many standard errors plus this share; the latter for the cut of the arrivals."""
PROJECTION, PROJECTION_MLP = 0.1, 0.25
"""The dictionary's gradient, as far as it points along the reference's, may be longer or shorter by this.

That of an MLP's last layer is noisier: two draws of one contestant differed by up to 12 %.
"""
SLICE_BATCH, SLICE_STEPS, SLICE_ROWS = 8, 8, 20
SAME, ROUNDING, GRADIENT = 0.9, 1e-3, 1e-2
"""With the same noise: share of samples that must agree, to which error, and error of the gradient."""


class Check(TypedDict):
    """A comparison.

    Attributes:
        ok: whether it came out well.
        against: with whom.
        what: what was compared, how, and the tolerance.
        found: by measure: for means [contestant, reference, standard error of the difference].
    """

    ok: bool
    against: str
    what: str
    found: dict[str, list[float]]


def run(prepared: Prepared, name: str, reference: str) -> Check:
    """Runs a contestant once, which warms it up, and compares.

    Args:
        prepared: the contestant.
        name: its name.
        reference: a backend of `ipvae_kernels`, for those that are none.
    """
    output = prepared.run()
    if name in ipvae_kernels.backends():
        return same_noise(prepared.problem, name)
    return same_means(prepared, output, reference)


def same_noise(problem: Problem, backend: str) -> Check:
    """A backend of `ipvae_kernels` against the one below it, on a slice of the case, with the same spikes.

    A draw within a rounding of a threshold may fall on the other side and carry its sample away, so not all
    samples must agree; the gradient of the dictionary is one sum over all.
    """
    other = "autograd" if backend == "eager" else "eager"
    case = problem.case
    part = replace(
        problem,
        case=replace(case, steps=min(case.steps, SLICE_STEPS)),
        x=problem.x[:SLICE_BATCH],
        log_rate=problem.log_rate[:SLICE_ROWS],
    )
    a, b = (kernels.prepare(part, name).run() for name in (backend, other))
    found = {}
    for name in ("recon", "kl", "counts"):
        if name in a:
            close = (a[name] - b[name]).abs() <= ROUNDING * (1.0 + b[name].abs())
            agree = close if name == "counts" else close.all(0)
            found[f"same {name}"] = [float(agree.double().mean())]
    ok = all(share >= SAME for (share,) in found.values())
    if "gradient" in a:
        difference = float((a["gradient"] - b["gradient"]).norm() / b["gradient"].norm())
        found["gradient, relative difference"] = [difference]
        ok = ok and difference <= GRADIENT
    what = f"same seed, on a slice: {SAME:.0%} of samples within {ROUNDING:g}, gradient within {GRADIENT:g}"
    return Check(ok=ok, against=other, what=what, found=found)


def same_means(prepared: Prepared, output: Output, backend: str) -> Check:
    """A contestant with random numbers of its own against a backend: means over samples, inputs in pairs.

    Args:
        prepared: the contestant.
        output: of one run of it.
        backend: the reference.
    """
    problem = prepared.problem
    reference = kernels.prepare(problem, backend)
    more = 0 if "counts" in output else max(0, -(-SAMPLES // max(len(problem.x), 1)) - 1)
    theirs = _measures([output, *(prepared.run() for _ in range(more))], problem)
    ours = _measures([reference.run() for _ in range(1 + more)], problem)
    found, ok = {}, True
    for name, a in theirs.items():
        difference = (a - ours[name]).double()
        error = float(difference.std() / len(difference) ** 0.5)
        mean = float(ours[name].double().mean())
        found[name] = [float(a.double().mean()), mean, error]
        ok = ok and abs(float(difference.mean())) <= ERRORS * error + RELATIVE * abs(mean)
    what = f"means over {len(difference)} samples within {ERRORS:g} standard errors + {RELATIVE:.0%}"
    if problem.case.op == "train":
        mine, again = (reference.run()["gradient"].clone().cpu() for _ in range(2))
        along = float((output["gradient"].cpu() * mine).sum() / (again * mine).sum())
        found["gradient along the reference's"] = [along, 1.0]
        tolerance = PROJECTION if problem.model.decoder is None else PROJECTION_MLP
        ok = ok and abs(along - 1.0) <= tolerance
        what += f", projection of the gradient within {tolerance:.0%}"
    return Check(ok=ok, against=backend, what=what, found=found)


def _measures(outputs: list[Output], problem: Problem) -> dict[str, Tensor]:
    """Per sample: recon, kl (means over steps), expected share of silent neurons at the end; or counts."""
    if "counts" in outputs[0]:
        (output,) = outputs
        measures = {"counts": output["counts"].flatten(), "zeros": (output["counts"] < 0.5).float().flatten()}
        if "gradient" in output:
            measures["slope"] = (output["gradient"].cpu() / upstream(problem).cpu()).flatten()
        return {name: value.cpu() for name, value in measures.items()}
    parts = [
        {
            "recon": output["recon"].mean(0), "kl": output["kl"].mean(0),
            "zeros": torch.exp(-output["log_rate"].exp()).mean(1),
        }
        for output in outputs
    ]  # fmt: skip
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
