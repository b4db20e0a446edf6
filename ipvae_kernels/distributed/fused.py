"""Inference of sharded neurons by the compiled CPU kernels: one call, which asks for a sum once a draw."""

from __future__ import annotations

import inspect
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

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

_TWINS: MutableMapping[ProcessGroup, Any] = WeakKeyDictionary()
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


def infer_halves(
    x: Tensor, params: PoissonParams | GaussianParams, steps: int, state: State | None, group: ProcessGroup,
    options: dict[str, Any],
) -> InferResult:  # fmt: skip
    """:func:`infer_fused` of two halves of the batch in two threads, each with sums of a group of its own."""
    rows = x.shape[-2]
    if rows < 2:
        return infer_fused(x, params, steps, state, group, options)
    half = rows // 2
    offset = options.get("sample_offset")
    if offset is None:
        offset = 0 if state is None else state.sample_offset

    def run(part: slice, own: ProcessGroup) -> InferResult:
        begun = None
        if state is not None:
            begun = replace(
                state, log_rate=state.log_rate[..., part, :], sample_offset=state.sample_offset + part.start
            )
        found = {**options, "sample_offset": offset + part.start}
        return infer_fused(x[..., part, :], params, steps, begun, own, found)

    parts = (slice(0, half), group), (slice(half, rows), _twin(group))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda part: run(*part), parts)
    records = {
        name: torch.cat([record, second.records[name]], -1 if record.ndim == 2 else -2)  # [R, B], [..., B, N]
        for name, record in first.records.items()
    }
    log_rate = torch.cat([first.state.log_rate, second.state.log_rate], -2)
    return InferResult(replace(first.state, log_rate=log_rate), records)


def _twin(group: ProcessGroup) -> ProcessGroup:
    """A second group of the same processes, made once."""
    if group not in _TWINS:
        ranks = distributed.get_process_group_ranks(group)
        _TWINS[group] = distributed.new_group(ranks, backend="gloo", use_local_synchronization=True)
    twin: ProcessGroup = _TWINS[group]
    return twin
