"""The arguments that ``infer`` and ``elbo`` share, checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import checks
from ..cells import CELLS, name_of
from ..params import GaussianParams, PoissonParams, State
from ..poisson.divergence import KLS
from ..update.op import check_clamp
from .config import MATMUL_PRECISIONS, RolloutConfig
from .decoders import Decoder, LinearDecoder, as_decoder
from .drive import check_drive, driven
from .prepared import Prepared
from .problem import Inputs
from .shapes import prepared_tensors, tensors_of

Params = PoissonParams | GaussianParams | Prepared
Clamp = float | tuple[float, float] | None


class Task(NamedTuple):
    """Checked arguments of a rollout.

    Attributes:
        tensors: the floating tensors, beside a decoder the dictionary is empty.
        decoder: the caller's, or None.
        initial: the initial state in the parameters, for each sample; of prepared ones where it is the first.
        seed: int64, [].
        cfg: constants.
        prepared: the parameters, where they were prepared.
    """

    tensors: Inputs
    decoder: Decoder | None
    initial: Tensor
    seed: Tensor
    cfg: RolloutConfig
    prepared: Prepared | None

    def relaxed(self, estimator: str, temperature: float, n_arrivals: int | None) -> Task:
        """The same with relaxed counts, where its cell draws counts."""
        if not CELLS[self.cfg.cell].counts:
            return self
        cfg = self.cfg._replace(estimator=estimator, temperature=temperature, n_arrivals=n_arrivals)
        return self._replace(cfg=cfg)


class RolloutDecoder(LinearDecoder):
    """A linear decoder that computes all steps of a call, rather than one code at a time."""

    def infer(self, task: Task, names: tuple[str, ...], record_every: int, check: bool) -> Sequence[Tensor]:
        """The final state and the records by name, of a task whose dictionary this has."""
        raise NotImplementedError

    def elbo(self, task: Task, checkpoint: int | None, check: bool) -> tuple[Tensor, Tensor, Tensor]:
        """recon and kl [T, B], and the final state; differentiable."""
        raise NotImplementedError


def task_of(
    x: Tensor,
    params: Params,
    steps: int,
    decoder: nn.Module | Decoder | None,
    state: State | None,
    seed: int | Tensor | None,
    n_inner: int,
    beta_inner: float,
    decay: float,
    drive: str,
    clamp_u: Clamp,
    clamp_du: Clamp,
    kl: str,
    single_draw: bool,
    sample_offset: int | None,
    neuron_offset: int,
    matmul_precision: str,
) -> Task:
    """Checks the arguments that ``infer`` and ``elbo`` share."""
    options = (
        steps,
        n_inner,
        beta_inner,
        decay,
        drive,
        clamp_u,
        clamp_du,
        kl,
        single_draw,
        neuron_offset,
        matmul_precision,
    )
    if state is not None and not isinstance(state, State):
        raise TypeError(f"state: expected a State or None, found {type(state).__name__}")
    if isinstance(params, Prepared) and torch.compiler.is_compiling():
        params = params.traced
    prepared = params if isinstance(params, Prepared) else None
    params, own = _decoder(unprepared(params), decoder)
    if prepared is None:
        cell = name_of(params)
        steps = checks.integer("steps", steps, 1, 2**32)
        tensors, initial = tensors_of(x, params, steps, own is None, state)
        cfg = _config(cell, len(tensors.log_bias), *options)
        tensors = driven(tensors, own, cfg.drive)
    else:
        checks.tensor("x", x)
        x = checks.raised(x) if prepared.half else x
        cfg = _config_once(prepared.cell, prepared.inputs.log_bias.numel(), options)
        prepared.check_drive(cfg.drive)
        tensors, initial = prepared_tensors(x, prepared.inputs, prepared.cell, cfg.steps, state)
    own_seed = state is not None and seed is None
    if state is not None:
        seed = state.seed if seed is None else seed
        sample_offset = state.sample_offset if sample_offset is None else sample_offset
    step, offset = 0 if state is None else state.step, 0 if sample_offset is None else sample_offset
    step, offset = checks.stream(step, cfg.steps, offset, x.shape[-2])
    seed = checks.seed(seed, x.device)
    # A seed of the caller's, who may fill it anew for the next call, is copied: the state keeps this one.
    return Task(
        tensors, own, initial, seed if own_seed else seed.clone(),
        cfg._replace(step=step, sample_offset=offset), prepared,
    )  # fmt: skip


def _config(
    cell: str,
    neurons: int,
    steps: int,
    n_inner: int,
    beta_inner: float,
    decay: float,
    drive: str,
    clamp_u: Clamp,
    clamp_du: Clamp,
    kl: str,
    single_draw: bool,
    neuron_offset: int,
    matmul_precision: str,
) -> RolloutConfig:
    """The constants, checked; of a sequence from its start."""
    n_inner = checks.integer("n_inner", n_inner, 1, 256)
    single_draw = checks.flag("single_draw", single_draw)
    if single_draw and n_inner > 1:
        raise ValueError(f"single_draw: expected n_inner = 1 with it, found {n_inner}")
    drive, decay = check_drive(cell, drive), checks.number("decay", decay, 0.0)
    if single_draw and drive == "expected":
        raise ValueError("single_draw: expected False with drive='expected', whose updates draw nothing")
    if decay and not CELLS[cell].counts:
        raise ValueError(f"decay: expected 0 for a Gaussian model, found {decay}")
    u, *xi = _clamps("clamp_u", clamp_u, CELLS[cell].clamp_u)
    du, *dxi = _clamps("clamp_du", clamp_du, CELLS[cell].clamp_du)
    of_xi: dict[str, Any] = {"clamp_xi": xi[0], "clamp_dxi": dxi[0]} if xi else {}
    return RolloutConfig(
        steps=checks.integer("steps", steps, 1, 2**32),
        n_inner=n_inner,
        beta_inner=checks.number("beta_inner", beta_inner, 0.0),
        decay=decay,
        drive=drive,
        clamp_u=u,
        clamp_du=du,
        kl=checks.choice("kl", kl, KLS),
        single_draw=single_draw,
        cell=cell,
        neuron_offset=checks.neuron_offset(neuron_offset, neurons),
        matmul_precision=checks.choice("matmul_precision", matmul_precision, MATMUL_PRECISIONS),
        **of_xi,
    )


# Checking the constants again took a tenth of a call of one step. Types tell True from 1; what can be written
# to, a tensor above all, is not remembered.
_PLAIN = {int, float, str, bool, type(None)}
_known = functools.lru_cache(maxsize=256, typed=True)(_config)


def _config_once(cell: str, neurons: int, options: tuple[Any, ...]) -> RolloutConfig:
    """The same, remembered where that can be."""
    make = _config if torch.compiler.is_compiling() or not _PLAIN.issuperset(map(type, options)) else _known
    return make(cell, neurons, *options)


def unprepared(params: Params) -> PoissonParams | GaussianParams:
    """The parameters themselves, which are as they were when they were prepared."""
    if not isinstance(params, Prepared):
        return params
    params.check()
    return params.params


def _decoder(
    params: PoissonParams | GaussianParams, decoder: nn.Module | Decoder | None
) -> tuple[PoissonParams | GaussianParams, Decoder | None]:
    """The parameters, with the dictionary of a linear decoder; and any other."""
    if decoder is None or not isinstance(params, (PoissonParams, GaussianParams)):
        return params, None
    if params.dictionary is not None:
        raise ValueError("params.dictionary: expected None beside a decoder, found a tensor")
    if type(decoder) is LinearDecoder:
        return replace(params, dictionary=decoder.dictionary), None
    return params, as_decoder(decoder)


def _clamps(name: str, value: Clamp, default: tuple[float, ...]) -> tuple[float, ...]:
    """A ceiling for each number of a state."""
    if value is None:
        return default
    if len(default) == 1:
        if isinstance(value, tuple):
            raise TypeError(f"{name}: expected a number for a Poisson model, found a tuple")
        return (check_clamp(name, value),)
    if not isinstance(value, tuple) or len(value) != len(default):
        raise TypeError(f"{name}: expected a pair of numbers for a Gaussian model, found {value!r}")
    return tuple(checks.number(name, part, 0.0, above=True) for part in value)
