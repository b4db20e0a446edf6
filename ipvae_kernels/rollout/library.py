"""The rollout as ops of ``torch.library``, and their derivatives.

A call passes an ``autograd.Function`` and then an op. The op is opaque to ``torch.compile``, has shapes for
fake tensors and a rule for ``torch.vmap``; the function has the gradients, in the form that ``torch.func``
understands.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _transforms, checks
from ..backend import choice
from . import checkpointing, eager, stretches
from .config import RolloutConfig

Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""x, dictionary, log_sigma, log_bias, log_lr, and the state before the first step."""

DIVERGED = (
    "the rollout left the range of floating point numbers; are x, the parameters and the clamps reasonable?"
)

_NAMES = (
    "x",
    "params.dictionary",
    "params.log_sigma",
    "params.log_bias",
    "params.log_lr",
    "initial state (params or state)",
)
# The constants of a rollout: the floats are one tensor (see _transforms.packed), the others arguments.
_FLOATS = ("beta_inner", "clamp_u", "clamp_du", "temperature", "clamp_xi", "clamp_dxi")
_OTHERS = {
    "steps": "SymInt",
    "n_inner": "SymInt",
    "kl": "str",
    "single_draw": "bool",
    "estimator": "str",
    "n_arrivals": "SymInt?",
    "step": "SymInt",
    "sample_offset": "SymInt",
    "neuron_offset": "SymInt",
    "cell": "str",
    "matmul_precision": "str",
}
_TENSORS = "Tensor x, Tensor dictionary, Tensor log_sigma, Tensor log_bias, Tensor log_lr, Tensor log_rate"
# ``mapped``: how many rows of torch.vmap the indices of the noise are already spread over.
_CONFIG = (
    "Tensor seed, Tensor floats, "
    + ", ".join(f"{kind} {name}" for name, kind in _OTHERS.items())
    + ", SymInt mapped"
)
_TRACE = "Tensor path, Tensor counts, Tensor slopes, Tensor errors, Tensor drives"
_FIRST = 6  # of the constants among the arguments of the forward ops
_SIZE = 3 + len(_OTHERS)


def constants(seed: Tensor, cfg: RolloutConfig) -> tuple[Any, ...]:
    """Seed and constants as the arguments of the ops."""
    floats = _transforms.packed(*(getattr(cfg, name) for name in _FLOATS))
    return (seed, floats, *(getattr(cfg, name) for name in _OTHERS), 1)


def _config(arguments: Sequence[Any], *, fake: bool = False) -> RolloutConfig:
    """The configuration from the arguments of :func:`constants`; of fake tensors, without the floats."""
    _, floats, *others = arguments[:-1]
    numbers = {} if fake else dict(zip(_FLOATS, floats.tolist(), strict=True))
    return RolloutConfig(**dict(zip(_OTHERS, others, strict=True)), **numbers)


def check_finite(tensors: Tensors) -> None:
    """Refuses arguments that are not finite."""
    checks.finite(**dict(zip(_NAMES, tensors, strict=True)))


def check_loss(recon: Tensor, kl: Tensor, state: Tensor) -> None:
    """Refuses results that are not finite; sums, because the loss is one."""
    checks.finite_result(DIVERGED, recon=recon.sum(), kl=kl.sum(), state=state)


def _serve(backend: str, tensors: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    module = choice.implementation(__package__, backend, *tensors)
    return module, [tensor.contiguous() for tensor in tensors]


def _infer_kernel(*arguments: Any) -> list[Tensor]:
    """The final log rate, then the records named in ``record`` (comma separated, in canonical order)."""
    tensors, cfg = arguments[:_FIRST], _config(arguments[_FIRST : _FIRST + _SIZE])
    record, record_every, backend, check = arguments[_FIRST + _SIZE :]
    if check:
        check_finite(tensors)
    module, dense = _serve(backend, tensors)
    names = tuple(record.split(",")) if record else ()
    with _transforms.without_autocast(dense[0].device):
        x, *parameters, log_rate = dense
        results = stretches.infer(
            module, x, parameters, log_rate, arguments[_FIRST], cfg, names, record_every
        )
    if check:
        checks.finite_result(DIVERGED, **dict(zip(("state", *names), results, strict=True)))
    return results


def _infer_shapes(*arguments: Any) -> list[Tensor]:
    x, dictionary, *_, log_rate = arguments[:_FIRST]
    cfg = _config(arguments[_FIRST : _FIRST + _SIZE], fake=True)
    record, every = arguments[_FIRST + _SIZE : _FIRST + _SIZE + 2]
    # The first form does not depend on the step, on which a compiled graph then need not specialise.
    rows = (
        cfg.steps // every if cfg.steps % every == 0 else (cfg.step + cfg.steps) // every - cfg.step // every
    )
    shapes = eager.record_shapes(x.shape[-2], dictionary.shape, log_rate.shape)
    names = record.split(",") if record else []
    return [x.new_empty(log_rate.shape), *(x.new_empty((rows, *shapes[name])) for name in names)]


def _elbo_kernel(*arguments: Any) -> eager.Trace:
    """What ``checkpointing.elbo`` returns; shapes at ``eager.Trace``."""
    tensors, cfg = arguments[:_FIRST], _config(arguments[_FIRST : _FIRST + _SIZE])
    checkpoint, backend, check = arguments[_FIRST + _SIZE :]
    if check:
        check_finite(tensors)
    module, (x, *parameters, log_rate) = _serve(backend, tensors)
    kept = checkpoint or checkpointing.steps_kept(cfg, x, tensors[1])
    with _transforms.without_autocast(x.device):
        trace = checkpointing.elbo(module, x, parameters, log_rate, arguments[_FIRST], cfg, kept)
    if check:
        check_loss(*trace[:3])
    return trace


def _elbo_shapes(*arguments: Any) -> eager.Trace:
    x, dictionary, *_, log_rate = arguments[:_FIRST]
    cfg = _config(arguments[_FIRST : _FIRST + _SIZE], fake=True)
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    kept = arguments[_FIRST + _SIZE] or checkpointing.steps_kept(cfg, x, dictionary)
    whole = cfg.steps if kept >= cfg.steps else 0
    updates, draws = whole * cfg.n_inner, (whole, cfg.n_inner + 1, batch)
    states = updates + 1 if whole else -(-cfg.steps // kept)
    return (
        x.new_empty((cfg.steps, batch)),
        x.new_empty((cfg.steps, batch)),
        x.new_empty(log_rate.shape),
        x.new_empty((states, *log_rate.shape)),
        x.new_empty((*draws, neurons)),
        x.new_empty((*draws, neurons)),
        x.new_empty((*draws, pixels)),
        x.new_empty((updates, batch, neurons)),
    )


def _elbo_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of x, dictionary, log_sigma, log_bias, log_lr and of the first log rate.

    The first log rate is an argument so that a second derivative in it alone is refused as well.
    """
    grads, tensors, trace = arguments[:3], arguments[3:9], arguments[9:14]
    cfg = _config(arguments[14 : 14 + _SIZE])
    checkpoint, backend, check = arguments[14 + _SIZE :]
    module, dense = _serve(backend, (*grads, *tensors[:5], *trace))
    x, parameters = dense[3], dense[4:8]
    kept = checkpoint or checkpointing.steps_kept(cfg, x, tensors[1])
    with _transforms.without_autocast(x.device):
        gradients = checkpointing.elbo_backward(
            module, (dense[0], dense[1], dense[2]), x, parameters, arguments[14], dense[8:], cfg, kept
        )
    # A loss that is scaled on purpose until it overflows (torch.amp.GradScaler) is not the rollout's fault.
    if check and checks.is_finite(*grads):
        names = (f"gradient of {name}" for name in _NAMES)
        checks.finite_result(DIVERGED, **dict(zip(names, gradients, strict=True)))
    return gradients


def _elbo_backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[3:9])


def _rule(public: str, op: Any, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
    """The rule of ``torch.vmap``: a call a row, each with noise of its own where vmap was asked for that."""
    names = [argument.name for argument in op._schema.arguments]
    x, seed, offset, mapped = (names.index(part) for part in ("x", "seed", "sample_offset", "mapped"))
    # A backward runs draws again: its rows have draws of their own where those of the forward had.
    again = "path" in names and in_dims[names.index("path")] is None
    shift = not again and _transforms.shift_of_rows(public, info.randomness, in_dims[seed] is not None)

    def place(v: int, row: list[Any]) -> None:
        if shift:
            batch = row[x].shape[-2]
            row[offset] = checks.stream(0, 0, row[offset] + v * row[mapped] * batch, batch)[1]
            row[mapped] *= info.batch_size

    return _transforms.each_row(op, info, in_dims, *arguments, place=place)


_infer = _transforms.define(
    "infer",
    f"({_TENSORS}, {_CONFIG}, str record, SymInt record_every, str backend, bool check) -> Tensor[]",
    _infer_kernel,
    _infer_shapes,
    functools.partial(_rule, "infer"),
)
_elbo = _transforms.define(
    "elbo",
    f"({_TENSORS}, {_CONFIG}, SymInt? checkpoint, str backend, bool check) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _elbo_kernel,
    _elbo_shapes,
    functools.partial(_rule, "elbo"),
)
_elbo_backward = _transforms.define(
    "elbo_backward",
    f"(Tensor grad_recon, Tensor grad_kl, Tensor grad_log_rate, {_TENSORS}, {_TRACE}, {_CONFIG}, "
    "SymInt? checkpoint, str backend, bool check) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _elbo_backward_kernel,
    _elbo_backward_shapes,
    functools.partial(_rule, "elbo"),
)


class _Elbo(torch.autograd.Function):
    """The loss and its gradient by hand; as ``torch.compile`` traces it, without the refusals."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        dictionary: Tensor,
        log_sigma: Tensor,
        log_bias: Tensor,
        log_lr: Tensor,
        log_rate: Tensor,
        seed: Tensor,
        floats: Tensor,
        others: tuple[Any, ...],
    ) -> Any:
        # Spelled out: torch.compile counts the parameters to tell this form from the one with ctx.
        return _elbo(x, dictionary, log_sigma, log_bias, log_lr, log_rate, seed, floats, *others)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: eager.Trace) -> None:
        *tensors, seed, floats, ctx.others = inputs
        ctx.save_for_backward(*tensors, *output[3:], seed, floats)
        ctx.mark_non_differentiable(*output[3:])
        # Else autograd hands the backward zeros as large as the whole trajectory.
        ctx.set_materialize_grads(False)
        ctx.shapes = [part.shape for part in output[:3]]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors  # once: non-reentrant checkpointing hands them out a single time
        upstream = [
            saved[0].new_zeros(shape) if grad is None else grad
            for grad, shape in zip(grads[:3], ctx.shapes, strict=True)
        ]
        arguments = (*upstream, *saved, *ctx.others)
        if torch.compiler.is_compiling():
            return *_elbo_backward(*arguments), None, None, None
        return *_transforms.apply(_ElboBackward, *arguments), None, None, None


class _ElboOnce(_Elbo):
    """The same, which refuses forward mode; ``torch.compile`` takes no function with a rule for it."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _transforms.refused("elbo", "forward mode (jvp, jacfwd, hessian)")


class _ElboBackward(torch.autograd.Function):
    """The gradient, which refuses to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _elbo_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise _transforms.refused("elbo", "second derivative")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _transforms.refused("elbo", "second derivative")


class _Infer(torch.autograd.Function):
    """Inference, which has no gradient and says so where forward mode would return zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return tuple(_infer(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _transforms.refused("infer", "derivative")


def elbo(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """recon, kl and log_rate, differentiable in the tensors; arguments of the op ``elbo``, in order."""
    if not _transforms.differentiated(*arguments[:_FIRST]):
        recon, kl, log_rate, *_ = _elbo(*arguments)
        return recon, kl, log_rate
    function = _Elbo if torch.compiler.is_compiling() else _ElboOnce
    tensors, others = arguments[: _FIRST + 2], arguments[_FIRST + 2 :]
    recon, kl, log_rate, *_ = _transforms.apply(function, *tensors, others)
    return recon, kl, log_rate


def infer(*arguments: Any) -> Sequence[Tensor]:
    """The final log rate and the records, without gradient; arguments of the op ``infer``, in order."""
    served = _transforms.transformed()
    results: Sequence[Tensor] = _transforms.apply(_Infer, *arguments) if served else _infer(*arguments)
    return results
