"""`ipvae.checkpoint`: weights come back as they were, or not at all."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IterativeVAE, ModelConfig, build_model
from ipvae.checkpoint import atomic_file, load_pickled
from safetensors.torch import load_file, save_file


def small(**options: Any) -> IterativeVAE:
    return build_model(
        ModelConfig(**{"n_inputs": 6, "n_latents": 5, "t_train": 3, "init_scale": 0.3, **options})
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "options",
    [{"input_shape": (2, 3)}, {"kind": "gaussian", "activation": "relu"}, {"n_arrivals": "released"}],
    ids=["poisson", "relu", "released"],
)
def test_a_model_comes_back_as_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    model = small(**options)
    model.set_annealing(temperature=0.3, eps=0.9)
    model.save_pretrained(tmp_path / "deep" / "model")
    loaded = IterativeVAE.from_pretrained(tmp_path / "deep" / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert (loaded.temperature, loaded.eps) == (model.temperature, model.eps)
    assert model.eps == pytest.approx(0.9)
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert sorted(path.name for path in (tmp_path / "deep" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_files_are_what_their_names_say(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["n_latents"] == 5
    assert load_file(folder / "model.safetensors")["layer.phi.weight"].shape == (6, 5)


def test_a_class_refuses_a_model_of_the_other_kind(folder: Path) -> None:
    assert isinstance(IPVAE.from_pretrained(folder), IPVAE)
    with pytest.raises(CheckpointError, match="expected IGVAE, found a poisson model"):
        IGVAE.from_pretrained(folder)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: expected a folder with model\.safetensors"):
        IPVAE.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 5, 200, -1], ids=["empty", "stub", "half", "last byte"])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        IPVAE.from_pretrained(folder)


def test_one_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match their digest"):
        IPVAE.from_pretrained(folder)


def test_foreign_files_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({"layer.phi.weight": torch.zeros(6, 5)}, path)
    with pytest.raises(CheckpointError, match="not written by ipvae"):
        IPVAE.from_pretrained(folder)
    path.write_bytes(b"#!/bin/sh\nexit 1\n" * 40)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        IPVAE.from_pretrained(folder)


def test_a_later_layout_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, {"package": "ipvae", "layout": "2", "config": "{}", "sha256": ""})
    with pytest.raises(CheckpointError, match="expected layout '1', found '2'"):
        IPVAE.from_pretrained(folder)


def test_a_config_that_disagrees_is_refused_and_may_be_deleted(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"t_train": 3', '"t_train": 4'))
    with pytest.raises(CheckpointError, match="disagrees with the header"):
        IPVAE.from_pretrained(folder)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: damaged configuration"):
        IPVAE.from_pretrained(folder)
    path.unlink()
    assert IPVAE.from_pretrained(folder).config.t_train == 3


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = small()
    model.layer.log_bias.data[0, 2] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layer\.log_bias: holds values that are not finite"):
        IPVAE.from_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new, but")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil"),))


def test_pickles_do_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "zip.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(CheckpointError, match="not plain values"):
            load_pickled(name)
    assert not Path("evil").exists()


def test_damaged_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    assert load_pickled(path)["weight"].sum() == 499_500
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        data = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    flipped = bytearray(whole)
    flipped[data.header_offset + 1000] ^= 4
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"not a pickle", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_pickled(path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_pickled(tmp_path / "nothing.pt")


def test_constants_out_of_range_are_refused(tmp_path: Path) -> None:
    model = small()
    model.layer.temp.fill_(-0.5)
    model.layer.eps.fill_(1.5)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        IPVAE.from_pretrained(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "layer.temp: expected at least 0, found -0.5" in message
    assert "layer.eps: expected 0 to 1, found 1.5" in message
    model.set_annealing(temperature=0.0, eps=0.0)
    model.save_pretrained(tmp_path)
    assert IPVAE.from_pretrained(tmp_path).temperature == 0.0


def test_what_a_killed_save_left_is_removed_when_old(tmp_path: Path) -> None:
    names = [".file.0123456789ab.tmp", ".file.ba9876543210.tmp", ".file.x.tmp", ".file.b.0123456789ab.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / names[1])
    with atomic_file(tmp_path / "file") as file:
        file.write(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", *names[1:]}
