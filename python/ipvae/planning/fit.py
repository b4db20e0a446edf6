"""The constants of this machine, from measurements: `measure` and `fit`."""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ipvae_kernels as ik

from ..extras import explained
from .costs import Costs, Run

with explained():
    from scipy.optimize import least_squares  # type: ignore[import-untyped]

# Shapes to fit on: what caches hold and what they do not, one row and many, silent and not, powers of two and
# others.
ALONE = [
    *(
        Run(batch, features, inputs, rate)
        for batch, features, inputs in (
            (1, 512, 256), (16, 512, 256), (200, 512, 256), (1, 4096, 256), (32, 4096, 256),
            (256, 4096, 128), (1, 16_384, 768), (8, 16_384, 768), (64, 16_384, 768), (1, 131_072, 256),
            (8, 131_072, 256), (64, 32_768, 256), (4, 65_536, 512), (128, 8192, 512),
        )
        for rate in (0.01, 0.3)
    ),
    *(
        Run(batch, features, inputs, rate)
        for batch, features, inputs, rate in (
            (64, 12_000, 400, 0.3), (4, 10_000, 256, 0.1), (16, 40_000, 256, 0.1), (100, 2000, 700, 0.05),
            (4, 2048, 384, 0.1), (100, 1024, 784, 0.1), (2, 50_000, 300, 0.03), (24, 24_576, 512, 0.1),
            (48, 6000, 2304, 0.02), (12, 3000, 200, 0.05), (3, 20_000, 1000, 0.02), (40, 10_000, 400, 0.2),
            (6, 90_000, 200, 0.1), (150, 800, 600, 0.15), (5, 7000, 1500, 0.05), (80, 20_000, 300, 0.1),
            (300, 3000, 250, 0.02), (2, 150_000, 192, 0.1),
        )
    ),
]  # fmt: skip
SHARED = [
    Run(batch, features, inputs, rate, shards=2, neighbours=2)
    for batch, features, inputs, rate in (
        (1, 4096, 256, 0.05), (8, 65_536, 256, 0.05), (64, 8192, 768, 0.05), (256, 2048, 256, 0.05),
        (512, 512, 1024, 0.05), (1, 65_536, 512, 0.05), (16, 4096, 512, 0.05), (128, 2048, 512, 0.2),
        (32, 16_384, 256, 0.2), (2, 16_384, 1024, 0.02), (8, 32_768, 256, 0.3), (200, 1024, 512, 0.1),
        (16, 49_152, 256, 0.05), (32, 12_288, 768, 0.1), (2, 40_000, 640, 0.05), (20, 16_000, 640, 0.05),
        (4, 30_000, 512, 0.1), (100, 5000, 300, 0.05), (72, 3500, 500, 0.1), (10, 100_000, 128, 0.05),
        (160, 6000, 400, 0.05), (1, 20_000, 384, 0.1),
    )
]  # fmt: skip
# Shapes to check on, none of them above: chosen after the law was last changed, and never measured before.
CHECKED = [
    *(
        Run(batch, features, inputs, rate)
        for batch, features, inputs, rate in (
            (6, 5000, 640, 0.08), (28, 14_336, 512, 0.03), (90, 1600, 420, 0.1), (1, 60_000, 480, 0.02),
            (250, 2500, 180, 0.05), (14, 32_768, 300, 0.15), (56, 9000, 900, 0.03), (3, 200_000, 100, 0.05),
        )
    ),
    *(
        Run(batch, features, inputs, rate, shards=2, neighbours=2)
        for batch, features, inputs, rate in (
            (5, 26_000, 350, 0.1), (40, 16_384, 500, 0.02), (120, 4500, 256, 0.1), (2, 70_000, 256, 0.05),
            (18, 8000, 1200, 0.05), (64, 3000, 800, 0.1), (9, 131_072, 96, 0.03), (30, 22_000, 640, 0.1),
        )
    ),
]  # fmt: skip
LEAST = 0.1  # seconds that a call takes at least
ROUNDS = 2
PASSES = 3  # over all runs, minutes apart: a machine that others use has slow minutes
# Where the fit starts: what is within a factor of ten of any CPU.
START = {
    "call": 2e-6, "bandwidth": 1.2e10, "cached": 1e11, "crowding": 0.5, "operations": 8e10,
    "packed_operations": 1.5e11, "events": 2e10, "packed_events": 5e10, "gathering": 5e-10,
    "aliasing": 2.0, "neuron": 5e-10, "latency": 5e-4, "link": 2e8,
}  # fmt: skip


def measure_all(runs: Sequence[Run], progress: Callable[[list[Run]], Iterable[Run]]) -> list[float]:
    """Seconds of a step of each run, the shortest of some passes over all.

    Args:
        runs: to measure.
        progress: shows how far a list of them is.
    """
    taken = [measure(run) for run in progress([*runs] * PASSES)]
    return [min(taken[i :: len(runs)]) for i in range(len(runs))]


def measure(run: Run) -> float:
    """Seconds of a step of inference here, with one thread a process; the shortest of some calls."""
    if run.shards == 1:
        return _timed(run, _params(run), ik.infer)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "ipvae.planning.fit", json.dumps(vars(run)), str(rank), folder],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(run.shards)
        ]
        if any([rank.wait() for rank in ranks]):
            raise RuntimeError(f"measure: a process ended with {[rank.returncode for rank in ranks]}")
        return float(Path(folder, "seconds").read_text())


def measure_training(run: Run, steps: int = 8) -> float:
    """Seconds of an update over `steps`, forward and backward, divided by those of as many of inference."""
    x, dictionary = torch.zeros(run.batch, run.inputs), _params(run).dictionary
    assert dictionary is not None
    params = replace(_params(run), dictionary=dictionary.requires_grad_())

    def update() -> None:
        loss = ik.elbo(x, params, steps, seed=0, estimator="fini2", check=False).loss
        torch.autograd.grad(loss, dictionary)

    update()
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        update()
        taken.append(time.perf_counter() - started)
    return min(taken) / steps / measure(run)


def fit(
    runs: Sequence[Run], seconds: Sequence[float], name: str, *, backward: float, memory: float | None = None
) -> Costs:
    """Constants with which the model comes nearest to measured times, by their ratios.

    Args:
        runs: what was measured.
        seconds: of a step of each.
        name: of the machine.
        backward: `Costs.backward`.
        memory: bytes of the machine.

    Returns:
        A profile.
    """
    now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    sizes = [float(run.features * run.inputs) for run in runs]
    batches = [float(run.batch) for run in runs]
    start: dict[str, Any] = START
    blank = Costs(
        name, "measured", **start, hiding=2.0, backward=backward, memory=memory, date=now,
        fitted=((min(sizes), max(sizes)), (min(batches), max(batches))),
        measured=tuple(zip(runs, map(float, seconds), strict=True)),
    )  # fmt: skip
    target = np.log(np.asarray(seconds))

    def costs_of(values: Any) -> Costs:
        found: dict[str, Any] = {n: math.exp(v) for n, v in zip(START, values[:-1], strict=True)}
        return replace(blank, **found, hiding=1.0 + math.exp(values[-1]))

    def ratios(values: Any) -> Any:
        costs = costs_of(values)
        return np.log([costs.seconds(run) for run in runs]) - target

    first = [*map(math.log, START.values()), 0.0]
    solved = least_squares(ratios, first, loss="soft_l1", f_scale=0.1, bounds=(-40.0, 40.0))
    return costs_of(solved.x)


def _params(run: Run) -> ik.PoissonParams:
    """A network that stays at its rate: nothing moves it."""
    features, inputs = run.features, run.inputs
    g = torch.Generator().manual_seed(0)
    dictionary = 1e-3 * torch.randn(inputs, features, generator=g)
    start = torch.full((features,), math.log(max(run.rate, 1e-3)))
    nothing = torch.tensor(-20.0)
    return ik.PoissonParams(dictionary, torch.zeros(inputs), nothing.expand(features), nothing, start)


def _timed(run: Run, params: ik.PoissonParams, infer: Any) -> float:
    x = torch.zeros(run.batch, run.inputs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(steps: int) -> float:
        started = time.perf_counter()
        infer(x, params, steps, seed=0, check=False)
        return time.perf_counter() - started

    steps = 2
    while _agreed(call(steps) < LEAST, run):
        steps *= 2
    # A call's own time is in both, and falls out; the shortest of each, since others use the machine too.
    taken = [(call(steps), call(3 * steps)) for _ in range(ROUNDS)]
    few, many = (min(times) for times in zip(*taken, strict=True))
    torch.set_num_threads(threads)
    return float(max((many - few) / (2 * steps), 1e-9))


def _agreed(said: bool, run: Run) -> bool:
    """What the first process says, in all."""
    box = [said]
    if run.shards > 1:
        torch.distributed.broadcast_object_list(box)
    return box[0]


def _a_rank(run: Run, rank: int, folder: str) -> None:
    from ipvae_kernels import distributed as sharded

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=run.shards)
    seconds = _timed(run, _params(run), sharded.infer)
    torch.distributed.barrier()
    if rank == 0:
        Path(folder, "seconds").write_text(repr(seconds))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _a_rank(Run(**json.loads(sys.argv[1])), int(sys.argv[2]), sys.argv[3])
