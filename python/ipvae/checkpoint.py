"""Files of weights: written whole or not at all, read without executing code, refused when damaged.

A model is a folder of two files. ``model.safetensors`` holds the tensors and, in its header, the
configuration and a digest of the tensors, so that one rename replaces a model at once; ``config.json`` is the
same configuration for people and other tools.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import pickle
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from .config import ConfigError, ModelConfig
from .extras import explained

with explained():
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as safetensors_bytes

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LAYOUT = "1"
# The age from which a temporary file belongs to no save that still runs.
LEFTOVER_SECONDS = 3600.0
# What the constants of a training run may be; the clamps interpolate by eps.
RANGES = {"layer.temp": (0.0, math.inf), "layer.eps": (0.0, 1.0)}


class CheckpointError(RuntimeError):
    """A file of weights is missing, damaged or of another origin; the message says which and what."""


@contextmanager
def atomic_file(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` at its end, flushed to disk; on an error, no trace.

    What saves of the same name left that were killed more than an hour ago is removed.
    """
    path = Path(path)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Removes the old temporary files of `atomic_file`; one that cannot be removed stays."""
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.tmp"
    for leftover in path.parent.glob(pattern):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def save_model(folder: str | PathLike[str], config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Writes a model's folder, creating it if need be.

    Args:
        folder: receives ``model.safetensors`` and ``config.json``.
        config: of the model.
        state: its state dict.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {
        "format": "pt",
        "package": "ipvae",
        "layout": LAYOUT,
        "config": json.dumps(config.to_dict()),
        "sha256": _digest(tensors),
    }
    with atomic_file(folder / WEIGHTS) as file:
        file.write(safetensors_bytes(tensors, metadata=header))
    with atomic_file(folder / CONFIG) as file:
        file.write(json.dumps(config.to_dict(), indent=2).encode() + b"\n")


def load_model(
    folder: str | PathLike[str], *, device: str | torch.device = "cpu"
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Reads what `save_model` wrote.

    Returns:
        The configuration and the state dict.

    Raises:
        CheckpointError: for files that are missing, damaged, contradictory or of another origin.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a folder with {WEIGHTS}, found none")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error
    if header.get("package") != "ipvae" or not {"config", "sha256"} <= set(header):
        raise CheckpointError(f"{path}: a safetensors file, but not written by ipvae")
    if header.get("layout") != LAYOUT:
        raise CheckpointError(f"{path}: expected layout {LAYOUT!r}, found {header.get('layout')!r}")
    if header["sha256"] != _digest(tensors):
        raise CheckpointError(f"{path}: damaged, the tensors do not match their digest")
    config = _parse_config(path, header["config"])
    _compare_config(folder / CONFIG, config)
    return config, {name: tensor.to(device) for name, tensor in tensors.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads a state dict key for key.

    Args:
        model: receives the tensors.
        state: its state dict, complete.
        name: of the source, for the message.

    Raises:
        CheckpointError: listing every key that is missing, unknown, of another shape, not finite or out of
            range.
    """
    own = model.state_dict()
    wrong = [f"missing {key} {list(own[key].shape)}" for key in own if key not in state]
    wrong += [f"unknown {key}" for key in state if key not in own]
    for key in own:
        found = state.get(key)
        if found is None:
            continue
        if not isinstance(found, Tensor):
            wrong.append(f"{key}: expected a tensor, found {type(found).__name__}")
        elif found.shape != own[key].shape:
            wrong.append(f"{key}: expected shape {list(own[key].shape)}, found {list(found.shape)}")
        elif not torch.isfinite(found).all():
            wrong.append(f"{key}: holds values that are not finite")
        elif key in RANGES and found.numel():
            low, high = RANGES[key]
            if not (low <= float(found.min()) and float(found.max()) <= high):
                wrong.append(f"{key}: expected {_range(low, high)}, found {found.tolist()}")
    if wrong:
        raise CheckpointError(f"{name}: does not fit {type(model).__name__}:\n  " + "\n  ".join(wrong))
    model.load_state_dict(dict(state))


def load_pickled(path: str | PathLike[str], *, safe_globals: list[Any] | None = None) -> Any:
    """Reads a file of `torch.save` without executing code, after checking its sums.

    Args:
        path: of the file.
        safe_globals: harmless types to allow besides tensors and plain values.

    Raises:
        CheckpointError: for a file that is missing, damaged, or holds anything but plain values and tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise CheckpointError(f"{path}: damaged, the sum of {broken} is wrong")
        with torch.serialization.safe_globals(safe_globals or []):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: damaged, or not plain values and tensors ({error})") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged or not a file of torch.save ({error})") from error


def _range(low: float, high: float) -> str:
    return f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parse_config(path: Path, text: str) -> ModelConfig:
    try:
        return ModelConfig.from_dict(json.loads(text))
    except (ConfigError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: damaged configuration ({error})") from error


def _compare_config(path: Path, config: ModelConfig) -> None:
    """Refuses a ``config.json`` that says something else: edited, or left by a save that was cut short."""
    if not path.is_file():
        return
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if _parse_config(path, text) != config:
        raise CheckpointError(
            f"{path}: disagrees with the header of {WEIGHTS} beside it (edited, or a save was cut short); "
            "delete it to load with the header's configuration"
        )
