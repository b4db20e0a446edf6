"""`SpikeCoder`: an iterative Poisson VAE as a transformer of scikit-learn; `fit` makes one in a line."""

from __future__ import annotations

import math
import tempfile
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .encoding import encode
from .extras import explained
from .models.config import IPVAEConfig
from .models.poisson import IPVAE
from .training.config import TrainConfig
from .training.run import train

with explained():
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin  # type: ignore[import-untyped]
    from sklearn.utils import check_random_state  # type: ignore[import-untyped]
    from sklearn.utils._param_validation import Interval, StrOptions  # type: ignore[import-untyped]
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data  # type: ignore[import-untyped]

Array = NDArray[Any]
MOST_LATENTS = 512
ROWS = 1000  # samples inferred at a time; results do not depend on it


class SpikeCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Sparse spike codes of vectors or images: learns a dictionary, infers, and decodes.

    An iterative Poisson VAE ("Brain-like variational inference", arXiv 2410.19315) with the exact KL.

    Inputs are centred by the mean of each feature and divided by one number, the standard deviation over all
    features, so that images of 0 to 255, of [0, 1], and whitened data are trained alike; both are kept with
    the model. Noise is indexed by the row of a call: a row's code depends on its place, and so on which rows
    come before it (scikit-learn's tag ``non_deterministic``); the same call gives the same codes.

    Args:
        n_latents: K, size of the dictionary; None: twice the number of features, at most 512.
        steps: inference steps behind `transform`, `inverse_transform` and `score`.
        output: what `transform` gives: "rates", exp of the log rates after the last step, or "counts", the
            spike counts of the last step.
        center: subtract the mean of each feature.
        scale: divide by the standard deviation over all features.
        max_updates: optimiser steps of `fit`.
        batch_size: rows of an optimiser step.
        t_train: inference steps unrolled in training.
        lr: peak learning rate.
        beta: weight of the KL: larger is sparser.
        random_state: of the dictionary, the order of the data, and the noise.
        verbose: draw a progress bar.

    Attributes:
        model_: the `IPVAE`.
        mean_: [M].
        scale_: the number inputs are divided by.
        input_shape_: of one input, without the channels and sides that were flattened.
        n_features_in_: M.

    Example:
        >>> codes = SpikeCoder(n_latents=256).fit_transform(images)  # [N, H, W], uint8 or float
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_latents": [Interval(Integral, 1, None, closed="left"), None],
        "steps": [Interval(Integral, 1, None, closed="left")],
        "output": [StrOptions({"rates", "counts"})],
        "center": ["boolean"],
        "scale": ["boolean"],
        "max_updates": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "t_train": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "beta": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_latents: int | None = None,
        *,
        steps: int = 32,
        output: Literal["rates", "counts"] = "rates",
        center: bool = True,
        scale: bool = True,
        max_updates: int = 500,
        batch_size: int = 100,
        t_train: int = 16,
        lr: float = 0.005,
        beta: float = 2.0,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.n_latents = n_latents
        self.steps = steps
        self.output = output
        self.center = center
        self.scale = scale
        self.max_updates = max_updates
        self.batch_size = batch_size
        self.t_train = t_train
        self.lr = lr
        self.beta = beta
        self.random_state = random_state
        self.verbose = verbose

    input_shape_: tuple[int, ...]

    def fit(self, X: ArrayLike, y: object = None) -> SpikeCoder:
        """Learns a dictionary.

        Args:
            X: inputs, [N, M], [N, H, W] or [N, C, H, W]; floats or unsigned integers.
            y: ignored.

        Returns:
            Itself.

        Raises:
            ValueError: for parameters or inputs that are not as described.

        Warns:
            CollapseWarning: R2 under .1, or over 95 % of the neurons silent; it says what to change.
        """
        self._begin(X)
        x = self._inputs(X, reset=False)
        config = TrainConfig(
            max_steps=self.max_updates, batch_size=min(self.batch_size, len(x)), lr=self.lr,
            lr_min=min(self.lr, 1e-5), beta_outer=self.beta, beta_min=min(self.beta, 1e-4), seed=self._seed,
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("always")
            train(
                self.model_, x, config, f"{folder}/run", logger=None, progress=bool(self.verbose),
                validate_every=self.max_updates, checkpoint_every=self.max_updates,
            )  # fmt: skip
        for warning in caught:
            _tell(warning)
        self.model_.eval()
        return self

    def partial_fit(self, X: ArrayLike, y: object = None) -> SpikeCoder:
        """Goes on learning with a pass over more inputs; mean and scale are those of the first.

        Args:
            X: as of `fit`.
            y: ignored.

        Returns:
            Itself.

        Raises:
            ValueError: as `fit`.
        """
        if not hasattr(self, "model_"):
            self._begin(X)
        x, model = self._inputs(X, reset=False), self.model_.train()
        if not hasattr(self, "_optimizer"):
            self._optimizer = torch.optim.Adamax(model.parameters(), lr=self.lr)
        for rows in torch.split(x, self.batch_size):
            self._updates += 1
            self._optimizer.zero_grad()
            seed = (self._seed + self._updates) % 2**62
            model(rows, self.t_train, beta=self.beta, temperature=0.1, seed=seed).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 300.0)
            self._optimizer.step()
        model.eval()
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Codes of inputs.

        Args:
            X: as of `fit`.

        Returns:
            [N, K]; of the dtype of X where that is floating point, else float32.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for inputs of another size.
        """
        check_is_fitted(self)
        dtype = getattr(X, "dtype", np.dtype(np.float64))
        codes = encode(
            self.model_, self._inputs(X, reset=False), self.steps, counts=self.output == "counts",
            batch_size=ROWS, seed=self._seed,
        )  # fmt: skip
        kind = dtype if getattr(dtype, "kind", "") == "f" and dtype.itemsize > 2 else np.dtype(np.float32)
        found: Array = codes.numpy()
        return found.astype(kind, copy=False)

    def inverse_transform(self, X: ArrayLike) -> Array:
        """Inputs that codes stand for: decoded, and in the units and the shape of what was fitted.

        Args:
            X: rates or counts, [N, K].

        Returns:
            [N, M], or ``[N, *input_shape_]`` where images were fitted.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for codes of another size.
        """
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float32)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(f"X: expected codes [N, {self._n_features_out}], found {list(codes.shape)}")
        decoded = self.model_.decode(torch.from_numpy(codes)).detach().numpy()
        return cast("Array", (decoded * self.scale_ + self.mean_).reshape(len(codes), *self.input_shape_))

    def score(self, X: ArrayLike, y: object = None) -> float:
        """R2 of the reconstructions after the last step, of centred and scaled inputs.

        Args:
            X: as of `fit`.
            y: ignored.

        Returns:
            1 for perfect reconstructions, 0 for the mean.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for inputs of another size.
        """
        check_is_fitted(self)
        x = self._inputs(X, reset=False)
        error = 0.0
        for i, rows in enumerate(torch.split(x, ROWS)):
            result = self.model_.infer(
                rows, self.steps, record=("squared_error",), record_every=self.steps, seed=self._seed,
                sample_offset=i * ROWS,
            )  # fmt: skip
            error += float(result.records["squared_error"].sum())
        total = float((x - x.mean(0)).square().sum())
        return 1 - error / total if total else float(error == 0)

    @property
    def _n_features_out(self) -> int:
        return self.model_.config.n_latents

    def _begin(self, X: ArrayLike) -> None:
        """A new model, mean and scale."""
        self._validate_params()
        x = self._rows(X, reset=True)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._updates = 0
        self.__dict__.pop("_optimizer", None)
        self.mean_ = x.mean(0) if self.center else np.zeros(x.shape[1])
        spread = math.sqrt(float(np.square(x - self.mean_).mean())) if self.scale else 1.0
        self.scale_ = spread or 1.0
        latents = self.n_latents or min(MOST_LATENTS, 2 * x.shape[1])
        self.model_ = IPVAE(
            IPVAEConfig(
                n_inputs=x.shape[1], n_latents=latents, t_train=self.t_train, clamp_u=10.0, seed=self._seed
            )
        )

    def _rows(self, X: ArrayLike, *, reset: bool) -> NDArray[np.float64]:
        """Checked inputs, [N, M]."""
        shape: tuple[int, ...] = getattr(X, "shape", ())
        if len(shape) > 2:
            found = tuple(int(side) for side in shape[1:])
            if not reset and found != self.input_shape_:
                raise ValueError(
                    f"X: expected inputs [N, {', '.join(map(str, self.input_shape_))}], found {list(shape)}"
                )
            X = np.asarray(X).reshape(shape[0], -1)
        else:
            found = ()
        rows = validate_data(self, X, reset=reset, dtype=np.float64, ensure_min_samples=2 if reset else 1)
        if reset:
            self.input_shape_ = found or (rows.shape[1],)
        return cast("NDArray[np.float64]", rows)

    def _inputs(self, X: ArrayLike, *, reset: bool) -> Tensor:
        """The same, centred and scaled, as the model takes them."""
        rows = (self._rows(X, reset=reset) - self.mean_) / self.scale_
        return torch.from_numpy(rows.astype(np.float32))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _tell(warning: warnings.WarningMessage) -> None:
    """Passes a warning of the training on, with the names that parameters have here."""
    text = str(warning.message)
    for theirs, ours in (("max_steps or epochs", "max_updates"), ("beta_outer", "beta")):
        text = text.replace(theirs, ours)
    warnings.warn(text, warning.category, stacklevel=3)


def fit(x: ArrayLike, n_latents: int | None = None, **parameters: Any) -> SpikeCoder:
    """A `SpikeCoder` of these inputs.

    Args:
        x: inputs, [N, M], [N, H, W] or [N, C, H, W]; floats or unsigned integers.
        n_latents: K; None: twice the number of features, at most 512.
        parameters: others of `SpikeCoder`.

    Returns:
        The fitted coder; ``.model_`` is the `IPVAE`.

    Raises:
        ValueError: for parameters or inputs that are not as described.
    """
    return SpikeCoder(n_latents, **parameters).fit(x)
