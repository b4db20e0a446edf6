"""Checkpoints of the authors' code (IterativeVAE, linear decoder): configuration and weights.

A released checkpoint is a ``.pt`` file of `torch.save` with a dictionary whose "model" is the state dict; the
folder around it holds ``ConfigPoisVAE.json`` or ``ConfigGausVAE.json``. All three forms are read: file,
folder, dictionary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .checkpoint import CheckpointError, load_pickled
from .config import RELEASED_CLAMP_U, RELEASED_LOG_RATE, ConfigError, ModelConfig

DICTIONARY = "layer.phi.weight"

# What rebuilds a numpy scalar, under whichever name numpy keeps it.
_SCALAR = np.float64(0.0).__reduce__()[0]
# Their files carry training statistics as numpy scalars; these build nothing but numbers.
_SCALARS: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]
# config.json's name -> ours.
_FIELDS = {
    "n_iters_inner": "n_inner",
    "beta_inner": "beta_inner",
    "clamp_u": "clamp_u",
    "clamp_du": "clamp_du",
}
_SHAPES = {256: (1, 16, 16), 784: (1, 28, 28), 1024: (1, 32, 32), 3072: (3, 32, 32)}


def load(
    source: str | PathLike[str] | Mapping[str, Any], config: ModelConfig | None = None
) -> tuple[ModelConfig, dict[str, Tensor], str]:
    """Reads a released checkpoint.

    Args:
        source: a ``.pt`` file, its folder, a loaded checkpoint, or a bare state dict.
        config: used as it is; None derives one from the shapes and, in a folder, from the authors' JSON file,
            with the released KL and estimator.

    Returns:
        Configuration, state dict, and a name of the source for messages.

    Raises:
        CheckpointError: for a file that is missing, damaged or something else.
    """
    settings: dict[str, Any] = {}
    name = "state dict"
    if not isinstance(source, Mapping):
        name = str(source)
        path, settings = _locate(Path(source))
        source = load_pickled(path, safe_globals=_SCALARS)
    state = source.get("model", source) if isinstance(source, Mapping) else None
    if (
        not isinstance(state, Mapping)
        or not isinstance(state.get(DICTIONARY), Tensor)
        or state[DICTIONARY].ndim != 2
    ):
        raise CheckpointError(
            f"{name}: not a checkpoint of the released code, no matrix {DICTIONARY!r} in it"
        )
    n_exp = state.get("layer.n_exp")
    if isinstance(n_exp, Tensor) and (n_exp.ndim != 1 or len(n_exp) == 0):
        raise CheckpointError(
            f"{name}: layer.n_exp: expected one entry per training step, found shape {list(n_exp.shape)}"
        )
    try:
        return config or _config(state, settings), dict(state), name
    except ConfigError as error:
        raise CheckpointError(f"{name}: no model fits it ({error})") from error


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """The ``.pt`` file and the authors' settings, where they lie beside it."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise CheckpointError(f"{path}: expected one .pt file, found {len(files)}")
        path = files[0]
    for name in ("ConfigPoisVAE.json", "ConfigGausVAE.json"):
        if (folder / name).is_file():
            try:
                settings = json.loads((folder / name).read_text())
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{folder / name}: damaged ({error})") from error
            if not isinstance(settings, dict):
                raise CheckpointError(f"{folder / name}: expected a JSON object")
            return path, settings
    return path, {}


def _config(state: Mapping[str, Any], settings: Mapping[str, Any]) -> ModelConfig:
    n_inputs, n_latents = state[DICTIONARY].shape
    gaussian = "layer.log_lr.1" in state
    config = ModelConfig(
        n_inputs=n_inputs,
        n_latents=n_latents,
        input_shape=_SHAPES.get(n_inputs),
        kind="gaussian" if gaussian else "poisson",
        activation="relu" if "layer.activation.log_gain" in state else "identity",
        kl="released",
        estimator="sigmoid",
        n_arrivals=None if gaussian else "released",
        init_log_rate=RELEASED_LOG_RATE,
        clamp_u=None if gaussian else RELEASED_CLAMP_U,
        beta_inner=float(state.get("layer.beta_inner", 1.0)),
    )
    changes: dict[str, Any] = {
        ours: settings[theirs] for theirs, ours in _FIELDS.items() if theirs in settings
    }
    n_exp = state.get("layer.n_exp")
    if isinstance(n_exp, Tensor):
        changes["t_train"] = len(n_exp)
    elif "t_train" in settings:
        changes["t_train"] = settings["t_train"] * settings.get("n_iters_outer", 1)
    return dataclasses.replace(config, **changes)
