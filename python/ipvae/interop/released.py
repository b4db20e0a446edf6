"""Checkpoints of the authors' code (IterativeVAE, linear decoder): configuration and weights.

A released checkpoint is a ``.pt`` file of `torch.save` with a dictionary whose "model" is the state dict. The
settings of its model are in ``ConfigPoisVAE.json`` or ``ConfigGausVAE.json``: in the same folder for the
models that were released, one folder above it for what the authors' trainer writes. Weights alone do not tell
how they are to be used (inner iterations, clamps, steps), so without settings nothing is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint import CheckpointError, load_pickled
from ..fields import ConfigError
from .accelerated.recognise import check_model, is_trainer

DICTIONARY = "layer.phi.weight"
# Bounds of the uniform initial log rates: nearly silent.
INIT_LOG_RATE = (-6.0, -4.0)
SETTINGS = {"poisson": "ConfigPoisVAE.json", "gaussian": "ConfigGausVAE.json"}
# Settings that must be there, as theirs always are; what else is read has a value that says "as usual".
_REQUIRED = ("t_train", "n_iters_inner", "clamp_u", "clamp_du")
# What of a live model's settings is looked at.
_READ = (*_REQUIRED, "n_iters_outer", "inf_type", "dec_type", "latent_act", "n_latents", "fit_prior")
DATASETS: dict[tuple[int, ...], str] = {
    (1, 16, 16): "vH16-wht", (1, 28, 28): "MNIST", (1, 32, 32): "vH32-wht", (3, 32, 32): "ImageNet32",
}  # fmt: skip
"""A data set of theirs for each shape of an input; other names are as good."""
SHAPES = {math.prod(shape): shape for shape in DATASETS}


class Weights(NamedTuple):
    """What a released checkpoint holds.

    Attributes:
        state: the state dict.
        name: of the source, for messages.
        path: the file, if there is one: its settings lie near.
        settings: those of a model in memory.
    """

    state: dict[str, Any]
    name: str
    path: Path | None
    settings: Mapping[str, Any] | None = None

    @property
    def cell(self) -> str:
        """The family of the model, as `ipvae.models.registry` names it."""
        return "gaussian" if "layer.log_lr.1" in self.state else "poisson"


def load(source: Any, ema: bool = False) -> Weights:
    """Reads a released checkpoint.

    Args:
        source: a ``.pt`` file, or a folder of them as the authors' trainer fills it, see `locate`; a loaded
            checkpoint, or a bare state dict; a live model or trainer of theirs.
        ema: the average of the weights, which their trainer keeps where it has an ``ema_rate``.

    Raises:
        CheckpointError: for a file that is missing, damaged or something else, or without an average.
    """
    if isinstance(source, Mapping):
        return weights(source, "state dict", ema=ema)
    if not isinstance(source, str | PathLike):
        return _live(source, ema)
    path = locate(Path(source))
    if path is None:
        problem = "expected one .pt file, found 0" if Path(source).is_dir() else "no such file"
        raise CheckpointError(f"{source}: {problem}")
    return weights(load_pickled(path), str(path), path, ema)


def _live(source: Any, ema: bool) -> Weights:
    """The weights and settings of a model in memory."""
    trainer = is_trainer(source)
    model = (source.model_ema if ema else source.model) if trainer else source
    if model is None or (ema and not trainer):
        raise CheckpointError(f"{type(source).__name__}: ema: it keeps no average of its weights")
    check_model(model)
    settings = {name: value for name, value in vars(model.cfg).items() if name in _READ}
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return Weights(state, type(model).__name__, None, settings)


def locate(path: Path) -> Path | None:
    """The weights in a folder, or a file as it is; None where there is neither.

    As in the authors' code, the last file in the order of the names counts (they are numbered), and of
    several runs of one model, folders named ``..._(2025_05_13,16:11)``, the last in the order of the times.
    """
    if not path.is_dir():
        return path if path.is_file() else None
    runs = sorted(path.glob("*/*.pt"), key=lambda file: (file.parent.name.rpartition("(")[2], file.name))
    return next(reversed(sorted(path.glob("*.pt")) or runs), None)


def weights(content: object, name: str, path: Path | None = None, ema: bool = False) -> Weights:
    """`load` for what a file holds."""
    state = content.get("model_ema" if ema else "model", content) if isinstance(content, Mapping) else None
    if ema and (state is None or state is content):
        raise CheckpointError(f"{name}: ema: it holds no average of the weights (their ema_rate was None)")
    dictionary = state.get(DICTIONARY) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(dictionary, Tensor) or dictionary.ndim != 2:
        raise CheckpointError(
            f"{name}: not a checkpoint of the released code, no matrix {DICTIONARY!r} in it"
        )
    return Weights(dict(state), name, path)


def configuration(
    found: Weights, settings: str | PathLike[str] | Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """The configuration of a released model, as `ipvae.checkpoint.read_model` gives that of one of ours.

    Temperature, opening of the clamps, weight of the leak and cut of the arrivals are those of the weights.

    Args:
        found: the weights.
        settings: the authors' settings, as a JSON file or its contents. None: ``ConfigPoisVAE.json`` or
            ``ConfigGausVAE.json``, whichever belongs to the weights, beside the file or one folder above it.

    Returns:
        Plain values, with the released KL, estimator and cut of the arrivals; and where the settings come
        from, for messages.

    Raises:
        CheckpointError: for settings that are missing, damaged, or of a model that this package has not.
    """
    values, origin = _settings(found, settings)
    try:
        return _values(found, values, origin), origin
    except ConfigError as error:
        raise CheckpointError(f"{origin}: no model fits it ({error})") from error


def _settings(
    found: Weights, given: str | PathLike[str] | Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], str]:
    """The authors' settings of a model, and a name of where they come from."""
    if given is None and found.settings is not None:
        return found.settings, found.name
    if isinstance(given, Mapping):
        return given, "settings"
    if given is not None:
        return _parse(Path(given)), str(given)
    places = [] if found.path is None else [found.path.parent, found.path.absolute().parent.parent]
    for file in (place / SETTINGS[found.cell] for place in places):
        if file.is_file():
            return _parse(file), str(file)
    where = " beside it or one folder above" if places else ""
    raise CheckpointError(
        f"{found.name}: no settings ({SETTINGS[found.cell]}){where}, and weights alone do not tell inner "
        "iterations, clamps and steps; put that file beside the weights, or call from_released with "
        "settings= (that file, or its contents) or config= (an IPVAEConfig or IGVAEConfig)"
    )


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable JSON file of settings ({error})") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(settings).__name__}")
    return settings


def _values(found: Weights, settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The configuration that settings and the shapes of the weights make together."""
    state = found.state
    if missing := [name for name in _REQUIRED if name not in settings]:
        raise CheckpointError(f"{origin}: missing {', '.join(missing)}")
    n_inputs, n_latents = state[DICTIONARY].shape
    activation = "relu" if "layer.activation.log_gain" in state else None
    only = {"inf_type": "grad", "dec_type": "lin", "latent_act": activation, "n_latents": [n_latents]}
    for name, value in only.items():
        if settings.get(name, value) != value:
            raise CheckpointError(
                f"{origin}: {name}: expected {value!r}, which this package has and the weights show, found "
                f"{settings[name]!r}"
            )
    beta_inner = state.get("layer.beta_inner")
    if not isinstance(beta_inner, Tensor) or beta_inner.shape != () or not beta_inner.is_floating_point():
        beta_inner = None  # loading the weights says what is wrong with it
    gaussian = {"activation": activation or "identity"}
    poisson = {"estimator": "sigmoid", "n_arrivals": "released", "init_log_rate": INIT_LOG_RATE}
    return {
        "cell": found.cell,
        "n_inputs": n_inputs,
        "n_latents": n_latents,
        "input_shape": SHAPES.get(n_inputs),
        "t_train": _count(settings, "t_train") * _count(settings, "n_iters_outer"),
        "n_inner": _count(settings, "n_iters_inner"),
        "beta_inner": 1.0 if beta_inner is None else float(beta_inner),
        "clamp_u": settings["clamp_u"],
        "clamp_du": settings["clamp_du"],
        "fit_prior": settings.get("fit_prior", True),
        "kl": "released",
        **(gaussian if found.cell == "gaussian" else poisson),
    }


def _count(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name, 1)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a positive integer, found {value!r}")
    return value
