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
    pieces: list[dict[str, Tensor]] = []
    done, recorded = 0, 1  # the first piece tells how large one is
    try:
        while done < steps:
            n = min(recorded * record_every, steps - done)
            frames = x[done : done + n] if x.dim() == 3 else x
            result = dense(frames, steps=n, record=names, state=state, record_every=record_every, **first)
            pieces.append(_sparse(result.records, record))
            done, state, first = done + n, result.state, {}
            recorded = max(1, _CHUNK_BYTES // (4 * max(1, result.records["counts"][:1].numel())))
    except Interrupted as interrupt:
        pieces.append(_sparse(interrupt.result.records, record))
        interrupt.steps += done
        interrupt.result = interrupt.result._replace(records=_joined(pieces, record))
        raise
    return result._replace(records=_joined(pieces, record))


def _sparse(records: dict[str, Tensor], record: Sequence[str]) -> dict[str, Tensor]:
    return {name: records["counts"].to_sparse() if name == NAME else records[name] for name in record}


def _joined(pieces: list[dict[str, Tensor]], record: Sequence[str]) -> dict[str, Tensor]:
    # Steps follow one another: what is joined is sorted, as each piece is.
    return {name: _cat([piece[name] for piece in pieces]) for name in record}


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
