"""Files of weights: written whole or not at all, read without executing code, refused when damaged.

A model is a folder of two files. ``model.safetensors`` holds the tensors and, in its header, the
configuration and a digest of both, so that one rename replaces a model at once; ``config.json`` is the same
configuration for people and other tools. What a file is, its content says, not its name.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from .extras import explained
from .fields import ConfigError

with explained():
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save as safetensors_bytes


WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LAYOUT = "1"
# Where a folder keeps a model: itself, or the folder of a run, whose training may not be finished.
LAST = "checkpoints/last.ckpt"
PLACES = (WEIGHTS, f"model/{WEIGHTS}", LAST)
# The age from which a temporary file belongs to no save that still runs.
LEFTOVER_SECONDS = 3600.0
# As many arrivals as the words of one draw allow (docs/design/randomness.md).
ARRIVALS_MAX = 2**22 - 4
# What the constants of a training run may be; the clamps interpolate by eps.
RANGES = {
    "layer.temp": (0.0, math.inf),
    "layer.eps": (0.0, 1.0),
    "layer.beta_inner": (0.0, math.inf),
    "layer.n_exp": (0.0, float(ARRIVALS_MAX)),
}
# The one entry that may have another length than the configuration says: its largest number counts.
ANY_LENGTH = "layer.n_exp"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

# What rebuilds a numpy scalar, under whichever name numpy keeps it.
_SCALAR = np.float64(0.0).__reduce__()[0]
# The authors' files carry training statistics as numpy scalars; these build nothing but numbers.
_SCALARS: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


class CheckpointError(RuntimeError):
    """A file of weights is missing, damaged or of another origin; the message says which and what."""


class Config(Protocol):
    """What a file keeps of a configuration: its plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse; raises `ConfigError` for values that cannot work."""


C = TypeVar("C", bound=Config)


@contextmanager
def atomic_file(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes the name `path` at its end, flushed to disk; on an error, no trace.

    What saves of the same name left that were killed more than an hour ago is removed.

    Raises:
        OSError: it cannot be written, for instance on a full disk; the message names `path`.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if (cause := _disk_error(error, temporary)) is None:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _disk_error(error: BaseException, temporary: Path) -> OSError | None:
    """The error of a write that names no file of the user's, also where `torch.save` made another of it."""
    found = error if isinstance(error, OSError) else error.__context__
    if not isinstance(found, OSError) or found.errno is None:
        return None
    if found.filename is None or Path(found.filename) == temporary:
        return found
    return None


def _remove_leftovers(path: Path) -> None:
    """Removes the old temporary files of `atomic_file`; one that cannot be removed stays."""
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.tmp"
    for leftover in path.parent.glob(pattern):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()


def save_model(folder: str | PathLike[str], config: Config, state: Mapping[str, Tensor]) -> None:
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
    }
    header["digest"] = _digest(tensors, header)
    with atomic_file(folder / WEIGHTS) as file:
        file.write(safetensors_bytes(tensors, metadata=header))
    with atomic_file(folder / CONFIG) as file:
        file.write(json.dumps(config.to_dict(), indent=2).encode() + b"\n")


def locate(path: str | PathLike[str]) -> Path | None:
    """The file of ours in a folder, of a model or of a run; a file is taken as it is; None: neither."""
    path = Path(path)
    if path.is_file():
        return path
    return next((path / place for place in PLACES if (path / place).is_file()), None)


def read_model(file: str | PathLike[str]) -> tuple[dict[str, Any] | None, Mapping[str, Any]]:
    """Reads a file of weights by its content.

    Args:
        file: what `save_model` wrote, a checkpoint of our training, or any other file of `torch.save`.

    Returns:
        The configuration as plain values, see `config_of`, and the state dict; for another file of
        `torch.save`, None and what it holds.

    Raises:
        CheckpointError: for a file that is missing, damaged, contradictory or of another origin.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if _is_safetensors(file):
        return _read_safetensors(file)
    content = load_pickled(file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file}: expected a checkpoint, found a {type(content).__name__}")
    run = content.get("ipvae")
    if not isinstance(run, Mapping):
        return None, content
    weights = content.get("state_dict")
    if not isinstance(weights, Mapping) or not isinstance(run.get("model"), Mapping):
        raise CheckpointError(f"{file}: damaged, a checkpoint of ipvae training without its model")
    state = {str(name): tensor for name, tensor in weights.items() if str(name).startswith("model.")}
    return dict(run["model"]), {name[len("model.") :]: v for name, v in state.items()}


def _is_safetensors(file: Path) -> bool:
    """Whether a file is named like one or begins like one: eight bytes of a length, then JSON."""
    with open(file, "rb") as stream:
        return file.suffix == ".safetensors" or stream.read(9)[8:] == b"{"


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error})") from error
    if header.get("package") != "ipvae" or "config" not in header or not {"digest", "sha256"} & set(header):
        raise CheckpointError(f"{file}: a safetensors file, but not written by ipvae, or damaged")
    if header.get("layout") != LAYOUT:
        raise CheckpointError(f"{file}: expected layout {LAYOUT!r}, found {header.get('layout')!r}")
    # The first files had a sha256 of the tensors alone; no flipped bit turns one name into the other.
    expected = _digest(tensors, header) if "digest" in header else _digest(tensors, {})
    if expected != header.get("digest", header.get("sha256")):
        raise CheckpointError(f"{file}: damaged, tensors or configuration do not match their digest")
    config = _parse_config(file, header["config"])
    _compare_config(file.with_name(CONFIG), config)
    return config, tensors


def load_state(model: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Loads a state dict key for key, whatever its precision.

    Args:
        model: receives copies of the tensors; on the meta device, so that nothing large is made before the
            sizes are known to agree.
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
        if key in state and (problem := _misfit(key, state[key], own[key])):
            wrong.append(f"{key}: {problem}")
    if wrong:
        raise CheckpointError(f"{name}: does not fit {type(model).__name__}:\n  " + "\n  ".join(wrong))
    copies = {
        key: state[key].to(own[key].dtype, copy=True, memory_format=torch.contiguous_format) for key in own
    }
    model.load_state_dict(copies, assign=True)


def _misfit(key: str, found: object, own: Tensor) -> str | None:
    """What is wrong with an entry of a state dict for its place in a model, which may be on meta."""
    if not isinstance(found, Tensor):
        return f"expected a tensor, found {type(found).__name__}"
    if key == ANY_LENGTH:
        if found.ndim != 1 or len(found) == 0:
            return f"expected one entry per training step, found shape {list(found.shape)}"
    elif found.shape != own.shape:
        return f"expected shape {list(own.shape)}, found {list(found.shape)}"
    dtypes = FLOATS if own.is_floating_point() else INTEGERS
    if found.layout != torch.strided or found.dtype not in dtypes:
        kind = "floating point" if own.is_floating_point() else "integers"
        return f"expected {kind}, found {found.dtype}, {found.layout}"
    if not torch.isfinite(found).all():
        return "holds values that are not finite"
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if not (low <= float(found.min()) and float(found.max()) <= high):
        return f"expected {_range(low, high)}, found {found.tolist()}"
    return None


def load_pickled(path: str | PathLike[str]) -> Any:
    """Reads a file of `torch.save` without executing code, after checking its sums and sizes.

    Args:
        path: of the file.

    Raises:
        CheckpointError: for a file that is missing, damaged, claims more than it holds, or holds anything but
            plain values, numpy scalars and dense tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_storages(content)
    except _Refused as error:
        raise CheckpointError(f"{path}: damaged, or not plain values and tensors: {error}") from error
    except Exception as error:  # the readers of zip, pickle and torch raise nearly anything on damage
        raise CheckpointError(
            f"{path}: damaged, or not plain values and tensors of torch.save ({_reason(error)})"
        ) from error
    return content


class _Refused(Exception):
    """Says what is wrong with a file."""


def _check_archive(path: Path) -> None:
    """Refuses what is no archive of torch.save, or unpacks to more than it is, before anything is read."""
    if not zipfile.is_zipfile(path):
        raise _Refused("no archive of torch.save")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        if claimed > path.stat().st_size or any(entry.compress_type for entry in entries):
            raise _Refused(f"its entries claim {claimed} bytes, packed into {path.stat().st_size}")
        if (broken := archive.testzip()) is not None:
            raise _Refused(f"the sum of {broken} is wrong")


def _check_storages(content: object) -> None:
    """Refuses tensors of more elements than the file holds, which a few bytes can claim through strides."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout != torch.strided:
                raise _Refused(f"expected dense tensors, found {value.layout}")
            needed, held = value.numel() * value.itemsize, value.untyped_storage().nbytes()
            if needed > held:
                raise _Refused(f"a tensor {list(value.shape)} takes {needed} bytes, the file holds {held}")
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value


def _reason(error: Exception) -> str:
    """What an error says, without torch's advice to load the file unsafely."""
    text = str(error)
    if (found := re.search(r"GLOBAL (\S+)", text)) is not None:
        return f"it holds a {found[1]}"
    if not text or "weights_only" in text or "unsafe" in text:
        return type(error).__name__
    return text.strip().splitlines()[0]


def _range(low: float, high: float) -> str:
    return f"at least {low:g}" if high == math.inf else f"{low:g} to {high:.8g}"


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and bytes in the order of the names, and over the header."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    for name in sorted(set(header) - {"digest"}):
        digest.update(f"{name} {header[name]}\n".encode())
    return digest.hexdigest()


def _parse_config(path: Path, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged configuration ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: damaged configuration (expected an object, found {values!r})")
    return values


def config_of(kind: type[C], values: Mapping[str, Any], path: str | PathLike[str]) -> C:
    """The configuration of a family from what a file holds.

    Raises:
        CheckpointError: it is that of another family, or damaged; `path` is where it comes from.
    """
    try:
        return kind.from_dict(dict(values))
    except ConfigError as error:
        raise CheckpointError(f"{path}: no model fits it ({error})") from error


def _compare_config(path: Path, config: dict[str, Any]) -> None:
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
