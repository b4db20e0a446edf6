"""How spikes lie on disk: a folder of Parquet files, each the events of so many steps.

A row is an event: step, sample, neuron, count; rows are in this order. A part holds the steps from a
multiple of ``part_steps`` to the next, and is named by the first of them, so what a file holds depends on the
numbers alone and not on when a run was stopped. What comes after the last whole part of a run that was saved
on the way lies in a file of another name, which is written anew when the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..extras import explained

with explained():
    import pyarrow as pa  # type: ignore[import-untyped]

FORMAT = 1
KEY = b"ipvae"
SCHEMA = pa.schema(
    [("step", pa.int64()), ("sample", pa.int32()), ("neuron", pa.int32()), ("count", pa.int32())]
)
STATE = "state.safetensors"


def part_path(folder: Path, first: int) -> Path:
    """The file of the steps from ``first`` on."""
    return folder / f"part-{first:012d}.parquet"


def open_path(folder: Path) -> Path:
    """The file of the steps since the last whole part."""
    return folder / "open.parquet"


def parts(folder: Path) -> dict[int, Path]:
    """The whole parts by their first steps, in order."""
    return {int(path.stem.partition("-")[2]): path for path in sorted(folder.glob("part-*.parquet"))}


def with_facts(facts: Mapping[str, Any]) -> pa.Schema:
    """The schema of a file that says what its numbers are of."""
    return SCHEMA.with_metadata({KEY: json.dumps(dict(facts), sort_keys=True).encode()})


def facts_of(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """What a file says of its numbers.

    Raises:
        ValueError: it is no record of spikes, or of a later format.
    """
    text = (schema.metadata or {}).get(KEY)
    facts = json.loads(text) if text else {}
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a record of spikes, format {FORMAT}, found {facts.get('format')}")
    return dict(facts)
