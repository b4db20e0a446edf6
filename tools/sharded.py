"""Neurons in two processes of one machine, beside one process with one thread and with two.

    python tools/sharded.py [--neurons 131072] [--inputs 256] [--batch 8] [--steps 40] [--out FILE.json]
    python tools/sharded.py --loss --neurons 8192 --batch 64 --steps 16

Random dictionary and inputs as in tools/scale.py, float32. Inference has hard counts and no records; --loss
is the loss and its gradient (sigmoid, temperature .1, all arrivals), also in plain PyTorch. In each round two
gloo processes with a thread each compute together; then the first alone has all neurons, with one thread and
with two, while the other waits. Shortest times. Before, the counts of the last step are compared.
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

    def call(ops: Any, own: Any, **options: Any) -> Any:
        if not args.loss:
            return ops.infer(x, own, args.steps, seed=0, record_every=args.steps, **options)
        own = ik.PoissonParams(*(tensor.requires_grad_() for tensor in vars(own).values()))
        relaxed = {"estimator": "sigmoid", "temperature": 0.1}
        return ops.elbo(x, own, args.steps, seed=0, **relaxed, **options).loss.backward()

    def counts(ops: Any, own: Any) -> Any:
        last = {"record": ("counts",), "record_every": args.steps}
        return ops.infer(x, own, args.steps, seed=0, **last).records["counts"]

    ways: dict[str, dict[str, Any]] = {"two processes": {}, "two, halves overlap": {"overlap": True}}
    if args.loss:
        ways["two, plain PyTorch"] = {"backend": "eager"}
    shares: list[Any] = [None] * PROCESSES
    distributed.all_gather_object(shares, counts(sharded, part))
    times: dict[str, list[float]] = {name: [] for name in (*ways, "one, one thread", "one, two threads")}
    for options in ways.values():
        call(sharded, part, **options)
    for _ in range(args.rounds):
        for name, options in ways.items():
            distributed.barrier()
            times[name].append(seconds(lambda o=options: call(sharded, part, **o)))
        distributed.barrier()
        if rank == 0:
            for threads, name in ((1, "one, one thread"), (2, "one, two threads")):
                torch.set_num_threads(threads)
                times[name].append(seconds(lambda: call(ik, whole)))
            torch.set_num_threads(1)
        distributed.barrier()
    if rank == 0:
        differ = (torch.cat(shares, -1) != counts(ik, whole)).double().mean()
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
    parser.add_argument("--loss", action="store_true", help="the loss and its gradient, not inference")
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
        sizes = {
            name: getattr(args, name) for name in ("neurons", "inputs", "batch", "steps", "rounds", "loss")
        }
        values = {
            **machine(Settings()),
            **sizes,
            "seconds a step": step,
            "counts that differ": found["counts that differ"],
        }
        args.out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
