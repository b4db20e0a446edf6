"""Checks of the arguments of public functions. Every message says argument, expectation and finding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import cast

import numpy as np
import torch
from torch import Tensor, distributed

from . import _transforms
from .backend import compiled

_DTYPES = (torch.float32, torch.float64)
_HALF = (torch.float16, torch.bfloat16)
# Of float32, in which constants meet tensors: beyond lies infinity, and below it a quotient overflows.
_LARGEST, _TINY = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
_BOOLS = (bool, np.bool_)


def tensor(name: str, value: object) -> None:
    """A torch.Tensor."""
    if not isinstance(value, Tensor):
        hint = "; torch.from_numpy makes one" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"{name}: expected a torch.Tensor, found {type(value).__name__}{hint}")


def shape(name: str, value: Tensor, expected: Sequence[int], meaning: str) -> None:
    """The shape ``expected``; ``meaning`` says it in letters, e.g. "[B, K]"."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {meaning} = {list(expected)}, found {list(value.shape)}")


def alike(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors are as `full_precision` wants them, as they are in the common case.

    In a call of 40 microseconds each property of a tensor counts: it is asked for once.
    """
    dtype, device = first.dtype, first.device
    if dtype not in _DTYPES or device.type == "meta" or torch.is_autocast_enabled(device.type):
        return False
    for value in others:
        if value.dtype != dtype or value.device != device or value.layout != torch.strided:
            return False
    return first.layout == torch.strided


def full_precision(like: str | None = None, /, **tensors: Tensor) -> list[Tensor]:
    """The tensors, checked to share a device and a dtype, float32 or float64.

    Under autocast, half precision is raised to float32: states are integrated over many steps.

    Args:
        like: the name of the one that the others are measured by, so that the odd one out is what a message
            names; None: the first.
        tensors: by the names they have for the caller.
    """
    for name, value in tensors.items():
        tensor(name, value)
    first_name = like or next(iter(tensors))
    first = tensors[first_name]
    device, dtype = first.device, first.dtype
    if alike(first, *tensors.values()):
        return list(tensors.values())
    for name, value in (first_name, first), *tensors.items():
        if value.layout != torch.strided or value.device.type == "meta":
            raise TypeError(
                f"{name}: expected a dense tensor with data, found {value.layout} on {value.device}"
            )
        if value.device != device:
            raise ValueError(
                f"{name}: expected device {device} as that of {first_name}, found {value.device}"
            )
    if torch.is_autocast_enabled(device.type):
        tensors = {name: raised(value) for name, value in tensors.items()}
        dtype = tensors[first_name].dtype
    for name, value in (first_name, tensors[first_name]), *tensors.items():
        if value.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected dtype torch.float32 or torch.float64, found {value.dtype}")
        if value.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype} as that of {first_name}, found {value.dtype}")
    return list(tensors.values())


def is_half(value: object) -> bool:
    """Whether this is a tensor of half precision, as parameters are after ``module.to(torch.bfloat16)``."""
    return isinstance(value, Tensor) and value.dtype in _HALF


def raised(value: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return value.float() if is_half(value) else value


def one_for_all_rows(name: str, value: Tensor) -> None:
    """A number that ``torch.vmap`` does not map over: a call has one.

    Raises:
        RuntimeError: it does.
    """
    if _transforms.mapped(value):
        raise RuntimeError(
            f"{name}: expected one number for all rows of torch.vmap, found one for each; call once for each "
            "row, or leave it out of in_dims"
        )


def number(
    name: str, value: object, low: float = -math.inf, high: float = _LARGEST, *, above: bool = False
) -> float:
    """A number of Python, NumPy, or in a tensor of shape [], from ``low``, or ``above`` it, to ``high``.

    What is smaller than the smallest normal number of float32 is 0. While ``torch.compile`` or
    ``torch.export`` traces, a number in a tensor stays one (float64, [], on the CPU): the graph takes it as
    an input, and looks at it when it runs.
    """
    if type(value) is not float:
        if torch.compiler.is_compiling() and isinstance(value, (Tensor, np.ndarray, np.generic)):
            return _traced_number(name, torch.as_tensor(value), low, high, above)
        value = _scalar(name, value)
        if isinstance(value, _BOOLS) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number, found {_kind(value)}")
        try:
            value = float(value)
        except OverflowError:  # of an integer beyond any float
            value = math.inf
    if abs(value) < _TINY:
        value = 0.0
    if not low <= value <= high or (above and value == low):
        bound = "" if low == -math.inf else f" {'above' if above else 'of at least'} {low:g}"
        bound += f" and at most {high:g}" if _LARGEST > high < value else ""
        raise ValueError(f"{name}: expected a finite number{bound}, found {value}")
    return value


def integer(name: str, value: object, low: int, high: int) -> int:
    """An integer in low..high; of Python, NumPy, or a tensor of shape []; or a size that is traced."""
    if type(value) is not int:  # asking for anything else takes Python calls
        value = cast(int, value) if isinstance(value, torch.SymInt) else _whole(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name}: expected an int from {low} to {high}, found {value}")
    return value


def _whole(name: str, value: object) -> int:
    value = _scalar(name, value)
    if isinstance(value, _BOOLS) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, found {_kind(value)}")
    return int(value)


def choice(name: str, value: object, options: Iterable[str]) -> str:
    """One of the options."""
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name}: expected one of {', '.join(options)}; found {value!r}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False; of Python, NumPy, or a tensor of shape []."""
    if value is True or value is False:
        return value
    value = _scalar(name, value)
    if not isinstance(value, _BOOLS):
        raise TypeError(f"{name}: expected a bool, found {_kind(value)}")
    return bool(value)


def _scalar(name: str, value: object) -> object:
    """The number in a tensor or array of shape []; on a GPU this waits for it. Others as they are."""
    if not isinstance(value, (Tensor, np.ndarray)) or value.ndim:
        return value
    if isinstance(value, Tensor):
        if value.is_meta:
            return value
        _no_gradient(name, value)
        one_for_all_rows(name, value)
        if value.is_cuda and torch.cuda.is_current_stream_capturing():
            raise TypeError(
                f"{name}: expected a number of Python while a CUDA graph is captured, found a tensor on the "
                "GPU, for which the host would wait; a graph keeps the number that it is captured with"
            )
    return value.item()


def _no_gradient(name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise TypeError(
            f"{name}: expected a number, which has no gradient; found a tensor that requires one. "
            f"{name}.detach() passes its value"
        )


def _traced_number(name: str, value: Tensor, low: float, high: float, above: bool) -> float:
    """A number as a graph takes it: a tensor in the place of a float."""
    if value.ndim:
        raise TypeError(f"{name}: expected a number, found {_kind(value)}")
    _no_gradient(name, value)
    checked: float = _number(value, name, low, high, above)
    return checked


def _number_kernel(value: Tensor, name: str, low: float, high: float, above: bool) -> Tensor:
    """The number, checked: float64, [], on the CPU."""
    found = number(name, value.detach(), low, high, above=above)
    return torch.full((), found, dtype=torch.float64, device="cpu")


def _number_shape(value: Tensor, *_: object) -> Tensor:
    return torch.empty((), dtype=torch.float64, device="cpu")


_number = _transforms.define(
    "number",
    "(Tensor value, str name, float low, float high, bool above) -> Tensor",
    _number_kernel,
    _number_shape,
    _transforms.each_row,
)


def _kind(value: object) -> str:
    """The type of a value, with the shape of one that has several numbers."""
    if isinstance(value, (Tensor, np.ndarray)):
        where = " without data" if isinstance(value, Tensor) and value.is_meta else ""
        return f"{type(value).__name__} of shape {list(value.shape)}{where}"
    return type(value).__name__


def finite(**tensors: Tensor) -> None:
    """No NaN and no infinity; looks at the numbers, so it runs inside the ops, on real tensors."""
    for name in not_finite(tensors):
        value = tensors[name]
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite values, found {bad} of {value.numel()} NaN or infinite")


def not_negative(name: str, value: Tensor) -> None:
    """No number below 0, as far as the numbers can be looked at."""
    if _looks(value) and bool((value < 0.0).any()):
        bad = int((value < 0.0).sum())
        raise ValueError(f"{name}: expected values of at least 0, found {bad} of {value.numel()} below")


def finite_result(cause: str, **tensors: Tensor) -> None:
    """Finite results of finite arguments; ``cause`` says what else can be the reason."""
    for name in not_finite(tensors):
        raise ValueError(f"the result {name!r} is not finite: {cause}")


LATE = ("cuda",)
"""Devices where inputs of a kernel are looked at together with its results, see :func:`finite_together`."""


def finite_together(cause: str, inputs: Mapping[str, Tensor], results: Mapping[str, Tensor]) -> None:
    """:func:`finite` and :func:`finite_result` in one look, after the kernel was launched.

    The host then waits for a GPU once: two looks took 614 us where the kernel of 16 steps took 352
    (docs/design/cuda.md). Kernels end with NaN as with numbers.
    """
    if not is_finite(*inputs.values(), *results.values()):
        finite(**inputs)
        finite_result(cause, **results)


def is_finite(*values: Tensor) -> bool:
    """Whether no element is NaN or infinite, as far as the numbers can be looked at."""
    return not not_finite({str(i): value for i, value in enumerate(values)})


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors with NaN or infinite elements, as far as the numbers can be looked at.

    The host waits once for those of a GPU that are finite, not once for each.
    """
    unclear = [
        name
        for name, value in tensors.items()
        if _looks(value) and (value.is_cuda or not compiled.all_finite(value))
    ]
    if not unclear or norms_are_finite([tensors[name] for name in unclear]):
        return []
    return [name for name in unclear if not compiled.all_finite(tensors[name])]


def norms_are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor of a device has NaN or infinite elements: one number is brought to the host."""
    full = [value.detach() for value in tensors if value.numel()]
    return not full or bool(torch.nn.utils.get_total_norm(full, math.inf) < math.inf)


def below(limit: float, value: Tensor) -> bool:
    """Whether the size of every element is known to be below a limit."""
    return _looks(value) and compiled.all_below(value, limit)


def _looks(value: Tensor) -> bool:
    """Whether its numbers can be looked at.

    The host may not wait for a stream that a CUDA graph captures, while ``torch.compile`` traces there are
    none, and inside a transform of ``torch.func`` a tensor may stand for many; there, ops look at them once
    the transforms are done with.
    """
    if torch.compiler.is_compiling():
        return False
    capturing = value.is_cuda and torch.cuda.is_current_stream_capturing()
    return not capturing and not torch._C._are_functorch_transforms_active()


def seed(value: object, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A seed as an int64 tensor of shape [] on the device; None draws one, from torch's default generator.

    A tensor of the device is taken as it is: a CUDA graph is replayed with new noise through it. Where
    ``torch.distributed`` is initialised, a drawn seed is the rank's own, though generators may be alike.

    Args:
        value: the seed.
        device: for it.
        generator: to draw from instead, of any device; then there is no seed beside it.
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise TypeError(f"generator: expected a torch.Generator, found {type(generator).__name__}")
        if value is not None:
            raise TypeError(f"generator: expected None beside a seed, found both (seed={value!r})")
        drawn = torch.randint(2**63 - 1, (), dtype=torch.int64, device=generator.device, generator=generator)
        return _of_rank(drawn.to(device))
    if value is None:
        return _of_rank(torch.randint(2**63 - 1, (), dtype=torch.int64, device=device))
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.dim() != 0:
            raise TypeError(
                f"seed: expected torch.int64 of shape [], found {value.dtype} of shape {list(value.shape)}"
            )
        if value.device != device:
            raise ValueError(f"seed: expected device {device}, found {value.device}")
        return value
    return torch.full((), integer("seed", value, -(2**63), 2**63 - 1), dtype=torch.int64, device=device)


def _of_rank(drawn: Tensor) -> Tensor:
    """A drawn seed as that of this process in the default group of ``torch.distributed``, if there is one."""
    if distributed.is_available() and distributed.is_initialized() and (rank := distributed.get_rank()):
        return drawn ^ rank
    return drawn


def neuron_offset(value: object, neurons: int) -> int:
    """The first of so many neurons: four neighbours share a block of random words."""
    offset = integer("neuron_offset", value, 0, 2**32 - (neurons or 1))
    if offset % 4:
        raise ValueError(f"neuron_offset: expected a multiple of 4, found {offset}")
    return offset


def stream(step: object, steps: int, sample_offset: object, batch: int) -> tuple[int, int]:
    """Step and first sample, which the Philox counter can address."""
    return (
        integer("step", step, 0, 2**32 - steps),
        integer("sample_offset", sample_offset, 0, 2**32 - (batch or 1)),
    )
