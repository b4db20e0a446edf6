"""Inference of sharded neurons by the compiled CPU kernels: one call, which asks for a sum once a draw."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from .. import checks
from ..backend import choice
from ..params import GaussianParams, PoissonParams, State
from ..rollout import cpu, library
from ..rollout.eager import RECORDS
from ..rollout.op import InferResult, infer
from ..rollout.task import task_of

_DEFAULTS = {name: p.default for name, p in inspect.signature(infer).parameters.items()}
_OF_TASK = [name for name in inspect.signature(task_of).parameters if name not in ("x", "params", "steps")]


def serves(x: Tensor, options: dict[str, Any]) -> bool:
    """Whether this process can: float32 on a CPU, where the kernels were compiled, records that are dense."""
    backend = choice.select(options.get("backend", "auto"))
    if x.device.type != "cpu" or x.dtype != torch.float32 or not set(options["record"]) <= set(RECORDS):
        return False
    return backend in ("auto", "cpu") and choice.resolve(backend, [x]) == "cpu"


def infer_fused(
    x: Tensor, params: PoissonParams | GaussianParams, steps: int, state: State | None, group: ProcessGroup,
    options: dict[str, Any],
) -> InferResult:  # fmt: skip
    """:func:`ipvae_kernels.infer` of this process's neurons, with means of all; options are checked."""
    options = {**_DEFAULTS, **options, "decoder": None, "state": state}
    task = task_of(x, params, steps, **{name: options[name] for name in _OF_TASK})
    every = checks.integer("record_every", options["record_every"], 1, 2**32)
    names = tuple(name for name in RECORDS if name in options["record"])
    if options["check"]:
        library.check_finite(task.tensors)
    inputs = type(task.tensors)(*(tensor.detach().contiguous() for tensor in task.tensors))
    final, *rows = cpu.infer_shared(
        inputs, task.seed, task.cfg, names, every, lambda sums: distributed.all_reduce(sums, group=group)
    )
    found = dict(zip(names, rows, strict=True))
    if options["check"]:
        checks.finite_result(library.DIVERGED, state=final, **found)
    records = {name: found[name] for name in options["record"]}
    return InferResult(State(final, task.cfg.step + steps, task.seed, task.cfg.sample_offset), records)
