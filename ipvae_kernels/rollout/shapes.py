"""The tensors of a rollout, checked: types, devices and shapes."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..cells import CELLS, name_of
from ..params import GaussianParams, PoissonParams, State
from .problem import Inputs


def tensors_of(
    x: Tensor, params: PoissonParams | GaussianParams, steps: int, linear: bool, state: State | None
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
    if checks.is_half(params.log_sigma):  # of a module in half precision; states are float32 all the same
        named = {name: checks.raised(value) for name, value in named.items()}
    x, *others = checks.full_precision(sized, **named)
    log_sigma, log_bias, log_lr, start, *first = others[1:] if linear else others
    dictionary = others[0] if linear else log_sigma.new_empty((0, 0))
    if linear and (dictionary.dim() != 2 or 0 in dictionary.shape):
        raise ValueError(
            f"params.dictionary: expected shape [M, K], neither of them 0, found {list(dictionary.shape)}"
        )
    pixels, neurons = dictionary.shape if linear else (log_sigma.numel(), log_bias.numel())
    _check_frames(x, steps, pixels, sized)
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


def prepared_tensors(
    x: Tensor, given: Inputs, cell: str, steps: int, state: State | None
) -> tuple[Inputs, Tensor]:
    """The same beside parameters that were checked before, ``given`` for one sample.

    The second tensor is the state itself where there is one: ``elbo``, which asks for the other, comes with
    parameters as they are.
    """
    parts = {"params": given.log_sigma, "x": x}
    if state is not None:
        checks.tensor("state.log_rate", state.log_rate)
        parts["state.log_rate"] = state.log_rate
    _, x, *first = (
        parts.values() if checks.alike(*parts.values()) else checks.full_precision("params", **parts)
    )
    pixels, neurons = given.dictionary.shape
    _check_frames(x, steps, pixels, "params.dictionary")
    shape = (*given.log_rate.shape[:-2], x.shape[-2], neurons)
    if first:
        if first[0].shape != shape:
            leading = f"{len(CELLS[cell].states)}, " if len(CELLS[cell].states) > 1 else ""
            checks.shape("state.log_rate", first[0], shape, f"[{leading}B, K]")
        state_before = first[0]
    else:
        state_before = given.log_rate.expand(shape)
    return given._replace(x=x, log_rate=state_before), state_before


def _check_frames(x: Tensor, steps: int, pixels: int, sized: str) -> None:
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected shape [B, M] or [steps, B, M], found {list(x.shape)}")
    check_steps(x, steps)
    if x.shape[-1] != pixels:
        raise ValueError(f"x: expected last dimension M = {pixels} as in {sized}, found {x.shape[-1]}")


def check_steps(x: Tensor, steps: int) -> None:
    """Moving input has a frame for each step."""
    if x.dim() == 3 and x.shape[0] != steps:
        raise ValueError(f"x: expected one frame per step, steps = {steps}, found {x.shape[0]} frames")
