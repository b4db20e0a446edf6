"""Registers, shared memory, spills and theoretical occupancy of the CUDA kernels, as ptxas reports them.

Needs nvcc, but no GPU. In the repository, ``python tools/cuda_resources.py`` compiles every kernel for every
architecture and writes bench/results/cuda_resources.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ipvae_kernels.backend import compiled

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
SOURCES = ("pointwise", "rollout_poisson", "rollout_gaussian")
THREADS = 256
"""Of a block, kThreads of csrc/cuda/plan.h."""


class Limits(NamedTuple):
    """What an SM has (CUDA C++ Programming Guide, compute capabilities), and the device the plan is made for.

    Attributes:
        shared: bytes of shared memory of an SM; a block takes 1 KB more than it asks for.
        block: bytes that one block can ask for.
        sms: of the A100, H100 and B200.
        cluster: largest cluster.
    """

    shared: int
    block: int
    sms: int
    cluster: int


LIMITS = {
    "sm_80": Limits(167_936, 166_912, 108, 1),
    "sm_90a": Limits(233_472, 232_448, 132, 16),
    "sm_100": Limits(233_472, 232_448, 148, 16),
}


class Kernel(NamedTuple):
    """One kernel on one architecture; sizes in bytes, those of spills stores and loads together."""

    architecture: str
    name: str
    registers: int
    shared: int
    stack: int
    spills: int

    def occupancy(self, dynamic: int) -> float:
        """Warps of an SM that can be resident, as a share of 64, with so much dynamic shared memory."""
        registers = -(-self.registers * 32 // 256) * 256 * (THREADS // 32)
        by_shared = LIMITS[self.architecture].shared // (self.shared + dynamic + 1024)
        blocks = min(65_536 // registers, by_shared, 64 // (THREADS // 32))
        return blocks * (THREADS // 32) / 64


def compile_kernels(source: Path, architecture: str, work: Path) -> list[Kernel]:
    """Compiles a .cu file to machine code and reads what ptxas says of its kernels.

    Raises:
        RuntimeError: nvcc is missing or fails.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on the PATH")
    command = [nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-Xptxas", "-v", "--cubin"]
    command += ["-o", str(work / f"{source.stem}.{architecture}.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {source} for {architecture}:\n{done.stderr}")
    return list(parse(done.stderr))


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<architecture>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def parse(log: str) -> Iterator[Kernel]:
    """The kernels of a log of ``ptxas -v``."""
    for match in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        yield Kernel(
            match["architecture"],
            _readable(match["name"]),
            int(match["registers"]),
            int(shared[1]) if shared else 0,
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )


def _readable(mangled: str) -> str:
    """The name of a kernel, with its cell and its rows where it is a template."""
    name = re.search(r"\d((?:poisson|update|rollout)(?:_grad)?)_kernel", mangled)
    cell = re.search(r"(Poisson|Gaussian)LanesELi(\d+)E", mangled)
    assert name is not None, mangled
    return f"{name[1]}, {cell[1]}, {cell[2]} rows" if cell else name[1]


def dynamic_shared(kernel: Kernel) -> int:
    """Dynamic shared memory of a rollout of B 200, K 512, M 256 with the kernel's rows; 0 for the others."""
    if "rows" not in kernel.name:
        return 0
    module, of = compiled.load(), LIMITS[kernel.architecture]
    args, limits = module.RolloutArgs(), module.DeviceLimits()
    args.n_rows, args.n_latents, args.n_inputs, args.n_inner = 200, 512, 256, 1
    args.cell = int("Gaussian" in kernel.name)
    limits.sms, limits.shared, limits.max_cluster = of.sms, of.block, of.cluster
    rows = int(kernel.name.split()[-2])
    return int(module.cuda_plan(args, "grad" in kernel.name, limits, 0, 0, rows).shared_bytes)


def table(kernels: list[Kernel]) -> str:
    """The report, in Markdown."""
    lines = [
        "# CUDA kernels: what the compiler gives them",
        "",
        "Written by `python tools/cuda_resources.py` from what `ptxas -v` reports; no GPU was needed, "
        "and nothing here was timed. Occupancy is theoretical: resident warps of an SM as a share of 64. "
        "Rollouts are persistent and take one block of 256 threads per SM on purpose; their dynamic shared "
        "memory is that of the plan for B 200, K 512, M 256 with the rows named.",
        "",
        "| architecture | kernel | registers | shared, static + dynamic | stack | spills | occupancy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for k in kernels:
        dynamic = dynamic_shared(k)
        lines.append(
            f"| {k.architecture} | {k.name} | {k.registers} | {k.shared} + {dynamic} | {k.stack} | "
            f"{k.spills} | {k.occupancy(dynamic):.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles everything and writes the table; exits with an error where a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository")
    parser.add_argument("--work", type=Path, default=Path("build"), help="where machine code goes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kernels = [
        kernel
        for architecture in ARCHITECTURES
        for source in SOURCES
        for kernel in compile_kernels(
            options.root / "csrc" / "cuda" / f"{source}.cu", architecture, options.work
        )
    ]
    (options.root / "bench" / "results" / "cuda_resources.md").write_text(table(kernels))
    spilled = [f"{k.name} on {k.architecture}" for k in kernels if k.spills]
    if spilled:
        raise SystemExit(f"kernels spill registers: {', '.join(spilled)}")


if __name__ == "__main__":
    main()
