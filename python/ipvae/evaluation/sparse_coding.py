"""Codes of a model's dictionary by the solvers of libraries, to compare inference by a network with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipvae_kernels import checks

from ..extras import explained
from ..inputs import Source, gather
from ..models.base import VAE
from .metrics import r2_from_error, total_variation

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SparseCodes:
    """Codes of inputs under a dictionary.

    Attributes:
        codes: [N, K].
        squared_error: of the reconstruction, summed over pixels, mean over inputs.
        r2: share of the variation explained, mean over inputs, as `evaluate` has it.
        zeros: fraction of the codes that is 0.
        penalised: ``|x - Phi a|^2 / 2 + penalty |a|_1``, mean over inputs; None without a penalty.
        seconds: of the solver.
    """

    codes: Array
    squared_error: float
    r2: float
    zeros: float
    penalised: float | None
    seconds: float


def sparse_codes(
    model: VAE,
    x: Source,
    solver: str,
    *,
    penalty: float | None = None,
    n_nonzero: int | None = None,
    max_iter: int = 1000,
) -> SparseCodes:
    """Codes by "fista", "lasso" or "omp" under the dictionary of a model with a linear decoder.

    "fista" (Beck and Teboulle 2009; PyLops, extra ``sparse``) and "lasso" (coordinate descent, scikit-learn)
    minimise ``|x - Phi a|^2 / 2 + penalty |a|_1``, as `ipvae.LCA` does with a soft threshold; "omp" is
    orthogonal matching pursuit (Pati et al. 1993; scikit-learn) with a number of neurons for each input.
    Signs are free.

    Args:
        model: of any family, with a linear decoder.
        x: [N, M], as in `evaluate`.
        solver: a name of `SOLVERS`.
        penalty: weight of the L1 norm, > 0; "fista" and "lasso" want it.
        n_nonzero: neurons of an input, 1..min(K, M); "omp" wants it.
        max_iter: iterations at most, of "fista" and "lasso".

    Returns:
        Codes and measures.

    Raises:
        TypeError, ValueError: an argument is not as described, or the decoder is not linear.
        MissingExtra: PyLops is not installed.
    """
    checks.choice("solver", solver, SOLVERS)
    max_iter = checks.integer("max_iter", max_iter, 1, 2**31)
    phi = model.dictionary.detach().float().cpu().numpy()
    given = model.flatten(gather("x", x, model.like)[0]).detach().float().cpu()
    if given.ndim != 2 or len(given) == 0:
        raise ValueError(f"x: expected shape [N, {phi.shape[0]}], N >= 1, found {list(given.shape)}")
    options: dict[str, Any] = {}
    if solver == "omp":
        if penalty is not None:
            raise ValueError(f"penalty: expected None for 'omp', which counts neurons, found {penalty}")
        options["n_nonzero"] = checks.integer("n_nonzero", n_nonzero, 1, min(phi.shape))
    else:
        if n_nonzero is not None:
            raise ValueError(f"n_nonzero: expected None for {solver!r}, found {n_nonzero}")
        penalty = checks.number("penalty", penalty, 0.0, above=True)
        options |= {"penalty": penalty, "max_iter": max_iter}
    pixels = given.numpy()
    started = time.perf_counter()
    codes = SOLVERS[solver](phi, pixels, **options).astype(np.float32)
    seconds = time.perf_counter() - started
    error = given - given.new_tensor(codes) @ given.new_tensor(phi).T
    squared = error.square().sum(-1)
    penalised = None
    if penalty is not None:
        penalised = float(0.5 * squared.mean()) + penalty * float(np.abs(codes).sum(-1).mean())
    r2 = r2_from_error(squared[None], total_variation(given))
    return SparseCodes(
        codes, float(squared.mean()), float(r2.mean()), float((codes == 0.0).mean()), penalised, seconds
    )


def _fista(phi: Array, x: Array, penalty: float, max_iter: int) -> Array:
    with explained():
        import pylops  # type: ignore[import-untyped]

    operator = pylops.MatrixMult(phi, otherdims=(len(x),), dtype=phi.dtype)
    step = 1.0 / float(np.linalg.norm(phi, 2)) ** 2
    # It halves the weight, for its misfit is not halved.
    found, *_ = pylops.optimization.sparsity.fista(
        operator, np.ascontiguousarray(x.T).ravel(), niter=max_iter, eps=2.0 * penalty, alpha=step, tol=1e-8
    )
    codes: Array = found.reshape(phi.shape[1], len(x)).T
    return codes


def _lasso(phi: Array, x: Array, penalty: float, max_iter: int) -> Array:
    with explained():
        from sklearn.linear_model import Lasso  # type: ignore[import-untyped]

    # scikit-learn divides the misfit by the number of pixels.
    solver = Lasso(penalty / len(phi), fit_intercept=False, max_iter=max_iter, tol=1e-6)
    codes: Array = solver.fit(phi, x.T).coef_.reshape(len(x), -1)
    return codes


def _omp(phi: Array, x: Array, n_nonzero: int) -> Array:
    with explained():
        from sklearn.linear_model import orthogonal_mp

    # It wants columns of length 1.
    lengths = np.maximum(np.linalg.norm(phi, axis=0), np.finfo(phi.dtype).tiny)
    found = orthogonal_mp(phi / lengths, x.T, n_nonzero_coefs=n_nonzero).reshape(phi.shape[1], -1)
    codes: Array = found.T / lengths
    return codes


SOLVERS: dict[str, Callable[..., Array]] = {"fista": _fista, "lasso": _lasso, "omp": _omp}
"""By name."""
