"""Counts of ``infer`` as sparse rows: a dense record of some steps at a time, and never of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..params import State
from .stretches import Interrupted

if TYPE_CHECKING:
    from .op import InferResult

NAME = "sparse_counts"
_CHUNK_BYTES = 2**26  # of counts, before what is 0 is dropped: 16 steps of 8 samples and 131,072 neurons


def infer(
    dense: Callable[..., InferResult],
    x: Tensor,
    steps: int,
    record: Sequence[str],
    state: State | None,
    *,
    record_every: int,
    **first: Any,
) -> InferResult:
    """What the public ``infer`` returns where sparse counts are asked for.

    Args:
        dense: the public function with all other arguments.
        x: [B, M] or [steps, B, M].
        steps: T.
        record: names, the sparse counts among them.
        state: continue from here.
        record_every: as of the public function.
        first: seed and sample_offset, which later pieces take from the state.
    """
    names = tuple(dict.fromkeys("counts" if name == NAME else name for name in record))
    pieces: list[InferResult] = []
    start = done = 0 if state is None else state.step
    recorded = 1  # the first piece tells how large one is
    try:
        while done < start + steps:
            n = min(recorded * record_every, start + steps - done)
            frames = x[done - start : done - start + n] if x.dim() == 3 else x
            result = dense(frames, steps=n, record=names, state=state, record_every=record_every, **first)
            pieces.append(_sparse(result, record))
            done, state, first = result.state.step, result.state, {}
            recorded = max(1, _CHUNK_BYTES // (4 * max(1, result.records["counts"][:1].numel())))
    except KeyboardInterrupt as interrupt:
        # It may come in a call, which keeps its finished steps, or between two.
        if isinstance(interrupt, Interrupted):
            pieces.append(_sparse(interrupt.result, record))
        if not pieces:
            raise
        told = Interrupted(pieces[-1].state.step - start, [])
        told.result = _joined(pieces, record)
        raise told from interrupt
    return _joined(pieces, record)


def _sparse(result: InferResult, record: Sequence[str]) -> InferResult:
    """The records asked for, with the counts sparse."""
    found = result.records
    return result._replace(
        records={name: found["counts"].to_sparse() if name == NAME else found[name] for name in record}
    )


def _joined(pieces: list[InferResult], record: Sequence[str]) -> InferResult:
    # Steps follow one another: what is joined is sorted, as each piece is.
    records = {name: _cat([piece.records[name] for piece in pieces]) for name in record}
    return pieces[-1]._replace(records=records)


def _cat(parts: list[Tensor]) -> Tensor:
    if not parts[0].is_sparse:
        return torch.cat(parts)
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    shift = parts[0].indices().new_tensor([1, 0, 0]).unsqueeze(1)
    indices = [part.indices() + shift * start for part, start in zip(parts, starts, strict=False)]
    shape = (starts[-1], *parts[0].shape[1:])
    values = torch.cat([part.values() for part in parts])
    return torch.sparse_coo_tensor(
        torch.cat(indices, 1), values, shape, is_coalesced=True, check_invariants=False
    )
