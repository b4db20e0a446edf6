"""What makes two runs the same one: configurations, data and motion, as plain values in a checkpoint."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIGEST_BYTES = 2**24
# What of a configuration may differ on resume: how long the run is.
_LENGTH = {("train", "max_steps"), ("train", "epochs")}


def differences(own: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What keeps a checkpoint's run from going on as `own`, a line each."""
    wrong = [
        f"{part}.{name}: expected {own_part.get(name)!r}, found {found_part.get(name)!r}"
        for part in ("model", "train")
        for own_part, found_part in [(own[part], found.get(part) or {})]
        for name in own_part | found_part
        if own_part.get(name) != found_part.get(name) and (part, name) not in _LENGTH
    ]
    if own["steps"] < (steps := int(found.get("steps", 0))):
        wrong.append(
            f"steps: expected at least {steps} as before, found {own['steps']}: max_steps or epochs may grow "
            "but not shrink"
        )
    if own["data"] != found.get("data"):
        wrong.append(f"data: expected training inputs {own['data']}, found {found.get('data')}")
    elif own["digest"] != found.get("digest"):
        wrong.append("data: the training inputs have the same shape but other values than those of the run")
    if own["motion"] != found.get("motion"):
        wrong.append(f"motion (frames): expected {own['motion']}, found {found.get('motion')}")
    return wrong


def digest(values: Tensor | NDArray[Any]) -> str:
    """BLAKE2b over type, shape and bytes, read in pieces; the same on every device."""
    tensor = (torch.from_numpy(values) if isinstance(values, np.ndarray) else values).detach()
    digest = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    rows = tensor if tensor.ndim else tensor[None]
    piece = max(1, DIGEST_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for first in range(0, len(rows), piece):
        part = rows[first : first + piece].cpu().contiguous()
        digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe(value: Any, depth: int = 4) -> str:
    """What a callable or a value in it is, in words that are the same in every session.

    Plain values and tensors that it holds count, to some depth; what a program may change in passing (lists,
    open files, private attributes) does not, nor does the text of a function.
    """
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return digest(value)
    if inspect.isclass(value):
        return value.__qualname__
    name, held = type(value).__qualname__, dict[Any, Any]()
    if isinstance(value, tuple):
        name, held = "", dict(enumerate(value))
    elif isinstance(value, functools.partial):
        name, held = "partial", {"func": value.func, **dict(enumerate(value.args)), **value.keywords}
    elif inspect.ismethod(value):
        name, held = value.__qualname__, {"self": value.__self__}
    elif inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        name, held = value.__qualname__, {**inspect.getclosurevars(value).nonlocals, **defaults}
    elif callable(value) or dataclasses.is_dataclass(value):
        held = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    if depth == 0 or not held:
        return name
    return f"{name}({', '.join(f'{k}={describe(v, depth - 1)}' for k, v in held.items())})"


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, as they come back from a file."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
