"""The arguments that ``infer`` and ``elbo`` share, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from .. import checks
from ..cells import CELLS, KLS, name_of
from ..params import GaussianParams, PoissonParams, State
from ..update.op import check_clamp
from .config import MATMUL_PRECISIONS, RolloutConfig
from .decoders import Decoder, LinearDecoder, as_decoder
from .problem import Inputs

Params = PoissonParams | GaussianParams
Clamp = float | tuple[float, float] | None


class Task(NamedTuple):
    """Checked arguments of a rollout.

    Attributes:
        tensors: the floating tensors, beside a decoder the dictionary is empty.
        decoder: the caller's, or None.
        initial: the initial state in the parameters, for each sample.
        seed: int64, [].
        cfg: constants.
    """

    tensors: Inputs
    decoder: Decoder | None
    initial: Tensor
    seed: Tensor
    cfg: RolloutConfig


def prepare(
    x: Tensor,
    params: Params,
    steps: int,
    decoder: nn.Module | Decoder | None,
    state: State | None,
    seed: int | Tensor | None,
    n_inner: int,
    beta_inner: float,
    clamp_u: Clamp,
    clamp_du: Clamp,
    kl: str,
    single_draw: bool,
    sample_offset: int | None,
    neuron_offset: int,
    matmul_precision: str,
) -> Task:
    """Checks the arguments that ``infer`` and ``elbo`` share."""
    steps = checks.integer("steps", steps, 1, 2**32)
    n_inner = checks.integer("n_inner", n_inner, 1, 256)
    beta_inner = checks.number("beta_inner", beta_inner, 0.0)
    checks.choice("kl", kl, KLS)
    single_draw = checks.flag("single_draw", single_draw)
    checks.choice("matmul_precision", matmul_precision, MATMUL_PRECISIONS)
    if single_draw and n_inner > 1:
        raise ValueError(f"single_draw: expected n_inner = 1 with it, found {n_inner}")
    if state is not None and not isinstance(state, State):
        raise TypeError(f"state: expected a State or None, found {type(state).__name__}")
    params, own = _decoder(params, decoder)
    tensors, initial = _tensors(x, params, steps, own is None, state)
    batch = x.shape[-2]
    if state is not None:
        seed = state.seed if seed is None else seed
        sample_offset = state.sample_offset if sample_offset is None else sample_offset
    step, offset = 0 if state is None else state.step, 0 if sample_offset is None else sample_offset
    step, offset = checks.stream(step, steps, offset, batch)
    cfg = RolloutConfig(
        steps=steps, n_inner=n_inner, beta_inner=beta_inner, kl=kl, single_draw=single_draw,
        step=step, sample_offset=offset, matmul_precision=matmul_precision, cell=name_of(params),
        neuron_offset=checks.neuron_offset(neuron_offset, len(tensors[3])),
    )  # fmt: skip
    cell = CELLS[cfg.cell]
    u, *xi = _clamps("clamp_u", clamp_u, cell.clamp_u)
    du, *dxi = _clamps("clamp_du", clamp_du, cell.clamp_du)
    cfg = cfg._replace(clamp_u=u, clamp_du=du)
    if xi:
        cfg = cfg._replace(clamp_xi=xi[0], clamp_dxi=dxi[0])
    # A seed of the caller's, who may fill it anew for the next call, is copied: the state keeps this one.
    return Task(tensors, own, initial, checks.seed(seed, x.device).clone(), cfg)


def _decoder(params: Params, decoder: nn.Module | Decoder | None) -> tuple[Params, Decoder | None]:
    """The parameters, with the dictionary of a linear decoder; and any other decoder."""
    if decoder is None or not isinstance(params, PoissonParams | GaussianParams):
        return params, None
    if params.dictionary is not None:
        raise ValueError("params.dictionary: expected None beside a decoder, found a tensor")
    if isinstance(decoder, LinearDecoder):
        return replace(params, dictionary=decoder.dictionary), None
    return params, as_decoder(decoder)


def _tensors(
    x: Tensor, params: Params, steps: int, linear: bool, state: State | None
) -> tuple[Inputs, Tensor]:
    """The tensors of a task, and the initial state of the parameters for each sample."""
    checks.tensor("x", x)
    cell = CELLS[name_of(params)]
    n_states = len(cell.states)
    lead, leading = ((n_states,), f"{n_states}, ") if n_states > 1 else ((), "")
    start_name = f"params.{cell.start}"
    sized = "params.dictionary" if linear else "params.log_sigma"
    named = {
        "x": x,
        sized: getattr(params, sized.removeprefix("params.")),
        "params.log_sigma": params.log_sigma,
        "params.log_bias": params.log_bias,
        "params.log_lr": params.log_lr,
        start_name: getattr(params, cell.start),
    }
    if state is not None:
        named["state.log_rate"] = state.log_rate
    x, *others = checks.full_precision(sized, **named)
    log_sigma, log_bias, log_lr, start, *first = others[1:] if linear else others
    dictionary = others[0] if linear else log_sigma.new_empty((0, 0))
    if linear and (dictionary.dim() != 2 or 0 in dictionary.shape):
        raise ValueError(
            f"params.dictionary: expected shape [M, K], neither of them 0, found {list(dictionary.shape)}"
        )
    pixels, neurons = dictionary.shape if linear else (log_sigma.numel(), log_bias.numel())
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape [B, M] or [steps, B, M], found {list(x.shape)}")
    if x.dim() == 3 and x.shape[0] != steps:
        raise ValueError(f"x: expected one frame per step, steps = {steps}, found {x.shape[0]} frames")
    if x.shape[-1] != pixels:
        raise ValueError(f"x: expected last dimension M = {pixels} as in {sized}, found {x.shape[-1]}")
    checks.shape("params.log_sigma", log_sigma, (pixels,), "[M]")
    checks.shape("params.log_bias", log_bias, (neurons,), "[K]")
    checks.shape("params.log_lr", log_lr, lead, f"{list(lead)}")
    checks.shape(start_name, start, (*lead, neurons), f"[{leading}K]")
    full = (*lead, x.shape[-2], neurons)
    initial = start.unsqueeze(-2).expand(full)
    if first:
        checks.shape("state.log_rate", first[0], full, f"[{leading}B, K]")
    state_before = first[0] if first else initial
    return Inputs(x, dictionary, log_sigma, log_bias, log_lr, state_before), initial


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
