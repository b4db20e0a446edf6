"""What one machine holds and how fast: wide dictionaries, long sequences, single frames; beside the bounds.

    python tools/scale.py [--out docs/results/scale] [--quick]

Random dictionaries and inputs, hard counts, no records unless said. The bound of a step is the larger of the
dictionary's bytes over the bandwidth, and of the multiply-adds (a dense product with the residual, one
with the counts that are not 0) over the peak, both measured here (`ipvae bench`). Of times the shortest of
several rounds in turns. With --out writes OUT.json, OUT.md and OUT.png.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ipvae.experiments.turns import take_turns
from ipvae_bench import roofline
from ipvae_bench.measure import machine
from ipvae_bench.problem import Settings
from torch import Tensor

import ipvae_kernels as ik

Row = dict[str, Any]
ROUNDS = 4
SILENT = -4.6  # log of 1 %
SIZE = 3_000_000_000  # multiply-adds of a measurement, some tenths of a second


def read_peaks() -> roofline.Peaks:
    """As of `ipvae bench`, with the bandwidth of reading alone where that is larger."""
    peaks, numbers = roofline.measure("cpu"), torch.zeros(2**26)
    seconds = fastest({"read": numbers.sum})["read"]
    return roofline.Peaks(flops=peaks["flops"], bytes=max(peaks["bytes"], numbers.nbytes / seconds))


def params(neurons: int, pixels: int, log_rate: float = SILENT) -> ik.PoissonParams:
    """A random dictionary whose neurons stay near a rate: the step size is small."""
    torch.manual_seed(0)
    dictionary = torch.randn(pixels, neurons).mul_(0.3 / math.sqrt(pixels))
    zeros = torch.zeros(neurons)
    return ik.PoissonParams(dictionary, torch.zeros(pixels), zeros - 8, torch.tensor(-6.0), zeros + log_rate)


def fastest(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, the shortest of rounds in turns."""
    for run in runs.values():
        run()
    taken, errors = take_turns(runs, seconds=0.0, least=ROUNDS)
    if errors:
        raise next(iter(errors.values()))
    return {name: min(times) for name, times in taken.items()}


def step_seconds(given: Any, x: Tensor, threads: tuple[int, ...] = (1, 2)) -> dict[int, float]:
    """Seconds of a further step of a call, by threads."""
    pixels, neurons = given.inputs.dictionary.shape
    n = max(2, min(1000, SIZE // (2 * len(x) * pixels * neurons)))

    def run(steps: int, used: int) -> Callable[[], object]:
        def call() -> None:
            torch.set_num_threads(used)
            ik.infer(x, given, steps, seed=1)

        return call

    runs = {f"{steps} {used}": run(steps, used) for used in threads for steps in (1, n + 1)}
    found = fastest(runs)
    return {used: (found[f"{n + 1} {used}"] - found[f"1 {used}"]) / n for used in threads}


def bound(
    neurons: int, pixels: int, batch: int, nonzero: float, peaks: roofline.Peaks, threads: int
) -> float:
    """Seconds of a step that this machine needs at least."""
    operations = 2 * batch * neurons * pixels * (1 + nonzero)
    return float(max(4 * neurons * pixels / peaks["bytes"], operations / (peaks["flops"] * threads)))


def wide(neurons: int, pixels: int, batch: int, peaks: roofline.Peaks, log_rate: float = SILENT) -> Row:
    """A step of a wide dictionary, and of one thread and two."""
    given = ik.prepare(params(neurons, pixels, log_rate))
    x = torch.randn(batch, pixels)
    zeros = ik.infer(x, given, 2, seed=1, record=("zeros",)).records["zeros"].mean().item()
    seconds = step_seconds(given, x)
    least = bound(neurons, pixels, batch, 1 - zeros, peaks, 2)
    return {
        "K": neurons, "M": pixels, "B": batch, "non-zero": 1 - zeros, "ms, one thread": 1e3 * seconds[1],
        "ms, two threads": 1e3 * seconds[2], "speed-up": seconds[1] / seconds[2],
        "over the bound": seconds[2] / least,
    }  # fmt: skip


def frames(batch: int = 1) -> Row:
    """One step a call, and a step within a call of 1,000; K 512, M 256, one thread."""
    torch.set_num_threads(1)
    given, x = ik.prepare(params(512, 256, -1.0)), torch.randn(batch, 256)
    state = ik.infer(x, given, 1, seed=1).state

    def calls() -> None:
        where = state
        for _ in range(1000):
            where = ik.infer(x, given, 1, state=where).state

    found = fastest({"call": calls, "within": lambda: ik.infer(x, given, 1000, seed=1)})
    call, within = (1e3 * found[name] for name in ("call", "within"))
    return {"B": batch, "us a call of one step": call, "us a step within": within, "ratio": call / within}


MEMORY = """
import sys, torch, ipvae_kernels as ik
from ipvae_bench import memory
from tools_scale import params
K, M, B, T = map(int, sys.argv[1:])
ik.infer(torch.zeros(1, 4), params(2000, 4), 2, seed=1)
before = memory._reset("cpu")
given = params(K, M)
ik.infer(torch.randn(B, M), given, T, seed=1)
print((memory._highest("cpu") - before) / (4 * K * M))
"""


def peak_memory(neurons: int, pixels: int, batch: int) -> Row:
    """Peak resident memory over the dictionary's bytes, of parameters and inference in a new process."""
    code = MEMORY.replace("from tools_scale", "import importlib.util as u; s = u.spec_from_file_location("
                          f"'scale', {__file__!r}); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
                          "params = m.params  #")  # fmt: skip
    sizes = [str(n) for n in (neurons, pixels, batch, 4)]
    found = subprocess.run(
        [sys.executable, "-c", code, *sizes], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"K": neurons, "M": pixels, "B": batch, "peak over the dictionary": float(found.stdout)}


def growth(quick: bool) -> dict[str, list[Row]]:
    """Milliseconds along K, T and B, two threads, whole calls of prepared parameters."""
    torch.set_num_threads(2)
    widths = (512, 2_048, 8_192) if quick else (512, 2_048, 8_192, 32_768, 131_072, 524_288, 1_000_000)
    rows: dict[str, list[Row]] = {"K (M 64, B 1)": [], "B (K 512, M 256)": [], "T (K 512, M 256, B 1)": []}
    for neurons in widths:
        seconds = step_seconds(ik.prepare(params(neurons, 64)), torch.randn(1, 64), (2,))[2]
        rows["K (M 64, B 1)"].append({"size": neurons, "ms a step": 1e3 * seconds})
    given = ik.prepare(params(512, 256, -1.0))
    for batch in (1, 4, 16, 64, 256, 1024):
        seconds = step_seconds(given, torch.randn(batch, 256), (2,))[2]
        rows["B (K 512, M 256)"].append({"size": batch, "ms a step": 1e3 * seconds})
    x = torch.randn(1, 256)
    for steps in (1, 10, 100, 1_000, 10_000) if quick else (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000):
        run = {"call": lambda steps=steps: ik.infer(x, given, steps, seed=1)}
        seconds = fastest(run)["call"] if steps < 10**6 else take_turns(run, 0.0, least=1)[0]["call"][0]
        rows["T (K 512, M 256, B 1)"].append({"size": steps, "ms a step": 1e3 * seconds / steps})
    return rows


def report(tables: dict[str, list[Row]], about: Row) -> str:
    """The tables as Markdown."""
    lines = ["# One machine: wide dictionaries, long sequences, single frames", "", __doc__.split("\n\n")[2]]
    lines += ["", *(f"- {name}: {value}" for name, value in about.items())]
    for title, rows in tables.items():
        names = list(rows[0])
        lines += ["", f"## {title}", "", f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
        for row in rows:
            cells = [f"{v:,}" if isinstance(v, int) else f"{v:.3g}" for v in row.values()]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(curves: dict[str, list[Row]], path: Path) -> None:
    """Milliseconds a step along K, T and B."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(11, 3.4), layout="constrained")
    for axis, (title, rows) in zip(axes, curves.items(), strict=True):
        axis.loglog([row["size"] for row in rows], [row["ms a step"] for row in rows], "o-", color="#1f5f8b")
        axis.set(xlabel=title, ylabel="ms a step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where to write, without ending")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the tool")
    options = parser.parse_args()
    torch.set_num_threads(2)
    peaks, neurons = read_peaks(), 8_192 if options.quick else 131_072
    million = 16_384 if options.quick else 1_000_000
    tables = {
        "One step a call": [frames()],
        "Wide dictionaries": [
            *(wide(neurons, 256, batch, peaks) for batch in (1, 8, 32)), wide(million, 64, 2, peaks)
        ],
        "Two threads": [wide(k, 256, b, peaks, -1.0) for b in (1, 4) for k in (512, 2_048, 8_192)],
        "Memory": [peak_memory(neurons, 256, batch) for batch in (1, 8)],
    }  # fmt: skip
    curves = growth(options.quick)
    facts = machine(Settings(threads=2))
    about = {name: facts[name] for name in ("date", "commit", "cpu", "threads")} | {
        "GB/s": peaks["bytes"] / 1e9, "Gflop/s of a core": peaks["flops"] / 1e9
    }  # fmt: skip
    text = report(tables | {f"Growth along {name}": rows for name, rows in curves.items()}, about)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".md").write_text(text)
        found = {"machine": about, "tables": tables, "growth": curves}
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        draw(curves, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
