"""Models on the Hugging Face Hub, which a folder stands for here: no test touches a network."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IGVAEConfig, IPVAEConfig, cli, evaluate, load_model
from ipvae.extras import MissingExtra
from ipvae.interop.card import model_card
from ipvae.interop.hub import HubError
from ipvae.models.registry import FAMILIES
from typer.testing import CliRunner

ADDRESS = "https://huggingface.co/me/digits/commit/1"


@pytest.fixture
def model() -> IPVAE:
    return IPVAE(IPVAEConfig(n_inputs=64, n_latents=8, input_shape=(1, 8, 8), init_scale=0.1))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a test asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for the library's HfApi: repositories are folders, calls are listed."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    place, calls = tmp_path / "hub", []

    class Api:
        def __init__(self, token: Any = None) -> None:
            self.token = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", self.token, options))
            (place / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: Any) -> Any:
            calls.append(("upload", self.token, options))
            shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=ADDRESS)

        def snapshot_download(self, repo_id: str, **options: Any) -> str:
            calls.append(("download", self.token, options))
            if not (place / repo_id).is_dir():
                raise hub.errors.LocalEntryNotFoundError("Got: ConnectError: no route\nPlease check your")
            return str(place / repo_id)

    monkeypatch.setattr(hub, "HfApi", Api)
    return SimpleNamespace(place=place, calls=calls)


def test_what_is_pushed_is_fetched_bit_for_bit(api: Any, model: IPVAE) -> None:
    assert model.push_to_hub("me/digits", private=True, token="t") == ADDRESS
    files = {path.name for path in (api.place / "me/digits").iterdir()}
    assert files == {"model.safetensors", "config.json", "README.md"}
    for found in (
        IPVAE.from_pretrained("me/digits", revision="v1", token="t"),
        load_model("me/digits"),
        load_model(Path("me/digits")),
    ):
        assert found.config == model.config
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    create, upload, first, second, _ = api.calls
    assert create == ("create", "t", {"private": True, "exist_ok": True})
    assert upload == ("upload", "t", {"commit_message": "Add model", "create_pr": False})
    wanted = ["model.safetensors", "config.json"]
    assert first == ("download", "t", {"revision": "v1", "allow_patterns": wanted})
    assert second == ("download", None, {"revision": None, "allow_patterns": wanted})
    with pytest.raises(CheckpointError, match="expected IGVAE, found a poisson model"):
        IGVAE.from_pretrained("me/digits")


def test_the_command_line_takes_names_of_the_hub(api: Any, model: IPVAE) -> None:
    model.push_to_hub("me/digits")
    arguments = ["eval", "me/digits", "--data", "digits", "--steps", "2", "--limit", "3"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    missing = CliRunner().invoke(cli.app, ["eval", "me/none", *arguments[2:]])
    assert missing.exit_code == 2
    assert "me/none: no such folder here" in missing.stderr


def test_a_folder_is_never_looked_up(model: IPVAE, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model.save_pretrained("me/digits")
    for name in ("me/digits", Path("me/digits"), tmp_path / "me" / "digits", "me/digits/model.safetensors"):
        assert isinstance(load_model(name), IPVAE)
        assert isinstance(IPVAE.from_pretrained(name), IPVAE)
    with pytest.raises(ValueError, match="revision: expected None for a path, found 'v1' for me/digits"):
        IPVAE.from_pretrained("me/digits", revision="v1")
    Path("me/empty").mkdir()
    with pytest.raises(CheckpointError, match=r"me/empty: expected a folder with model\.safetensors"):
        IPVAE.from_pretrained("me/empty")
    for path in ("nowhere", "./me/none", "/me/none", "a/b/c", "me/", str(tmp_path / "none")):
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert not isinstance(caught.value, HubError)


def test_without_the_library_a_name_is_explained(model: IPVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    advice = r"huggingface_hub is not installed: pip install 'ipvae-kernels\[hub\]'"
    with pytest.raises(HubError, match=f"^me/digits: no such folder here, .* {advice}"):
        load_model("me/digits")
    with pytest.raises(MissingExtra, match=advice):
        model.push_to_hub("me/digits")


def test_without_a_network_a_name_is_explained(
    model: IPVAE, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library itself, with an address where nothing listens."""
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    def down(*_: Any, **__: Any) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(socket, "getaddrinfo", down)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(HubError, match=r"^me/digits: no such folder here, and not fetched .* \(Local"):
        load_model("me/digits")
    with pytest.raises(HubError, match=r"^me/digits: not pushed to the Hugging Face Hub \(.*down"):
        model.push_to_hub("me/digits", token="t")


def test_a_card_says_what_was_measured(api: Any, model: IPVAE, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    x = torch.rand(6, 64)
    labels = torch.arange(6) % 2
    found = evaluate(model, x, 4, labels=labels, train=(x, labels))
    model.push_to_hub("me/digits", metrics=found, dataset="Digits, 8x8", license="bsd-3-clause")
    card = ModelCard.load(api.place / "me/digits" / "README.md")
    assert card.data.library_name == "ipvae"
    assert card.data.license == "bsd-3-clause"
    assert {"poisson", "spiking-neural-network"} <= set(card.data.tags)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = found.summary()
    assert set(values) == {"r2", "squared_error", "zeros", "spikes", "recon", "kl", "nelbo", "accuracy"}
    assert all(values[name] == pytest.approx(expected[name]) for name in values)
    assert {result.dataset_type for result in card.data.eval_results} == {"digits-8x8"}
    assert 'ipvae.load_model("me/digits")' in card.text
    assert "after 4 steps of Digits, 8x8, 6 samples" in card.text
    assert f"| R2 of the reconstruction | {expected['r2']:.4g} |" in card.text
    assert "| n_latents | 8 |" in card.text
    curves = json.loads((api.place / "me/digits" / "evaluation.json").read_text())
    assert curves["r2"] == pytest.approx(found.r2.tolist())


def test_a_card_of_a_metrics_file_names_no_path(api: Any, model: IPVAE, tmp_path: Path) -> None:
    model.save_pretrained("mine")
    arguments = ["eval", "mine", "--data", "digits", "--steps", "2", "--limit", "3", "--json", "found.json"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    model.push_to_hub("me/digits", metrics="found.json")
    card = (api.place / "me/digits" / "README.md").read_text()
    assert "split: test" in card
    assert "scikit-learn's digits" in card
    assert "model" not in json.loads((api.place / "me/digits" / "evaluation.json").read_text())


def test_measures_of_no_named_data_stay_out_of_the_header(model: IPVAE) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    bare = model_card(model)
    assert "Measured" not in str(bare)
    assert 'load_model("folder")' in str(bare)
    card = model_card(model, metrics={"r2": [0.1, 0.5], "kl": [2.0, float("nan")]})
    assert card.data.eval_results is None
    assert "| R2 of the reconstruction | 0.5 |" in card.text
    assert "KL, nats" not in card.text
    assert "iterative-vae" in model_card(IGVAE(IGVAEConfig(n_inputs=4, n_latents=2))).data.tags


def test_bad_requests_are_named(api: Any, model: IPVAE, tmp_path: Path) -> None:
    for name in ("digits", "me/digits/v2", "/digits", "me digits", ""):
        with pytest.raises(ValueError, match=r"^repo_id: expected 'user/name', found"):
            model.push_to_hub(name)
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    for metrics, message in (
        ("other.json", "metrics: expected an evaluation with a curve r2"),
        ("broken.json", "metrics: expected a file of `ipvae eval --json`, broken.json"),
        ({"accuracy": 1.0}, "metrics: expected an evaluation"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            model.push_to_hub("me/digits", metrics=metrics)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        model.push_to_hub("me/digits", metrics="none.json")
    assert api.calls == []


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_card_says_what_each_family_is(name: str) -> None:
    """Its own kind and way of inference; nothing of another's."""
    config = FAMILIES[name].config_class(n_inputs=4, n_latents=3)
    text = model_card(FAMILIES[name](config)).text
    assert config.described.kind in text
    assert config.described.how in text
    assert ("without an encoder" in text) == (name in ("poisson", "gaussian", "hip-vae"))
    assert ("An encoder infers codes in one step" in text) == (name in ("p-vae", "g-vae"))
    assert ("steps=128" in text) == (name not in ("p-vae", "g-vae"))
