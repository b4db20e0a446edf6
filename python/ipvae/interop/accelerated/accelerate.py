"""`accelerate`, which changes a live object of the authors' code, and `deaccelerate`, which restores it."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import Tensor

from .forward import AccelerationWarning, engine_of, install, remove
from .frames import Upcoming
from .recognise import check_model, is_trainer

__all__ = ["AccelerationWarning", "accelerate", "deaccelerate"]
Theirs = TypeVar("Theirs")


def accelerate(model_or_trainer: Theirs) -> Theirs:
    """Runs a live model of the authors' code, or all models of their trainer, on this package's kernels.

    The object itself changes, by attributes of the instance; their classes and modules stay as they are, and
    so do parameters, buffers, ``state_dict``, optimizer and every other method. What follows goes through
    `ipvae_kernels.elbo` where it has a gradient or relaxed counts, and through `ipvae_kernels.infer`
    elsewhere, many steps at a time: a training window at its first step, an evaluation as far as the last one
    went. ``loss_kl`` [B, K], ``loss_recon`` [B] and the posterior of every step, the extras, the layer's
    ``u``, ``u_prior``, ``samples`` and ``conditional`` are there as before, and differentiable as before.

    A model alone sees one frame at a time. It takes a still input for one that stays, and says so
    (`AccelerationWarning`) where it has to go step by step because the input moves. The trainer form knows
    the frames to come from the feeder. What the kernels have not (activations but relu, leapfrog, a Gaussian
    temperature other than 1, relaxed counts beyond the table ``n_exp``) runs as before, with a warning that
    names the reason.

    Noise is this package's: a seed for each sequence, drawn from torch's generator of the model's device, so
    that ``torch.manual_seed`` fixes a run; the draws are other ones than without acceleration. Of rectified
    models ``layer.samples`` holds the latents after rectification.

    Args:
        model_or_trainer: an ``IPVAE`` or ``IGVAE`` of theirs, or a ``Trainer``; its average of weights
            (``model_ema``) and models that it makes later are covered.

    Returns:
        The same object.

    Raises:
        TypeError: it is neither, or of a class that computes otherwise.

    Example:
        >>> trainer = ipvae.accelerate(Trainer(model, config))
        >>> trainer.train()
    """
    if is_trainer(model_or_trainer):
        _accelerate_trainer(model_or_trainer)
        return model_or_trainer
    check_model(model_or_trainer)
    if engine_of(model_or_trainer) is None:
        install(model_or_trainer)
    return model_or_trainer


def deaccelerate(model_or_trainer: Theirs) -> Theirs:
    """Undoes `accelerate`: the object computes as before, from the state that it is in.

    Returns:
        The same object.

    Raises:
        TypeError: it is neither a model nor a trainer of the authors' code.
    """
    if is_trainer(model_or_trainer):
        vars(model_or_trainer).pop("get_feeder", None)
        for model in _models(model_or_trainer):
            deaccelerate(model)
        return model_or_trainer
    check_model(model_or_trainer)
    if engine_of(model_or_trainer) is not None:
        remove(model_or_trainer)
    return model_or_trainer


def _models(trainer: Any) -> list[Any]:
    return [model for model in (trainer.model, trainer.model_ema) if model is not None]


def _accelerate_trainer(trainer: Any) -> None:
    for model in _models(trainer):
        accelerate(model)
    trainer.get_feeder = MethodType(get_feeder, trainer)


def get_feeder(self: Any, x: Tensor | None = None, **options: Any) -> Any:
    """Their method, whose feeder lets the models see the frames to come."""
    feeder = type(self).get_feeder(self, x, **options)
    upcoming = Upcoming(feeder)
    for model in _models(self):  # also those that came with reset_model or swap_model
        engine = engine_of(accelerate(model))
        assert engine is not None
        engine.upcoming = upcoming
    return feeder
