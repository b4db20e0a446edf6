"""Inference of neurons in two processes of one machine, beside one process with one thread and with two.

    python tools/sharded.py [--neurons 131072] [--inputs 256] [--batch 8] [--steps 40] [--out FILE.json]

Random dictionary and inputs as in tools/scale.py, hard counts, no records, float32. In each round two gloo
processes with a thread each infer together; then the first alone has all neurons, with one thread and with
two, while the other waits. Shortest times. Before, the counts of the last step are compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ipvae_bench.measure import machine
from ipvae_bench.problem import Settings
from scale import params
from torch import distributed, multiprocessing

import ipvae_kernels as ik
from ipvae_kernels import distributed as sharded

PROCESSES = 2


def seconds(run: Any) -> float:
    """Of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def a_process(rank: int, args: argparse.Namespace, folder: str) -> None:
    """One of the two; the first writes what it found."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=PROCESSES)
    whole = params(args.neurons, args.inputs)
    part = sharded.shard(whole)
    part = ik.PoissonParams(*(tensor.clone() for tensor in vars(part).values()))
    x = torch.randn(args.batch, args.inputs, generator=torch.Generator().manual_seed(1))

    def together(record: tuple[str, ...] = (), overlap: bool = False) -> Any:
        return sharded.infer(
            x, part, args.steps, seed=0, overlap=overlap, record=record, record_every=args.steps
        )

    def alone(record: tuple[str, ...] = ()) -> Any:
        return ik.infer(x, whole, args.steps, seed=0, record=record, record_every=args.steps)

    shares: list[Any] = [None] * PROCESSES
    distributed.all_gather_object(shares, together(("counts",)).records["counts"])
    times: dict[str, list[float]] = {
        name: [] for name in ("two processes", "two, halves overlap", "one, one thread", "one, two threads")
    }
    together(overlap=True)
    for _ in range(args.rounds):
        for name, overlap in (("two processes", False), ("two, halves overlap", True)):
            distributed.barrier()
            times[name].append(seconds(lambda o=overlap: together(overlap=o)))
        distributed.barrier()
        if rank == 0:
            for threads, name in ((1, "one, one thread"), (2, "one, two threads")):
                torch.set_num_threads(threads)
                times[name].append(seconds(alone))
            torch.set_num_threads(1)
        distributed.barrier()
    if rank == 0:
        differ = (torch.cat(shares, -1) != alone(("counts",)).records["counts"]).double().mean()
        found = {
            "shortest": {name: min(taken) for name, taken in times.items()},
            "counts that differ": float(differ),
        }
        Path(folder, "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def main() -> None:
    """Prints, and writes, the times of a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("neurons", 131_072), ("inputs", 256), ("batch", 8), ("steps", 40), ("rounds", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(a_process, (args, folder), nprocs=PROCESSES)  # type: ignore[attr-defined,no-untyped-call]
        found = json.loads(Path(folder, "found.json").read_text())
    step = {name: taken / args.steps for name, taken in found["shortest"].items()}
    both = step["two processes"]
    lines = [f"K {args.neurons:,}, M {args.inputs}, B {args.batch}: ms a step, and over two processes"]
    lines += [f"  {name:18} {1e3 * taken:7.2f}  {taken / both:5.2f} x" for name, taken in step.items()]
    lines.append(f"  counts of the last step that differ: {100 * found['counts that differ']:.4f} %")
    print("\n".join(lines))
    if args.out is not None:
        sizes = {name: getattr(args, name) for name in ("neurons", "inputs", "batch", "steps", "rounds")}
        values = {
            **machine(Settings()),
            **sizes,
            "seconds a step": step,
            "counts that differ": found["counts that differ"],
        }
        args.out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
