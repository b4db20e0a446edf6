"""The linear readout: logistic regression from latents to labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae_kernels import checks

from ..extras import explained
from ..inputs import as_labels, as_tensor


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

    Raises:
        TypeError, ValueError: an argument is not as described, or there is one class alone.
    """
    train, test = _labelled("train_x", train_x, "train_y", train_y), _labelled("x", x, "y", y)
    fit = _fitted(*train, C, max_iter)
    return Readout(
        accuracy=float(fit.score(*test)),
        train_accuracy=float(fit.score(*train)),
        converged=bool((fit.n_iter_ < max_iter).all()),
    )


@explained()
def fit_readout(
    train_x: Tensor, train_y: Tensor, *, C: float = 1.0, max_iter: int = 100
) -> Callable[[Tensor, Tensor], float]:
    """`linear_readout` for many sets of samples, fitted once.

    Args:
        train_x: latents it is fitted to, [L, K].
        train_y: their labels, [L].
        C: as of `linear_readout`.
        max_iter: likewise.

    Returns:
        A function of latents [N, K] and labels [N] that gives the accuracy, a fraction.

    Raises:
        TypeError, ValueError: as `linear_readout`.
    """
    fit = _fitted(*_labelled("train_x", train_x, "train_y", train_y), C, max_iter)
    return lambda x, y: float(fit.score(*_labelled("x", x, "y", y)))


def _fitted(x: NDArray[Any], y: NDArray[Any], C: float, max_iter: int) -> Any:
    """scikit-learn's estimator, fitted to latents [L, K] and labels [L]."""
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    C, max_iter = checks.number("C", C, 0.0, above=True), checks.integer("max_iter", max_iter, 1, 2**31 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=max_iter).fit(x, y)


def _labelled(name: str, x: Tensor, label_name: str, y: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latents [N, K] and labels [N] as scikit-learn takes them."""
    x = as_tensor(name, x).detach().cpu()
    if x.ndim != 2 or not x.numel():
        raise ValueError(f"{name}: expected shape [N, K], neither of them 0, found {list(x.shape)}")
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # NumPy has no bfloat16
    return x.numpy(), as_labels(label_name, y, len(x)).numpy()
