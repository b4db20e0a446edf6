"""Sharded neurons by the compiled CPU kernels: a call asks for a sum once a draw or an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from .. import checks
from ..backend import choice
from ..rollout import checkpointing, cpu, library
from ..rollout.config import RolloutConfig
from ..rollout.eager import RECORDS
from ..rollout.problem import PARAMETERS, Inputs, Trajectory, Upstream
from ..rollout.task import RolloutDecoder, Task
from .collectives import halves
from .decoder import ShardedDecoder
from .turns import Turns

Found = TypeVar("Found")
# What has a number for each sample in its last dimension; all else has it in the last but one.
_BY_SAMPLE = ("recon", "kl", "squared_error", "spikes", "zeros")


def rows_served(x: Tensor, options: dict[str, Any], loss: bool) -> int:
    """Rows that this process can take at a time: float32 on a CPU where the kernels were compiled; or 0.

    Args:
        x: input.
        options: of the call.
        loss: of ``elbo``, whose records are composed, rather than of ``infer``, whose dense ones are not.
    """
    backend, record = choice.select(options.get("backend", "auto")), options.get("record", ())
    composed = options.get("estimator") == "gumbel" or not set(record) <= set(() if loss else RECORDS)
    if composed or x.device.type != "cpu" or x.dtype != torch.float32:
        return 0
    served = backend in ("auto", "cpu") and choice.resolve(backend, [x]) == "cpu"
    return cpu.shared_rows() if served else 0


class Rows(NamedTuple):
    """A part of a batch: which rows, their tensors, detached and dense, and the constants for them."""

    part: slice
    inputs: Inputs
    cfg: RolloutConfig


class FusedDecoder(ShardedDecoder, RolloutDecoder):
    """Phi z, by whole rollouts of this process's neurons.

    Args:
        dictionary: columns of this process, [M, K_local].
        group: of the processes.
        overlap: as of its base.
        rows: that all processes can take at a time.
        widest: neurons of the process that has the most.
    """

    def __init__(
        self, dictionary: Tensor, group: ProcessGroup, overlap: bool, rows: int, widest: int
    ) -> None:
        super().__init__(dictionary, group, overlap)
        self.tile, self.widest = rows, widest

    def infer(self, task: Task, names: tuple[str, ...], record_every: int, check: bool) -> list[Tensor]:
        """As the op; kl, spikes and zeros are of this process's neurons. Inputs were looked at before."""
        parts = self.side_by_side(
            lambda kernels, rows: kernels.infer(rows.inputs, task.seed, rows.cfg, names, record_every),
            [(rows,) for rows in self.rows(task.tensors, task.cfg)],
        )
        found = _joined(("state", *names), parts)
        if check:
            checks.finite_result(library.DIVERGED, **found)
        return list(found.values())

    def elbo(self, task: Task, checkpoint: int | None, check: bool) -> tuple[Tensor, Tensor, Tensor]:
        """As the op; kl is of this process's neurons, and so is the gradient of log_lr; likewise."""
        tensors = task.tensors._replace(dictionary=self.dictionary)
        recon, kl, state = _Elbo.apply(  # type: ignore[no-untyped-call]
            self, task.seed, task.cfg, checkpoint or self._steps_kept(tensors, task.cfg), *tensors
        )
        if check:
            library.check_loss(recon, kl, state)
        return recon, kl, state

    def rows(self, inputs: Inputs, cfg: RolloutConfig) -> list[Rows]:
        """The batch, or its two halves where they overlap."""
        batch = inputs.x.shape[-2]
        parts = halves(batch) if self.overlap and batch else [slice(0, batch)]
        return [self._some(part, inputs, cfg) for part in parts]

    def _some(self, part: slice, inputs: Inputs, cfg: RolloutConfig) -> Rows:
        own = inputs._replace(
            x=inputs.x[..., part, :], log_rate=inputs.log_rate[..., part, :], dictionary=self.dictionary
        )
        dense = Inputs(*(tensor.detach().contiguous() for tensor in own))
        return Rows(part, dense, cfg._replace(sample_offset=cfg.sample_offset + part.start))

    def side_by_side(self, run: Callable[..., Found], parts: Sequence[tuple[Any, ...]]) -> list[Found]:
        """What run(kernels, *part) finds for each of one or two parts."""

        def of(part: tuple[Any, ...]) -> Callable[[cpu.Exchange], Found]:
            return lambda exchange: run(cpu.shared(cpu.Link(exchange, self.tile)), *part)

        if len(parts) == 1:
            return [of(parts[0])(lambda sums: distributed.all_reduce(sums, group=self.group))]
        return Turns(self.group).both(*map(of, parts))

    def _steps_kept(self, inputs: Inputs, cfg: RolloutConfig) -> int:
        """Of a segment: the same in all processes, which come to their sums together."""
        sizes = torch.empty((len(self.dictionary), self.widest), device="meta")
        return checkpointing.steps_kept(cfg, inputs._replace(dictionary=sizes))


class _Elbo(torch.autograd.Function):
    """recon, kl and the final state, with the gradient by hand."""

    @staticmethod
    def forward(
        ctx: Any, decoder: FusedDecoder, seed: Tensor, cfg: RolloutConfig, steps: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        parts = decoder.side_by_side(
            lambda kernels, rows: checkpointing.elbo(kernels, rows.inputs, seed, rows.cfg, steps),
            [(rows,) for rows in decoder.rows(Inputs(*tensors), cfg)],
        )
        ctx.save_for_backward(seed, *tensors, *(tensor for part in parts for tensor in part.trajectory))
        ctx.call = decoder, cfg, steps
        return tuple(_joined(("recon", "kl", "log_rate"), [part[:3] for part in parts]).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (decoder, cfg, steps), (seed, *saved) = ctx.call, ctx.saved_tensors
        inputs, kept = Inputs(*saved[: len(Inputs._fields)]), saved[len(Inputs._fields) :]
        recon, kl, log_rate = grads
        calls, size = [], len(Trajectory._fields)
        for i, rows in enumerate(decoder.rows(inputs, cfg)):
            part = recon[:, rows.part], kl[:, rows.part], log_rate[..., rows.part, :]
            above = Upstream(*(tensor.contiguous() for tensor in part))
            calls.append((rows, above, Trajectory(*kept[i * size : (i + 1) * size])))
        parts = decoder.side_by_side(
            lambda kernels, rows, above, trajectory: checkpointing.elbo_backward(
                kernels, above, rows.inputs, trajectory, seed, rows.cfg, steps
            ),
            calls,
        )
        found = _joined(Inputs._fields, parts, PARAMETERS)
        return None, None, None, None, *found.values()


def _joined(
    names: Sequence[str], parts: Sequence[Sequence[Tensor]], summed: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Tensors by name, of the rows of all parts; some of them are sums over rows."""
    found = {}
    for name, *of_parts in zip(names, *parts, strict=True):
        if len(of_parts) == 1:
            found[name] = of_parts[0]
        elif name in summed:
            found[name] = torch.stack(of_parts).sum(0)
        else:
            found[name] = torch.cat(of_parts, -1 if name in _BY_SAMPLE else -2)
    return found
