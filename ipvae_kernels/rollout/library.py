"""The rollout as ops of ``torch.library``, and their derivatives.

A call passes an ``autograd.Function`` and then an op. The op is opaque to ``torch.compile``, has shapes for
fake tensors and a rule for ``torch.vmap``; the function has the gradients, in the form that ``torch.func``
understands.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _transforms, checks
from ..backend import choice, compiled
from . import checkpointing, eager, stretches
from .config import RolloutConfig
from .problem import Inputs, Trajectory, Upstream, schema, taken

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


_Flat = tuple[Tensor, ...]  # the fields of a Forward, then those of its trajectory


def check_finite(tensors: Sequence[Tensor]) -> None:
    """Refuses :class:`Inputs` that are not finite."""
    checks.finite(**_named(tensors))


def _named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(_NAMES, tensors, strict=True))


def check_loss(recon: Tensor, kl: Tensor, state: Tensor) -> None:
    """Refuses results that are not finite."""
    _check_results(_of_loss(recon, kl, state))


def _of_loss(recon: Tensor, kl: Tensor, state: Tensor) -> dict[str, Tensor]:
    return {"recon": recon.sum(), "kl": kl.sum(), "state": state}  # sums, because the loss is one


def _check_results(results: Mapping[str, Tensor], unseen: Inputs | None = None) -> None:
    """Refuses results that are not finite, and inputs that have not been looked at."""
    if unseen is None:
        checks.finite_result(DIVERGED, **results)
    else:
        checks.finite_together(DIVERGED, _named(unseen), results)


def _serve(backend: str, *parts: Any) -> tuple[Any, ...]:
    """The module that serves, and the tensors made dense."""
    module = choice.implementation(__package__, backend, *(tensor for part in parts for tensor in part))
    return module, *(type(part)(*(tensor.contiguous() for tensor in part)) for part in parts)


def _infer_kernel(*arguments: Any) -> list[Tensor]:
    """The final log rate, then the records named in ``record`` (comma separated, in canonical order)."""
    inputs, seed, cfg, (record, record_every, backend, check) = taken(arguments, Inputs)
    late = inputs.x.device.type in checks.LATE
    if check and not late:
        check_finite(inputs)
    module, inputs = _serve(backend, inputs)
    names = tuple(record.split(",")) if record else ()
    with _transforms.without_autocast(inputs.x.device):
        results = stretches.infer(module, inputs, seed, cfg, names, record_every)
    if check:
        _check_results(dict(zip(("state", *names), results, strict=True)), inputs if late else None)
    return results


def infer_packed(
    packed: stretches.Inference,
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    every: int,
    check: bool,
) -> list[Tensor]:
    """What the op ``infer`` computes on a CPU, from prepared parameters, which were looked at before."""
    if not (inputs.x.is_contiguous() and inputs.log_rate.is_contiguous()):
        dense = (inputs.x.detach().contiguous(), inputs.log_rate.detach().contiguous())
        inputs = inputs._replace(x=dense[0], log_rate=dense[1])
    # Of dense floats on the CPU: the general checks, which say more, took 15 microseconds more of a call.
    if check and not (compiled.dense_finite(inputs.x) and compiled.dense_finite(inputs.log_rate)):
        checks.finite(**{_NAMES[0]: inputs.x, _NAMES[-1]: inputs.log_rate})
    results = stretches.infer(packed, inputs, seed, cfg, record, every)
    if check and not all(map(compiled.dense_finite, results)):
        checks.finite_result(DIVERGED, **dict(zip(("state", *record), results, strict=True)))
    return results


def _infer_shapes(*arguments: Any) -> list[Tensor]:
    inputs, _, cfg, (record, every, *_) = taken(arguments, Inputs, fake=True)
    x, log_rate = inputs.x, inputs.log_rate
    # The first form does not depend on the step, on which a compiled graph then need not specialise.
    rows = (
        cfg.steps // every if cfg.steps % every == 0 else (cfg.step + cfg.steps) // every - cfg.step // every
    )
    shapes = eager.record_shapes(x.shape[-2], inputs.dictionary.shape, log_rate.shape)
    names = record.split(",") if record else []
    return [x.new_empty(log_rate.shape), *(x.new_empty((rows, *shapes[name])) for name in names)]


def _elbo_kernel(*arguments: Any) -> _Flat:
    """What ``checkpointing.elbo`` returns."""
    inputs, seed, cfg, (checkpoint, backend, check) = taken(arguments, Inputs)
    late = inputs.x.device.type in checks.LATE
    if check and not late:
        check_finite(inputs)
    module, inputs = _serve(backend, inputs)
    kept = checkpoint or checkpointing.steps_kept(cfg, inputs)
    with _transforms.without_autocast(inputs.x.device):
        recon, kl, state, trajectory = checkpointing.elbo(module, inputs, seed, cfg, kept)
    if check:
        _check_results(_of_loss(recon, kl, state), inputs if late else None)
    return recon, kl, state, *trajectory


def _elbo_shapes(*arguments: Any) -> _Flat:
    inputs, _, cfg, (checkpoint, *_) = taken(arguments, Inputs, fake=True)
    x, log_rate = inputs.x, inputs.log_rate
    kept = checkpoint or checkpointing.steps_kept(cfg, inputs)
    trajectory = Trajectory.empty(inputs, cfg if kept >= cfg.steps else cfg._replace(steps=0))
    if kept < cfg.steps:
        trajectory = trajectory._replace(path=x.new_empty((-(-cfg.steps // kept), *log_rate.shape)))
    loss = (x.new_empty((cfg.steps, x.shape[-2])) for _ in range(2))
    return *loss, x.new_empty(log_rate.shape), *trajectory


def _elbo_backward_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of all inputs.

    The first log rate is an argument so that a second derivative in it alone is refused as well; its numbers
    are those at the start of the path.
    """
    upstream, inputs, trajectory, seed, cfg, rest = taken(arguments, Upstream, Inputs, Trajectory)
    checkpoint, backend, check = rest
    inputs = inputs._replace(log_rate=trajectory.path[0])
    module, dense, inputs, trajectory = _serve(backend, upstream, inputs, trajectory)
    kept = checkpoint or checkpointing.steps_kept(cfg, inputs)
    with _transforms.without_autocast(inputs.x.device):
        gradients = checkpointing.elbo_backward(module, dense, inputs, trajectory, seed, cfg, kept)
    # A loss that is scaled on purpose until it overflows (torch.amp.GradScaler) is not the rollout's fault.
    if check and not checks.is_finite(*gradients) and checks.is_finite(*upstream):
        names = (f"gradient of {name}" for name in _NAMES)
        checks.finite_result(DIVERGED, **dict(zip(names, gradients, strict=True)))
    return gradients


def _elbo_backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    _, inputs, *_ = taken(arguments, Upstream, Inputs, Trajectory, fake=True)
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


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
    f"({schema(Inputs)}, str record, SymInt record_every, str backend, bool check) -> Tensor[]",
    _infer_kernel,
    _infer_shapes,
    functools.partial(_rule, "infer"),
)
_elbo = _transforms.define(
    "elbo",
    f"({schema(Inputs)}, SymInt? checkpoint, str backend, bool check) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _elbo_kernel,
    _elbo_shapes,
    functools.partial(_rule, "elbo"),
)
_elbo_backward = _transforms.define(
    "elbo_backward",
    f"({schema(Upstream, Inputs, Trajectory)}, SymInt? checkpoint, str backend, bool check) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Flat) -> None:
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


class _ElboRecorded(_ElboOnce):
    """The same whose trajectory is differentiable: states, codes and errors.

    The fused backward knows gradients of the loss alone. Others, which come where a record is differentiated
    with weights of its own, take the backward in plain PyTorch.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Flat) -> None:
        _Elbo.setup_context(ctx, inputs, output)
        _, _, slopes, _, drives = output[3:]
        ctx.mark_non_differentiable(slopes, drives)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        path, counts, _, errors, _ = grads[3:]
        if path is counts is errors is None:
            return _Elbo.backward(ctx, *grads)
        if torch.is_grad_enabled():
            raise _transforms.refused("elbo", "second derivative of a record")
        *tensors, seed, floats = ctx.saved_tensors
        upstream = [
            tensors[0].new_zeros(shape) if grad is None else grad
            for grad, shape in zip(grads[:3], ctx.shapes, strict=True)
        ]
        arguments = (*upstream, *tensors, seed, floats, *ctx.others)
        above, inputs, trajectory, _, cfg, _ = taken(arguments, Upstream, Inputs, Trajectory)
        recorded = eager.Recorded(path, counts, errors)
        with _transforms.without_autocast(inputs.x.device):
            found = eager.elbo_backward(above, inputs, trajectory, cfg, recorded)
        return *found, None, None, None


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
    if not _transforms.differentiated(*arguments[: len(Inputs._fields)]):
        recon, kl, log_rate, *_ = _elbo(*arguments)
        return recon, kl, log_rate
    function = _Elbo if torch.compiler.is_compiling() else _ElboOnce
    tensors, others = arguments[: len(Inputs._fields) + 2], arguments[len(Inputs._fields) + 2 :]
    recon, kl, log_rate, *_ = _transforms.apply(function, *tensors, others)
    return recon, kl, log_rate


def elbo_recorded(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Trajectory]:
    """The same, with a trajectory of all steps that is differentiable but for its slopes and drives."""
    function = _ElboRecorded.apply if _transforms.differentiated(*arguments[: len(Inputs._fields)]) else None
    tensors, others = arguments[: len(Inputs._fields) + 2], arguments[len(Inputs._fields) + 2 :]
    flat = _elbo(*arguments) if function is None else function(*tensors, others)  # type: ignore[no-untyped-call]
    recon, kl, log_rate, *kept = flat
    return recon, kl, log_rate, Trajectory(*kept)


def infer(*arguments: Any) -> Sequence[Tensor]:
    """The final log rate and the records, without gradient; arguments of the op ``infer``, in order."""
    served = _transforms.transformed()
    results: Sequence[Tensor] = _transforms.apply(_Infer, *arguments) if served else _infer(*arguments)
    return results
