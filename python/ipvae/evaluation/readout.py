"""The linear readout: logistic regression from latents to labels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from ..extras import explained


@dataclass(frozen=True)
class Readout:
    """Logistic regression from the latents to labels.

    Attributes:
        accuracy: on the evaluated samples, fraction.
        train_accuracy: on the samples it was fitted to, fraction.
        converged: whether the solver finished within its iterations.
    """

    accuracy: float
    train_accuracy: float
    converged: bool


@explained()
def linear_readout(
    train_x: Tensor, train_y: Tensor, x: Tensor, y: Tensor, *, C: float = 1.0, max_iter: int = 100
) -> Readout:
    """Accuracy of scikit-learn's `LogisticRegression`, as in the released analysis (``clf_score``).

    Args:
        train_x: latents it is fitted to, [L, K].
        train_y: their labels, [L].
        x: latents, [N, K].
        y: their labels, [N].
        C: inverse strength of the L2 penalty.
        max_iter: iterations of the solver; the default of 100 is often too few to converge, and is the
            authors'.
    """
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = LogisticRegression(C=C, max_iter=max_iter).fit(train_x.cpu().numpy(), train_y.cpu().numpy())
    return Readout(
        accuracy=float(fit.score(x.cpu().numpy(), y.cpu().numpy())),
        train_accuracy=float(fit.score(train_x.cpu().numpy(), train_y.cpu().numpy())),
        converged=bool((fit.n_iter_ < max_iter).all()),
    )
