"""Damaged files: every loader gives what was saved or its documented error, and no command a traceback."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import CheckpointError, IPVAEConfig, build_model, load_model
from ipvae.cli import app
from ipvae.data import load_dataset
from typer.testing import CliRunner

SETTINGS = {"t_train": 3, "n_iters_inner": 1, "clamp_u": 10.0, "clamp_du": 10.0, "fit_prior": True}
IDX = "t10k-images-idx3-ubyte"


def model_folder(folder: Path) -> Path:
    build_model(IPVAEConfig(n_inputs=6, n_latents=4, t_train=3)).save_pretrained(folder)
    return folder / "model.safetensors"


def config(folder: Path) -> Path:
    return model_folder(folder).with_name("config.json")


def training_checkpoint(folder: Path) -> Path:
    model = build_model(IPVAEConfig(n_inputs=6, n_latents=4, t_train=3))
    content = {
        "ipvae": {"model": model.config.to_dict()},
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
    }
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder / "checkpoints" / "last.ckpt"


def weights(folder: Path) -> Path:
    model = build_model(IPVAEConfig(n_inputs=6, n_latents=4, t_train=3))
    (folder / "ConfigPoisVAE.json").write_text(json.dumps(SETTINGS))
    torch.save({"model": model.state_dict(), "metadata": {"n": np.float64(1.0)}}, folder / "weights.pt")
    return folder / "weights.pt"


def settings(folder: Path) -> Path:
    return weights(folder).with_name("ConfigPoisVAE.json")


def idx(folder: Path) -> Path:
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (5, 2, 3))
    (folder / IDX).write_bytes(header + bytes(range(30)))
    return folder / IDX


def packed_idx(folder: Path) -> Path:
    path = folder / f"{IDX}.gz"
    path.write_bytes(gzip.compress(idx(folder).read_bytes(), mtime=0))
    (folder / IDX).unlink()
    return path


MODELS = (model_folder, config, training_checkpoint, weights, settings)
DATA = (idx, packed_idx)
# Long enough to overflow a recursion, an integer and a float.
DEEP = (b"[" * 10_000, b'{"a":' * 10_000, b"9" * 5_000, b"1" + b"0" * 400, b"\xff\xfe", b"1e999", b"")


def damaged(whole: bytes, rng: random.Random, n: int) -> Iterator[bytes]:
    """Flipped bits, cuts, blocks of zeros, bytes put in, and contents of another kind."""
    for _ in range(n):
        content = bytearray(whole)
        at = rng.randrange(len(whole))
        for _ in range(rng.choice((1, 1, 4))):
            content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        yield bytes(content)
        yield whole[:at]
        yield whole[:at] + bytes(len(whole[at : at + 16])) + whole[at + 16 :]
        yield whole[:at] + rng.randbytes(5) + whole[at:]
        yield whole[:at] + rng.choice(DEEP) + whole[at:]
    yield from DEEP


def survivors(
    path: Path, load: Callable[[], Any], error: type[Exception], n: int
) -> Iterator[tuple[bytes, Any]]:
    """What loads all the same, with its content; anything but the documented error comes out."""
    whole = path.read_bytes()
    for content in damaged(whole, random.Random(path.name), n):
        path.write_bytes(content)
        with suppress(error):
            yield content, load()
    path.write_bytes(whole)


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_damaged_model_is_refused_or_whole(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    expected = load_model(tmp_path)
    for content, found in survivors(path, lambda: load_model(tmp_path), CheckpointError, 25):
        same = {name: torch.equal(t, expected.state_dict()[name]) for name, t in found.state_dict().items()}
        assert all(same.values()), (content, same)
        if make is not settings:  # the one file without a sum; what it may say is checked by its reader
            assert found.config == expected.config, content


@pytest.mark.parametrize("make", DATA, ids=lambda make: make.__name__)
def test_damaged_data_are_refused_or_of_the_announced_shape(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    expected = load_dataset(str(tmp_path))
    for content, found in survivors(path, lambda: load_dataset(str(tmp_path)), ValueError, 25):
        assert found.test.shape == (len(found.test), *expected.test.shape[1:]) or make is idx, content


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_command_line_ends_in_one_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    for content in (path.read_bytes()[:-7], *DEEP):
        path.write_bytes(content)
        result = CliRunner().invoke(app, ["eval", str(tmp_path), "--data", "digits"])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        assert path.name in result.output.replace("\n", ""), result.output
