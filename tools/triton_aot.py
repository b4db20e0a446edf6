"""Compiles every Triton kernel to machine code without a GPU, and writes what each needs of the device.

    python tools/triton_aot.py [--all] [--arch 80 90 100] [--out FILE] [--json FILE]

Without ``--all`` the default configuration of every kernel, with it every configuration the tuner may pick
and every estimator and format of products. A row is one kernel in one configuration: registers of a thread,
bytes it spills, shared memory of a program, and the seconds of the compilation. The exit status is 1 where a
default configuration spills or anything exceeds the device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ipvae_kernels.backend.triton.tuning import serving
from ipvae_kernels.cells import CELLS
from ipvae_kernels.poisson import triton as poisson
from ipvae_kernels.poisson.estimators import COMPILED
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.triton import first_draw, resident, resident_kernels, stepped_kernels
from ipvae_kernels.rollout.triton.parts import COUNTS, PRODUCTS, decode_product
from ipvae_kernels.update import triton as update

SHARED_MAX = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of a program
REGISTERS_MAX = 65536  # of a program, on each of these

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_FLOATS = ("leak", "decay", "clamp_u", "clamp_du", "clamp_xi", "clamp_dxi", "temperature", "n_arrivals")
_PRODUCT_OF_PIXELS = {"PIXELS": stepped_kernels.PIXELS, "DEPTH": stepped_kernels.DEPTH, "n_inner": 1}
_OFFSETS = ("sample_offset", "neuron_offset")
_WIDE = (*_OFFSETS, "first_step", "step", "high", "x_step", "n_updates", "update", "first_draw")


class Case(NamedTuple):
    """One kernel in one configuration.

    Attributes:
        name: of the kernel, and what it was specialised to.
        kernel: the tuned kernel.
        constants: its constexpr arguments, and those that are 1 or None.
        config: of the tuner.
        default: the configuration that untuned calls take.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    config: Any
    default: bool


class Figures(NamedTuple):
    """What a compiled kernel needs."""

    registers: int
    spilled: int
    shared: int
    seconds: float


class Row(NamedTuple):
    """A case on one architecture: no ``figures`` where it does not compile, ``fault`` where one is found."""

    name: str
    configuration: str
    default: bool
    arch: int
    figures: Figures | None
    fault: str | None


def _kernels(complete: bool) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, kernel and constants of every kernel, in the variants whose code differs most."""
    codes = range(len(COMPILED)) if complete else [COMPILED.index(name) for name in ("hard", "sigmoid")]
    matmul_precisions = PRODUCTS if complete else {"float32": PRODUCTS["float32"]}
    for code in codes:
        cell = {"ESTIMATOR": code, "n_arrivals": None, "BLOCK_K": 128}
        yield f"poisson draw, {COMPILED[code]}", poisson.draw_kernel, cell
    latents = {"CELL": 2, "ROWS": first_draw.ROWS, "NEURONS": first_draw.NEURONS}
    yield "gaussian_relu draw", first_draw.latents_kernel, latents
    yield "update forward", update.forward_kernel, {"BLOCK_K": 256}
    yield "update backward", update.backward_kernel, {"BLOCK_K": 256, "BLOCK_B": 4}
    yield (
        "stepped residual, counts",
        stepped_kernels.residual_kernel,
        {**_PRODUCT_OF_PIXELS, "PRODUCT": COUNTS.value},
    )
    for matmul_precision, product in matmul_precisions.items():
        of_pixels = {**_PRODUCT_OF_PIXELS, "PRODUCT": product}
        yield (
            f"stepped residual, {product}",
            stepped_kernels.residual_kernel,
            {**of_pixels, "largest_ptr": None},
        )
        yield f"stepped push, {product}", stepped_kernels.push_kernel, of_pixels
        widths = sorted({resident.PIXELS_MAX_OLD, resident.pixels_max(9, matmul_precision)})
        full = product == "tf32x3"
        yield from _rollouts(
            matmul_precision, widths, codes if full else codes[:2], (0, 2) if full else (0,), True
        )
    yield from _rollouts("float32", (resident.PIXELS_MAX_OLD,), codes[:1], (0, 2), False)


def _rollouts(
    matmul_precision: str, widths: Sequence[int], codes: Sequence[int], cells: Sequence[int], single: bool
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The kernels of both drivers that draw, and their backward; ``single``: one update a step."""
    product = PRODUCTS[matmul_precision]
    given = {"PRODUCT": product, **({"n_inner": 1} if single else {})}
    of_neurons = {
        **given,
        "DEPTH": stepped_kernels.DEPTH,
        "NEURONS": stepped_kernels.NEURONS,
        "SLICE": stepped_kernels.SLICE,
    }
    inner = "" if single else ", n_inner > 1"
    drawn = list(_drawn(codes))
    backwards = [_of_backward(cell) for cell in cells]
    for name, cell in backwards:
        yield f"stepped pull, {product}{name}{inner}", stepped_kernels.pull_kernel, {**of_neurons, **cell}
    for name, draw in drawn:
        update_of = {**of_neurons, **draw, "SINGLE": False, "RELEASED": False}
        if _decode_of(draw, matmul_precision) != COUNTS.value:
            update_of["largest_ptr"] = None
        yield f"stepped update, {product}, {name}{inner}", stepped_kernels.update_kernel, update_of
    for pixels in widths:
        of_rows = {**given, **resident.blocks(pixels)}
        at = f"{product}, M {pixels}"
        for name, cell in backwards:
            yield (
                f"resident backward, {at}{name}{inner}",
                resident_kernels.backward_kernel,
                {**of_rows, **cell},
            )
        for name, draw in drawn:
            forward_of = {
                **of_rows,
                "SINGLE": False,
                "RELEASED": False,
                **_of_forward(draw, matmul_precision),
            }
            yield f"resident forward, {at}, {name}{inner}", resident_kernels.forward_kernel, forward_of


def _drawn(codes: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and constants of what a forward draws: counts of each estimator, rectified Gaussian latents."""
    for code in codes:
        yield COMPILED[code], {"CELL": 0, "ESTIMATOR": code, "EXPECTED": False, "n_arrivals": None}
    if len(codes) == len(COMPILED):  # of a complete run: no branch of it is new but that to the rate
        expected = {"CELL": 0, "ESTIMATOR": codes[0], "EXPECTED": True, "n_arrivals": None}
        yield f"{COMPILED[codes[0]]}, expected", expected
    yield "gaussian_relu", {"CELL": 2, "ESTIMATOR": 0, "EXPECTED": False, "n_arrivals": None}


def _of_backward(cell: int) -> tuple[str, dict[str, Any]]:
    """Name and constants of a cell's backward."""
    if cell == 0:
        return "", {"CELL": 0, "RELEASED": False, "grad_means_ptr": None}
    return f", {tuple(CELLS)[cell]}", {"CELL": cell, "RELEASED": False}


def _of_forward(draw: dict[str, Any], matmul_precision: str) -> dict[str, Any]:
    """Constants of the resident forward: inference without records where counts are hard, else training."""
    hard = draw["CELL"] == draw["ESTIMATOR"] == 0
    absent = ["squared", "spikes", "zeros", "record_log_rate", "record_counts", "record_mean"]
    if hard:
        absent += ["drives", "counts", "slopes", "recon", "kl"]
    given = {**draw, "DECODE": _decode_of(draw, matmul_precision), "FRESH": not hard}
    return {**given, **{f"{name}_ptr": None for name in absent}}


def _decode_of(draw: dict[str, Any], matmul_precision: str) -> str:
    """The product that decodes what is drawn."""
    cell, estimator = tuple(CELLS)[draw["CELL"]], COMPILED[draw["ESTIMATOR"]]
    drive = "expected" if draw["EXPECTED"] else "paper"
    cfg = RolloutConfig(
        steps=1, matmul_precision=matmul_precision, cell=cell, estimator=estimator, temperature=0.1,
        drive=drive,
    )  # fmt: skip
    return decode_product(cfg)


def _serves(case: Case, arch: int) -> bool:
    """Whether a device of this architecture may be given the case."""
    pixels = case.constants.get("PIXELS", 0)
    return not case.name.startswith("resident") or pixels <= resident.pixels_max(arch // 10, "float32")


def cases(complete: bool, arch: int) -> list[Case]:
    """Every kernel that serves an architecture in its default configuration, or, complete, in every one."""
    found = [
        Case(name, kernel, constants, config, i == 0)
        for name, kernel, constants in _kernels(complete)
        for i, config in enumerate(_configurations(kernel, complete, arch))
    ]
    return [case for case in found if _serves(case, arch)]


def _configurations(kernel: Any, complete: bool, arch: int) -> list[Any]:
    """Those that the tuner may pick, or the first; a kernel that is not tuned has Triton's default."""
    if not hasattr(kernel, "configs"):
        return [triton.Config({})]
    found = serving(kernel.configs, arch // 10)
    return found if complete else found[:1]


def function_of(kernel: Any) -> Any:
    """The kernel without its tuner."""
    return kernel.fn if hasattr(kernel, "configs") else kernel


def type_of(name: str) -> str:
    """The type of a kernel's argument, which its name tells."""
    if name == "seed_ptr":
        return "*i64"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name in _FLOATS else "i64" if name in _WIDE else "i32"


def compile_case(case: Case, arch: int) -> Figures:
    """Compiles for one architecture and reads the figures from the machine code."""
    function = function_of(case.kernel)
    constants = {**case.constants, **case.config.kwargs}
    signature = {name: "constexpr" if name in constants else type_of(name) for name in function.arg_names}
    aligned = [
        i
        for i, name in enumerate(function.arg_names)
        if name not in constants and (name.endswith("_ptr") or name in ("n_pixels", "n_neurons"))
    ]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    begin = time.perf_counter()
    options = {"num_warps": case.config.num_warps, "num_stages": case.config.num_stages}
    if case.config.maxnreg is not None:
        options["maxnreg"] = case.config.maxnreg
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    seconds = time.perf_counter() - begin
    registers, spilled = _resources(compiled.asm["cubin"])
    return Figures(registers, spilled, compiled.metadata.shared, seconds)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack: what it spills, since the kernels have no arrays."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+)", text)
    return int(found[0]), int(found[1])


def fault(case: Case, figures: Figures, arch: int) -> str | None:
    """What a kernel may not do: spill in its default configuration, or exceed the device."""
    if case.default and figures.spilled:
        return f"spills {figures.spilled} bytes"
    if figures.shared > SHARED_MAX[arch]:
        return f"needs {figures.shared} bytes of shared memory, sm_{arch} has {SHARED_MAX[arch]}"
    if figures.registers * 32 * case.config.num_warps > REGISTERS_MAX:
        return f"needs {figures.registers} registers for each of {32 * case.config.num_warps} threads"
    return None


def measure(complete: bool, archs: list[int]) -> Iterator[Row]:
    """Compiles case after case; what does not compile is a fault."""
    for arch in archs:
        for case in cases(complete, arch):
            blocks = " ".join(f"{name}={value}" for name, value in case.config.kwargs.items())
            text = f"{case.config.num_warps} warps, {case.config.num_stages} stages {blocks}".strip()
            try:
                figures = compile_case(case, arch)
                wrong = fault(case, figures, arch)
            except Exception as error:  # of any of the compiler's passes
                figures, wrong = None, f"does not compile: {_root(error)!r}"
            yield Row(case.name, text, case.default, arch, figures, wrong)


def _root(error: BaseException) -> BaseException:
    """What an error began with; Triton's compiler repeats the kernel's text at every level above."""
    return error if error.__cause__ is None else _root(error.__cause__)


def table(rows: list[Row]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        f"# Triton {triton.__version__}, compiled ahead of time on {platform.machine()}, no GPU",
        "",
        "| kernel | configuration | arch | registers | spilled, B | shared, B | compiled in, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = [*row.figures[:3], f"{row.figures.seconds:.1f}"] if row.figures else ["", "", "", row.fault]
        text = row.configuration + (" (default)" if row.default else "")
        lines.append("| " + " | ".join(map(str, (row.name, text, f"sm_{row.arch}", *figures))) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--all", action="store_true", help="every configuration, estimator, format of products"
    )
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--out", type=Path, help="write the table here; default: standard output")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:  # so that every compilation is one
        os.environ["TRITON_CACHE_DIR"] = cache
        for row in measure(arguments.all, arguments.arch):
            print(*row[:4], row.figures or "", row.fault or "", file=sys.stderr, flush=True)
            rows.append(row)
    text = table(rows)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
    else:
        print(text)
    if arguments.json:
        flat = [{**row._asdict(), "figures": row.figures and row.figures._asdict()} for row in rows]
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "rows": flat}, indent=1))
    return 1 if any(row.fault for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
