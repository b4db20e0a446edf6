"""The cost model: time and bytes of a step of inference from its sizes, and constants of a machine.

A step of B rows, K neurons and M inputs multiplies the residual with the dictionary (2 B K M operations),
draws B K counts, and adds up the features of those that spike (2 B K M operations, times their share). CPUs
pack a dictionary that caches hold; a larger one is read where it lies, 4 K M bytes a step, behind which the
product hides, and the columns of neurons that spike in any row are gathered from it. Where neurons are shared
by r processes, [B, M] numbers are summed over them, in a ring (Patarasu and Yuan 2009), by tiles of rows:

    t = call + (read^p + multiply^p)^(1/p) + gather + decode + draw + sum
    read     = 4 K M / (packed: cached, else: bandwidth) * busy
    multiply = 2 B K M / operations                            of packed or other dictionaries
    gather   = K M (1 - silent^B) gathering * busy * aliasing  of others only
    decode   = 2 B K M share / events                          likewise
    draw     = B K neuron
    sum      = (r - 1) latency ceil(B / rows) + 2 (r - 1) / r * 4 B M / link
    busy     = 1 + crowding (n - 1),  n processes on the host;  share = 1 - silent = 1 - exp(-rate)
    aliasing = 1 but for rows a multiple of 4 KiB apart, which share few sets of the caches

An update takes `backward` times as long but for its sums: forward two draws a step, back one for all rows.

Constants come from measurements (`ipvae.planning.fit`) or, where nothing was measured, from a data sheet, and
then say so.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ipvae_kernels import checks

PROFILES = Path(__file__).parent / "profiles"
FLOAT, PAGE = 4, 4096  # bytes


@dataclass(frozen=True)
class Run:
    """One process's part of a step.

    Attributes:
        batch: B, rows.
        features: K, neurons of this process.
        inputs: M.
        rate: mean count of a neuron and step.
        shards: processes that share the neurons.
        neighbours: processes that compute on the same host, this one with them; of GPUs 1.
    """

    batch: int
    features: int
    inputs: int
    rate: float = 0.1
    shards: int = 1
    neighbours: int = 1

    def __post_init__(self) -> None:
        for name in ("batch", "features", "inputs", "shards", "neighbours"):
            checks.integer(name, getattr(self, name), 1, 2**48)
        checks.number("rate", self.rate, 0.0)


@dataclass(frozen=True)
class Costs:
    """Constants of a machine; all in seconds, bytes and operations a second.

    Attributes:
        name: of the machine.
        source: "measured" or "data sheet".
        call: seconds of a step that does nothing.
        bandwidth: bytes of dictionary read a second, from memory.
        cached: the same of a packed one.
        crowding: how much longer reading takes for each neighbour.
        operations: multiplications and additions a second of the product.
        packed_operations: the same of a packed dictionary.
        events: the same of adding up features.
        packed_events: the same of a packed dictionary.
        gathering: seconds for each number of a column that spikes.
        aliasing: how much longer that takes where rows lie a multiple of 4 KiB apart.
        hiding: p, how far the shorter of reading and multiplying hides behind the longer: 1 not at all.
        neuron: seconds of a draw.
        latency: seconds of a sum of nothing, for each further process.
        link: bytes a second between two processes.
        rows: of a batch whose means are summed at once; 0: all.
        backward: times of a step of inference that a step of training takes in one process.
        packs_below: bytes of a dictionary from which on none is packed; 0: never.
        least_share: of the neurons that decoding adds up: 1 where it is a dense product, else 0.
        memory: bytes of a device; None: not known.
        fitted: smallest and largest K M and B of the runs that it was fitted on; None: none.
        date: of the measurement.
        measured: the runs that it was fitted on, and their seconds.
        checked: the same of runs that it was not fitted on.
    """

    name: str
    source: str
    call: float
    bandwidth: float
    cached: float
    crowding: float
    operations: float
    packed_operations: float
    events: float
    packed_events: float
    gathering: float
    aliasing: float
    hiding: float
    neuron: float
    latency: float
    link: float
    backward: float
    rows: int = 64
    packs_below: float = 2.0**23
    least_share: float = 0.0
    memory: float | None = None
    fitted: tuple[tuple[float, float], tuple[float, float]] | None = None
    date: str = ""
    measured: tuple[tuple[Run, float], ...] = ()
    checked: tuple[tuple[Run, float], ...] = ()

    @property
    def errors(self) -> list[float]:
        """How far predictions of the checked runs are from their measured times, as fractions of those."""
        return [self.seconds(run) / taken - 1.0 for run, taken in self.checked]

    def seconds(self, run: Run) -> float:
        """Of a step of inference."""
        matrix = run.features * run.inputs
        products = 2.0 * run.batch * matrix
        share, busy = -math.expm1(-run.rate), 1.0 + self.crowding * (run.neighbours - 1)
        decoded = products * max(share, self.least_share)
        if FLOAT * matrix < self.packs_below:
            read, multiply = FLOAT * matrix / self.cached, products / self.packed_operations
            events = decoded / self.packed_events
        else:
            read, multiply = FLOAT * matrix / self.bandwidth * busy, products / self.operations
            columns = -math.expm1(-run.rate * run.batch)  # neurons that spike in any row
            apart = self.aliasing if FLOAT * run.features % PAGE == 0 else 1.0
            events = matrix * columns * self.gathering * busy * apart + decoded / self.events
        longer, shorter = max(read, multiply), min(read, multiply)
        both = longer * (1.0 + (shorter / longer) ** self.hiding) ** (1.0 / self.hiding)
        draw = run.batch * run.features * self.neuron
        return float(self.call + both + events + draw + self.sum_seconds(run))

    def sum_seconds(self, run: Run) -> float:
        """Of the sums of a step of inference over the processes that share the neurons."""
        return self.all_reduce_seconds(run.shards, run.batch * run.inputs, self._tiles(run))

    def all_reduce_seconds(self, processes: int, numbers: int, calls: int = 1) -> float:
        """Of so many numbers that are summed over processes."""
        others = processes - 1
        return others * self.latency * calls + 2.0 * others / processes * FLOAT * numbers / self.link

    def training_seconds(self, run: Run, steps: int) -> float:
        """Of an update with `steps` of inference: forward and backward."""
        alone = self.seconds(run) - self.sum_seconds(run)
        numbers, calls = 3 * run.batch * run.inputs, self._tiles(run) + 1
        return steps * (self.backward * alone + self.all_reduce_seconds(run.shards, numbers, calls))

    def _tiles(self, run: Run) -> int:
        return -(-run.batch // self.rows) if self.rows else 1

    def inference_bytes(self, run: Run) -> float:
        """Of memory: the dictionary, log rates and counts, inputs and reconstruction."""
        return FLOAT * (
            run.features * run.inputs + 2.0 * run.batch * run.features + 3.0 * run.batch * run.inputs
        )

    def training_bytes(self, run: Run, steps: int) -> float:
        """The same of an update: gradient and two moments besides, log rates of sqrt(T) steps twice."""
        kept = 2.0 * math.sqrt(steps) * run.batch * (2.0 * run.features + run.inputs)
        return self.inference_bytes(run) + FLOAT * (3.0 * run.features * run.inputs + kept)

    def is_prediction(self, run: Run) -> bool:
        """Whether a run lies outside of what the constants were fitted on."""
        if self.source != "measured" or self.fitted is None:
            return True
        (low, high), (small, large) = self.fitted
        inside = low <= run.features * run.inputs <= high and small <= run.batch <= large
        return not inside or run.shards > 2 or run.neighbours > 2

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a profile."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, profile: str | PathLike[str]) -> Costs:
        """A profile by name, of those that the package has, or by file.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is damaged.
        """
        path = Path(profile)
        if not path.is_file():
            path = PROFILES / f"{profile}.json"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.json")))
            raise FileNotFoundError(f"profile: expected a file or one of {known}, found {str(profile)!r}")
        try:
            return cls._from(json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not a profile of ipvae plan ({error})") from error

    @classmethod
    def _from(cls, values: Mapping[str, Any]) -> Costs:
        fitted = values.get("fitted")
        fitted = None if fitted is None else tuple((float(low), float(high)) for low, high in fitted)
        pairs: dict[str, Any] = {
            name: tuple((Run(**run), float(taken)) for run, taken in values.get(name, ()))
            for name in ("measured", "checked")
        }
        found = cls(**{**values, "fitted": fitted, **pairs})
        divisors = ("bandwidth", "cached", "operations", "packed_operations", "events", "packed_events")
        for field in (*divisors, "hiding", "link", "backward"):
            checks.number(field, getattr(found, field), 0.0, math.inf, above=True)
        return found
