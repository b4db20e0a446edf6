"""Checks of configuration fields: each value is refused by its name, or stored as plain Python."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

_T = TypeVar("_T")
_LARGEST = 3.4028234663852886e38  # of float32, in which parameters and buffers are kept
SIZE_MAX = 2**31 - 1


class ConfigError(ValueError):
    """A configuration field has a value that cannot work; the message names the field."""


def from_dict(cls: type[_T], values: dict[str, Any]) -> _T:
    """A configuration of the class from plain values.

    Raises:
        ConfigError: for a key that is unknown or missing, or a value that cannot work.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected a mapping of fields, found {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        known = ", ".join(fields)
        raise ConfigError(f"{cls.__name__}: unknown field(s) {', '.join(map(str, unknown))}; known: {known}")
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{cls.__name__}: missing field(s) {', '.join(missing)}")
    return cls(**values)


def as_python(config: object) -> None:
    """Turns numbers, flags and arrays of NumPy and torch in the fields into what Python has for them."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = _plain(getattr(config, field.name))
        if isinstance(value, (tuple, list)):
            value = tuple(map(_plain, value))
        object.__setattr__(config, field.name, value)


def _plain(value: Any) -> Any:
    # By what they have, not by type: a configuration needs neither NumPy nor the second that torch takes.
    return value.tolist() if hasattr(value, "tolist") and not getattr(value, "is_meta", False) else value


def is_int(value: object) -> bool:
    """Whether a value is an integer, and no flag."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number that float32 holds, and no flag."""
    # By comparison: math.isfinite raises for integers beyond any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Checks that a field is one of some names."""
    value = getattr(config, name)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def integer(config: object, name: str, low: int, high: int = SIZE_MAX) -> None:
    """Checks an integer within [low, high]."""
    value = getattr(config, name)
    if not is_int(value) or not low <= value <= high:
        raise ConfigError(f"{name}: expected an integer from {low} to {high}, found {value!r}")


def number(
    config: object, name: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Checks a finite number within [low, high] (above `low` where `open_low`) and stores it as a float."""
    value = getattr(config, name)
    if not is_number(value) or not low <= value <= high or (open_low and value == low):
        bounds = f" above {low:g}" if open_low else f" from {low:g} to {high:g}" if low > -math.inf else ""
        raise ConfigError(f"{name}: expected a finite number{bounds}, found {value!r}")
    object.__setattr__(config, name, float(value))
