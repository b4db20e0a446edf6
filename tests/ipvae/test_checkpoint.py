"""`ipvae.checkpoint`: weights come back as they were, or not at all."""

import json
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IPVAEConfig, IterativeVAE, load_model
from ipvae.checkpoint import WEIGHTS, _digest, atomic_file, load_pickled, load_state, save_model
from ipvae.models.registry import FAMILIES
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def small(**options: Any) -> IterativeVAE:
    family = FAMILIES[options.pop("cell", "poisson")]
    return family(
        family.config_class(**{"n_inputs": 6, "n_latents": 5, "t_train": 3, "init_scale": 0.3, **options})
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "options",
    [{"input_shape": (2, 3)}, {"cell": "gaussian", "activation": "relu"}, {"n_arrivals": "released"}],
    ids=["poisson", "relu", "released"],
)
def test_a_model_comes_back_as_it_was(options: dict[str, Any], tmp_path: Path) -> None:
    model = small(**options)
    model.set_annealing(temperature=0.3, eps=0.9)
    model.save_pretrained(tmp_path / "deep" / "model")
    loaded = load_model(tmp_path / "deep" / "model")
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


def test_every_flipped_bit_of_the_header_is_found(folder: Path) -> None:
    """One bit of each byte, another from byte to byte, without a config.json to compare with."""
    (folder / "config.json").unlink()
    path = folder / WEIGHTS
    whole = path.read_bytes()
    silent = []
    for byte in range(8 + int.from_bytes(whole[:8], "little")):
        content = bytearray(whole)
        content[byte] ^= 1 << byte % 8
        path.write_bytes(content)
        try:
            load_model(path)
        except CheckpointError:
            continue
        silent.append(byte)
    assert silent == []


def test_files_whose_digest_left_out_the_configuration_still_load(folder: Path) -> None:
    path = folder / WEIGHTS
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del header["digest"]
    save_file(tensors, path, header | {"sha256": _digest(tensors, {})})
    assert torch.equal(IPVAE.from_pretrained(folder).dictionary, tensors["layer.phi.weight"])
    save_file(tensors, path, header | {"sha256": _digest(tensors, header)})
    with pytest.raises(CheckpointError, match="do not match their digest"):
        IPVAE.from_pretrained(folder)


def training_checkpoint(model: IterativeVAE) -> dict[str, Any]:
    """What our training saves, as far as it concerns the model."""
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
        "ipvae": {"model": json.loads(json.dumps(model.config.to_dict())), "train": {}, "data": [9, 6]},
    }


def test_a_model_is_found_by_content_wherever_it_lies(folder: Path) -> None:
    """The folder of a model, that of its run, the file of weights under any name, the last checkpoint."""
    run = folder.parent
    expected = IPVAE.from_pretrained(folder)
    (run / "renamed").write_bytes((folder / WEIGHTS).read_bytes())
    (run / "checkpoints").mkdir()
    last = run / "checkpoints" / "last.ckpt"
    changed = small(n_inner=2, clamp_u=7.0, input_shape=(2, 3))
    torch.save(training_checkpoint(changed), last)
    for path in (folder, run, folder / WEIGHTS, run / "renamed"):
        for load in (load_model, IPVAE.from_pretrained):
            found = load(path)
            assert found.config == expected.config
            assert torch.equal(found.dictionary, expected.dictionary)
    found = load_model(last)
    assert found.config == changed.config
    assert torch.equal(found.dictionary, changed.dictionary)
    (folder / WEIGHTS).unlink()
    assert load_model(run).config == changed.config


def test_what_is_no_model_is_named_without_unsafe_advice(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    path = folder / "file.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    module = path.read_bytes()
    torch.save(
        training_checkpoint(small()) | {"ipvae": {"model": {"cell": "poisson", "n_inputs": 6, "colour": 1}}},
        path,
    )
    unknown = path.read_bytes()
    torch.save({"ipvae": {"model": small().config.to_dict()}}, path)
    bare = path.read_bytes()
    torch.save([1, 2], path)
    for content, message in (
        (module, "it holds a torch.nn.modules.linear.Linear"),
        (unknown, "unknown field.* colour"),
        (bare, "without its model"),
        (path.read_bytes(), "expected a checkpoint, found a list"),
        (pickle.dumps({"state_dict": {}}), "not plain values"),
        (b"{}", "damaged"),
        (b"# a model\n", "damaged"),
        (whole[:400], "damaged or not a safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(path)
        assert "weights_only" not in str(caught.value)
        assert "trust" not in str(caught.value)
    for load in (load_model, IPVAE.from_pretrained):
        with pytest.raises(CheckpointError, match=r"expected .*model\.safetensors"):
            load(folder.parent / "nowhere")
    torch.save({"model": small().state_dict()}, path)
    with pytest.raises(CheckpointError, match="not a model of ipvae; from_released reads"):
        IPVAE.from_pretrained(path)


def peak() -> int:
    """Largest memory of this process so far, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("options", [{"n_latents": 2**26}, {"n_inputs": 2**26}], ids=str)
def test_sizes_are_compared_before_memory_is_taken(tmp_path: Path, options: dict[str, Any]) -> None:
    """A file of a kilobyte whose configuration asks for more than a gigabyte."""
    asked = IPVAEConfig(**{"n_inputs": 6, "n_latents": 5, **options})
    save_model(tmp_path, asked, small().state_dict())
    before = peak()
    with pytest.raises(CheckpointError, match=r"layer\.phi\.weight: expected shape"):
        load_model(tmp_path)
    assert peak() - before < 2**28


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    state = dict(small().state_dict())
    state["layer.phi.weight"] = torch.zeros(1).expand(80_000, 80_000)
    path = tmp_path / "model.pt"
    for content in ({"model": state}, {"optim": [(state["layer.phi.weight"],)]}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"takes 25600000000 bytes, the file holds 4"):
            load_pickled(path)
    torch.save({"weight": torch.zeros(2**20)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "packed.pt", "w", 8) as packed:
        for entry in archive.infolist():
            packed.writestr(entry.filename, archive.read(entry))
    with pytest.raises(CheckpointError, match="its entries claim"):
        load_pickled(tmp_path / "packed.pt")
    torch.save({"weight": torch.zeros(3, 3).to_sparse()}, path)
    with pytest.raises(CheckpointError, match="expected dense tensors"):
        load_pickled(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layer.phi.weight", torch.zeros(6, 5, dtype=torch.int64), "expected floating point"),
        ("layer.phi.weight", torch.zeros(6, 5, dtype=torch.complex64), "expected floating point"),
        ("layer.n_exp", torch.ones(3), "expected integers"),
        ("layer.n_exp", torch.tensor([-1, 1]), "expected 0 to 4194300, found"),
        ("layer.beta_inner", torch.tensor(-1.0), "expected at least 0, found -1"),
    ],
)
def test_tensors_of_another_kind_are_refused(key: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{key}: {message}"):
        load_state(small(), {**small().state_dict(), key: value}, "file")


def test_weights_of_any_precision_become_the_models(tmp_path: Path) -> None:
    model = small().double()
    model.save_pretrained(tmp_path)
    loaded = IPVAE.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.dictionary, model.dictionary.float())
    assert all(p.requires_grad for p in loaded.parameters())


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


def test_a_file_that_cannot_be_made_is_named_as_the_user_named_it(tmp_path: Path) -> None:
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "none" / "x.json", FileNotFoundError)):
        with pytest.raises(kind) as caught, atomic_file(path):
            pass
        assert caught.value.filename == str(path)
