"""One differentiable step, for loops that a caller writes; the equations are in ``op.py``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _transforms, checks
from ..backend import choice
from ..params import State
from ..poisson.op import check_estimator
from . import composed, eager, library
from .decoders import Decoder
from .task import Clamp, Params, task_of, unprepared


class StepResult(NamedTuple):
    """What a step gives; all but the state as the records of :func:`infer` by these names.

    Attributes:
        state: where the sequence stands; pass it to the next step.
        counts: the fresh draw z', [B, K]; of Gaussian models the latents after the activation.
        reconstruction: the decoder's mean for z', [B, M].
        recon: reconstruction term of the loss, [B], nats.
        kl: KL term of the loss, [B], nats.
    """

    state: State
    counts: Tensor
    reconstruction: Tensor
    recon: Tensor
    kl: Tensor


_transforms.register_results(StepResult)


def step(
    x: Tensor,
    params: Params,
    *,
    decoder: nn.Module | Decoder | None = None,
    state: State | None = None,
    estimator: str = "cubic",
    temperature: float = 0.1,
    n_arrivals: int | None = None,
    seed: int | Tensor | None = None,
    n_inner: int = 1,
    beta_inner: float = 1.0,
    decay: float = 0.0,
    drive: str = "paper",
    clamp_u: Clamp = None,
    clamp_du: Clamp = None,
    kl: str = "exact",
    single_draw: bool = False,
    sample_offset: int | None = None,
    neuron_offset: int = 0,
    backend: str = "auto",
    check: bool = True,
) -> StepResult:
    """One step, of which every result is differentiable by autograd, through the ops of a backend.

    T of them, each with the state of the one before, give the recon, kl and state of :func:`elbo` over T
    steps at the same seed, up to the order of sums, and with it their gradients; and the counts, to any loss
    of one's own. :func:`elbo` is faster where nothing happens between the steps. Without gradients,
    ``infer(x, params, 1, state=state, record=...)`` is.

    Args:
        x: input, [B, M], float32 or float64.
        params: as in :func:`elbo`, and so are all others, which are named as there.
        decoder: None: the linear one in ``params``; else a module or a :class:`Decoder`.
        state: continue from here; None starts from the initial state in ``params``. ``state.detach()``
            truncates the gradient.
        estimator: how counts are drawn and differentiated.
        temperature: of the relaxation.
        n_arrivals: keep the first n arrivals only.
        seed: None: that of the state if it has one.
        n_inner: updates.
        beta_inner: weight of the pull towards the prior.
        decay: weight of the pull towards a log rate of 0.
        drive: "paper", "sampled" or "expected".
        clamp_u: ceiling of the state.
        clamp_du: ceiling of its update.
        kl: "exact" or "released".
        single_draw: the update takes the fresh draw of the step before, which is made again.
        sample_offset: global index of the first sample.
        neuron_offset: global index of the first neuron.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd".
        check: raise where a tensor or a result is not finite.

    Returns:
        The state and what the step gave.

    Raises:
        TypeError, ValueError: an argument is not as described; a tensor is not finite.
        BackendError: a backend named cannot serve.
    """
    check = checks.flag("check", check)
    temperature, n_arrivals = check_estimator(estimator, temperature, n_arrivals)
    one_frame(x)
    task = task_of(
        x, unprepared(params), 1, decoder, state, seed, n_inner, beta_inner, decay, drive, clamp_u,
        clamp_du, kl, single_draw, sample_offset, neuron_offset, "float32",
    )  # fmt: skip
    task = task.relaxed(estimator, temperature, n_arrivals)
    if check:
        library.check_finite(task.tensors)
    cell, log_sigma = composed.cell_for("step", task, choice.select(backend)), task.tensors.log_sigma
    first = _transforms.mapped_with(task.tensors.log_rate, *task.tensors)
    with torch.autocast(task.tensors.x.device.type, enabled=False):
        (taken,) = eager.run(*composed.parts(task), cell, first, task.cfg)
        prior, posterior, error = taken.states[0], taken.states[-1], taken.errors[-1]
        recon = eager.reconstruction_loss(error, log_sigma)
        divergence = cell.kl(posterior, prior).sum(-1)
    if check:
        library.check_loss(recon, divergence, posterior)
    state = State(posterior, task.cfg.step + 1, task.seed, task.cfg.sample_offset)
    return StepResult(state, taken.draws[-1].code, task.tensors.x - error, recon, divergence)


def one_frame(x: object) -> None:
    """An input of one step.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another number of dimensions.
    """
    checks.tensor("x", x)
    assert isinstance(x, Tensor)
    if x.dim() != 2:
        raise ValueError(f"x: expected one frame, shape [B, M], found {list(x.shape)}")
