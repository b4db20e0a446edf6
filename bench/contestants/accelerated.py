"""The authors' code with one line more: their trainer and their evaluation on a model that is accelerated."""

from __future__ import annotations

import ipvae

from ..problem import Prepared, Problem, Settings, Unavailable
from . import authors


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """As `authors.prepare`, for whole models.

    Raises:
        Unavailable: as there; or the case is of a draw alone.
    """
    if problem.case.op not in ("infer", "train"):
        raise Unavailable("it is of whole models")
    return authors.prepare(problem, settings, change=ipvae.accelerate)
