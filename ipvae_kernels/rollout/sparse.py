"""Counts of ``infer`` as sparse rows: a dense record of some steps at a time, and never of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .config import RolloutConfig
from .stretches import Interrupted

if TYPE_CHECKING:
    from .op import InferResult

NAME = "sparse_counts"
_CHUNK_BYTES = 2**26  # of counts, before what is 0 is dropped: 16 steps of 8 samples and 131,072 neurons


def infer(
    dense: Callable[..., InferResult],
    x: Tensor,
    cfg: RolloutConfig,
    record: Sequence[str],
    record_every: int,
    first: Mapping[str, Any],
) -> InferResult:
    """What the public ``infer`` returns where sparse counts are asked for; its arguments are checked.

    Args:
        dense: the public function with all other arguments.
        x: [B, M] or [T, B, M].
        cfg: constants.
        record: names, the sparse counts among them.
        record_every: as of the public function.
        first: state, seed and sample_offset of the first piece; later ones continue.
    """
    names = tuple(dict.fromkeys("counts" if name == NAME else name for name in record))
    pieces: list[InferResult] = []
    done, recorded = 0, 1  # the first piece tells how large one is
    where = first
    try:
        while done < cfg.steps:
            n = min(recorded * record_every, cfg.steps - done)
            frames = x[done : done + n] if x.dim() == 3 else x
            result = dense(frames, steps=n, record=names, **where)
            pieces.append(_sparse(result, record))
            done, where = result.state.step - cfg.step, {"state": result.state}
            recorded = max(1, _CHUNK_BYTES // (4 * max(1, result.records["counts"][:1].numel())))
    except KeyboardInterrupt as interrupt:
        # It may come in a call, which keeps its finished steps, or between two.
        if isinstance(interrupt, Interrupted):
            pieces.append(_sparse(interrupt.result, record))
        if not pieces:
            raise
        told = Interrupted(pieces[-1].state.step - cfg.step, [])
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
