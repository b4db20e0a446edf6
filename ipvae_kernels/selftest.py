"""Runs every schedule that can serve this machine, and compares its numbers with eager PyTorch."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import compiled, cpu, cuda, triton
from .params import PoissonParams
from .poisson import poisson_rsample, poisson_sample
from .rollout import elbo, infer
from .update import log_rate_update

_ROUNDING = 1e-4  # of the largest value: what few steps in float32 may be off by
_SHARE = 0.01  # of values that may be off by more: a draw within rounding of a threshold falls otherwise


class Check(NamedTuple):
    """One op in one schedule.

    Attributes:
        op: the function, and of a rollout the number of pixels M.
        schedule: "cpu avx2" and the like; Triton: kernel, warps, stages and tiles.
        values: how many numbers were compared.
        differing: of these, how many differ in any bit from those of eager in float32.
        wrong: how many differ by more than rounding.
        unsteady: how many differ in any bit from another run's or another schedule's of the same backend,
            where none should.
    """

    op: str
    schedule: str
    values: int
    differing: int
    wrong: int
    unsteady: int

    @property
    def passed(self) -> bool:
        """No more wrong values than draws near a threshold explain, and every run the same."""
        return self.wrong <= math.ceil(_SHARE * self.values) and not self.unsteady


def self_test(device: str | torch.device | None = None) -> list[Check]:
    """Compares every schedule on this machine with eager PyTorch on the same numbers.

    On a CPU that is the compiled module in each instruction set that the machine has; on an NVIDIA GPU the
    CUDA kernels, where they are built, and Triton's kernels in each configuration that tuning may choose. It
    takes seconds, on a GPU minutes, since everything is compiled.

    Args:
        device: "cpu" or a CUDA device; None: the GPU if torch has one.

    Returns:
        A check for each op and schedule; ``passed`` is the verdict. None where no backend can serve.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    checks: list[Check] = []
    for name, call in calls(place).items():
        exact = call("eager")
        first: dict[str, list[Tensor]] = {}
        for backend, schedule, setting in _schedules(place, name):
            with setting:
                once, again = call(backend), call(backend)
            steady = first.setdefault(backend, once) if backend == "triton" else again
            checks.append(_check(name, schedule, exact, once, (again, steady)))
    return checks


def report() -> bool:
    """Prints :func:`self_test` as a table; whether every check passed."""
    checks = self_test()
    rows = [["op", "schedule", "values", "differing bits", "wrong", "unsteady", ""]]
    rows += [[*map(str, check), "ok" if check.passed else "FAILED"] for check in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return all(check.passed for check in checks)


def calls(device: torch.device) -> dict[str, Callable[[str], list[Tensor]]]:
    """By op: all numbers that it and its backward give on a backend."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    rate, drive = normal(40, 100) * 1.5, normal(40, 100)
    constants = normal(100) * 0.2 - 2.0, torch.tensor(-1.5, device=device)

    def sample(backend: str) -> list[Tensor]:
        return [poisson_sample(rate, seed=1, backend=backend)]

    def rsample(backend: str) -> list[Tensor]:
        return _with_gradients(
            lambda u: poisson_rsample(u, estimator="cubic", seed=1, backend=backend), [rate]
        )

    def update(backend: str) -> list[Tensor]:
        def new(u: Tensor, push: Tensor, bias: Tensor, lr: Tensor) -> Tensor:
            params = PoissonParams(rate, rate, bias, lr, rate)  # of which it takes two
            return log_rate_update(u, rate, push, params, leak=0.5, backend=backend)

        return _with_gradients(new, [rate, drive, *constants])

    found: dict[str, Callable[[str], list[Tensor]]] = {
        "poisson_sample": sample,
        "poisson_rsample": rsample,
        "log_rate_update": update,
    }
    for pixels in (36, 300):  # one for each driver of a GPU
        x, params = normal(40, pixels), [0.1 * normal(pixels, 100), 0.1 * normal(pixels), *constants]
        params.append(normal(100))

        def inferred(backend: str, x: Tensor = x, params: list[Tensor] = params) -> list[Tensor]:
            record = ("recon", "kl", "counts")
            result = infer(x, PoissonParams(*params), 2, seed=1, record=record, backend=backend)
            return [result.state.log_rate, *result.records.values()]

        def loss(backend: str, x: Tensor = x, params: list[Tensor] = params) -> list[Tensor]:
            def of(x: Tensor, *params: Tensor) -> Tensor:
                return elbo(x, PoissonParams(*params), 2, estimator="fini2", seed=1, backend=backend).loss

            return _with_gradients(of, [x, *params])

        found |= {f"infer, M {pixels}": inferred, f"elbo, M {pixels}": loss}
    return found


def _with_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def _schedules(
    device: torch.device, op: str
) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[object]]]:
    """Backend, name and setting of every schedule of an op that serves the device."""
    probe = [torch.zeros((), device=device)]
    if not (cuda.reason() or cuda.unserved(probe)):
        yield "cuda", "cuda", contextlib.nullcontext()
    if not (cpu.reason() or cpu.unserved(probe)):
        for name in compiled.load().instruction_sets():
            yield "cpu", f"cpu {name}", _instruction_set(name)
    if not (triton.reason() or triton.unserved(probe)):
        yield from _triton_schedules(device, op)


@contextlib.contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    module = compiled.load()
    before = module.instruction_set()
    module.set_instruction_set(name)
    try:
        yield
    finally:
        module.set_instruction_set(before)


_FILES = {
    "poisson_sample": "poisson.triton",
    "poisson_rsample": "poisson.triton",
    "log_rate_update": "update.triton",
    "infer, M 36": "rollout.triton.resident",
    "elbo, M 36": "rollout.triton.resident",
    "infer, M 300": "rollout.triton.stepped",
    "elbo, M 300": "rollout.triton.stepped",
}
"""Where the tuned kernels of an op are."""


def _triton_schedules(
    device: torch.device, op: str
) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[object]]]:
    """As they are tuned, then each configuration of each kernel; the interpreter has one schedule."""
    yield "triton", "triton, as tuned", contextlib.nullcontext()
    if triton.interpreted():
        return
    tuning = importlib.import_module(f"{__package__}.backend.triton.tuning")
    major = torch.cuda.get_device_capability(device)[0]
    for name, kernel in tuning.tuned(importlib.import_module(f"{__package__}.{_FILES[op]}")).items():
        for config in tuning.serving(kernel.configs, major):
            yield "triton", f"triton {name}, {config}", tuning.only(kernel, config)


def _check(
    op: str, schedule: str, exact: list[Tensor], ours: list[Tensor], others: Sequence[list[Tensor]]
) -> Check:
    values = differing = wrong = unsteady = 0
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        values += a.numel()
        differing += _differing(a, b)
        error = (a.double() - b.double()).abs() > _ROUNDING * (b.double().abs().max() + 1e-30)
        wrong += int((error | ~torch.isfinite(a)).sum())
        unsteady += max(_differing(a, other[i]) for other in others)
    return Check(op, schedule, values, differing, wrong, unsteady)


def _differing(a: Tensor, b: Tensor) -> int:
    return int((a.view(torch.int32) != b.view(torch.int32)).sum())
