"""`ipvae.cli`: every command on a small model, and that what a user can get wrong ends in one clear line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IPVAE, ModelConfig, cli
from ipvae.recipes import SHORT, paper_recipe, short_recipe
from ipvae.training import Training
from typer.testing import CliRunner

import ipvae_kernels

SMALL = ["--data", "digits", "--latents", "16", "--t-train", "4", "--max-steps", "4", "--batch-size", "8"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refused(result: Any, *words: str) -> None:
    """Exit code 2, one line on stderr with these words, no traceback."""
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert all(word in lines[-1] for word in words), lines[-1]
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    out = tmp_path_factory.mktemp("cli") / "run"
    result = call("train", *SMALL, "--out", out, "--eval-steps", 6)
    assert result.exit_code == 0, result.output
    for words in (
        "digits",
        "16 neurons",
        "4 updates",
        "Validation: R2",
        "step 4: R2",
        "step 6: R2",
        "ipvae eval",
    ):
        assert words in result.output
    return out


def test_help_imports_no_torch() -> None:
    # 0.3 s on one idle core; with PyTorch 1.5 s at least.
    code = "import sys; from ipvae import cli; assert 'torch' not in sys.modules; cli.app(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
    assert all(name in result.stdout for name in ("demo", "train", "eval", "infer", "info"))


@pytest.mark.parametrize("command", ["demo", "train", "eval", "infer", "info"])
def test_every_command_teaches_by_example(command: str) -> None:
    text = call(command, "--help").output
    assert "Example" in text
    assert f"ipvae {command}" in text


def test_train_leaves_a_model_and_needs_resume_to_go_on(run: Path) -> None:
    assert IPVAE.from_pretrained(run / "model").config.n_latents == 16
    refused(call("train", *SMALL, "--out", run), "--resume", str(run))
    refused(call("train", *SMALL, "--lr", "0.1", "--out", run, "--resume"), "of another run", "train.lr")
    assert call("train", *SMALL, "--out", run, "--resume", "--eval-steps", 0).exit_code == 0
    refused(call("train", *SMALL, "--out", run.parent / "none", "--resume"), "--resume")


@pytest.mark.parametrize("motion", ["jitter", "rotation"])
def test_train_on_moving_images(tmp_path: Path, motion: str) -> None:
    result = call("train", *SMALL, "--out", tmp_path / "run", "--motion", motion, "--eval-steps", 4)
    assert result.exit_code == 0, result.output
    assert "still images" in result.output


def test_train_a_gaussian_model_on_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 12)))
    options = ("--kind", "gaussian", "--activation", "relu", "--out", tmp_path / "run", "--eval-steps", 4)
    result = call("train", *SMALL, "--data", tmp_path / "x.npy", *options)
    assert result.exit_code == 0, result.output
    assert "gaussian model" in result.output
    record = ("--record", "log_rate,counts", "--steps", 4, "--out", tmp_path / "y.npz")
    assert call("infer", tmp_path / "run", "--data", tmp_path / "x.npy", *record).exit_code == 0
    with np.load(tmp_path / "y.npz") as found:
        assert found["log_rate"].shape == (4, 2, 6, 16)
        assert found["log_rate_final"].shape == (2, 6, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nothing"], ["nothing", "patches"]),
        (["--data", "no/folder"], ["no such folder"]),
        (["--data", "none.npy"], ["no such file", "none.npy"]),
        (["--data", "fashion-mnist", "--data-dir", "nowhere"], ["Fashion-MNIST", "--data-dir"]),
        (["--data", "digits", "--data-dir", "nowhere"], ["digits", "takes no --data-dir"]),
        (["--data", "idx"], ["idx", "--data-dir"]),
        (["--data", "idx", "--data-dir", "nowhere"], ["--data-dir", "no such folder", "nowhere"]),
        (["--data", "digits", "--recipe", "released"], ["recipe", "digits"]),
        (["--data", "digits", "--estimator", "best"], ["estimator", "sigmoid"]),
        (["--data", "digits", "--latents", "0"], ["n_latents"]),
        (["--data", "digits", "--epochs", "1", "--max-steps", "1"], ["epochs", "max_steps"]),
        (["--data", "digits", "--activation", "relu"], ["activation", "poisson"]),
        (["--data", "digits", "--max-steps", "1", "--backend", "gpu"], ["backend", "native"]),
    ],
)
def test_wrong_options_of_train(tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(call("train", *options, "--out", tmp_path / "run"), *words)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ipvae", "train", *SMALL, "--max-steps", "100000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("logs/*/metrics.csv")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").is_file()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the handlers of signals back that `cli.main` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the ``ipvae`` command, run here."""
    monkeypatch.setattr("sys.argv", ["ipvae", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("handlers")
def test_sigterm_saves_a_run_and_resume_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    anneal = Training._anneal

    def terminated(self: Training, step: int) -> dict[str, float]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return anneal(self, step)

    command = ("train", *SMALL, "--motion", "jitter", "--eval-steps", 0, "--out", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_anneal", terminated)
        assert main(patch, *command) == 143
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == "terminated after step 2; the same command with --resume continues"
    still = call("train", *SMALL, "--eval-steps", 0, "--out", tmp_path, "--resume")
    refused(still, "motion (frames): expected None, found ", "motion=jitter", "another out_dir")
    assert main(monkeypatch, *command, "--resume", "--max-steps", 6) == 0
    assert "Trained 6 steps" in capsys.readouterr().out


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["eval", "infer"])
def test_eval_and_infer_end_on_a_signal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: int, code: int
) -> None:
    """While results are computed and, for infer, while they are written: no half file stays."""
    infer, write = IPVAE.infer, np.savez

    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return infer(*args, **kwargs)

    def written(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        os.kill(os.getpid(), number)

    options = [command, run, "--data", "digits", "--steps", 2, "--limit", 8]
    options += ["--out", tmp_path / "spikes.npz"] if command == "infer" else []
    if command == "infer" and number == signal.SIGTERM:
        monkeypatch.setattr(np, "savez", written)
    else:
        monkeypatch.setattr(IPVAE, "infer", signalled)
    assert main(monkeypatch, *options) == code
    assert list(tmp_path.iterdir()) == []


def test_eval_prints_the_table_and_writes_all_curves(run: Path, tmp_path: Path) -> None:
    options = ("--data", "digits", "--steps", 20, "--readout", "--readout-limit", 200)
    result = call("eval", run, *options, "--json", tmp_path / "eval.json")
    assert result.exit_code == 0, result.output
    for words in ("squared error", "accuracy", "296 test samples", "sample-steps per second"):
        assert words in result.output
    rows = re.findall(r"│\s+([\d,]+) │", result.output)
    assert rows == ["1", "16", "20"]
    values = json.loads((tmp_path / "eval.json").read_text())
    assert len(values["r2"]) == 20
    assert values["n_samples"] == 296
    assert set(values["readout"]) == {"1", "16", "20"}


def test_eval_refuses_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 9)))
    refused(call("eval", run, "--data", tmp_path / "x.npy"), "64 numbers (1x8x8)", "9 (1x3x3)")
    np.save(tmp_path / "x.npy", np.zeros((20, 64)))
    refused(call("eval", run, "--data", tmp_path / "x.npy", "--readout"), "no labels")
    refused(call("eval", tmp_path / "none", "--data", "digits"), "model.safetensors")
    folder = tmp_path / "model"
    IPVAE(ModelConfig(n_inputs=64, n_latents=4)).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(call("eval", folder, "--data", "digits"), "damaged")


def test_eval_reads_the_authors_checkpoints(tmp_path: Path) -> None:
    net = IPVAE(ModelConfig(n_inputs=64, n_latents=4, kl="released"))
    torch.save({"model": net.state_dict()}, tmp_path / "theirs.pt")
    result = call("eval", tmp_path / "theirs.pt", "--data", "digits", "--steps", 2, "--limit", 3)
    assert result.exit_code == 0, result.output


def test_infer_writes_what_the_model_does(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "spikes.npz"
    options = (
        "--data",
        "digits",
        "--steps",
        6,
        "--record",
        "counts, spikes",
        "--record-every",
        2,
        "--limit",
        5,
    )
    for batch in (5, 2):
        result = call("infer", run, "--out", out, *options, "--batch-size", batch, "--seed", 3)
        assert result.exit_code == 0, result.output
        with np.load(out) as found:
            assert found["counts"].shape == (3, 5, 16)
            assert found["steps"].tolist() == [2, 4, 6]
            assert found["labels"].shape == (5,)
            expected: Any = IPVAE.from_pretrained(run / "model").infer(
                torch.from_numpy(found["x"]), 6, record=("counts",), record_every=2, seed=3
            )
            np.testing.assert_array_equal(found["counts"], expected.records["counts"].numpy())
            np.testing.assert_allclose(found["log_rate_final"], expected.state.log_rate.numpy(), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["spikes.npz"]


def test_infer_refuses_unknown_and_endless_records(run: Path, tmp_path: Path) -> None:
    out = ("--data", "digits", "--out", tmp_path / "x.npz")
    refused(call("infer", run, *out, "--record", "volts"), "volts", "counts")
    refused(call("infer", run, *out, "--steps", 10**7), "GiB", "--record-every")
    refused(call("infer", run, "--data", "digits", "--out", tmp_path / "no" / "x.npz"), "--out")
    assert list(tmp_path.iterdir()) == []


def test_info_names_versions_and_backends() -> None:
    output = call("info").output
    for words in ("torch", "lightning", *(f"backend {name}" for name in ipvae_kernels.backends())):
        assert words in output


def test_bugs_are_not_dressed_up() -> None:
    @cli.clear_errors
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        broken()


def test_recipes_fit_every_shape_and_kind() -> None:
    for data, shape in (("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("x.npy", (1, 1, 10))):
        for kind, activation in (("poisson", "identity"), ("gaussian", "relu")):
            model, _ = short_recipe(data, shape, kind, activation)  # type: ignore[arg-type]
            assert (model.shape, model.kind) == (shape, kind)
    assert short_recipe("patches", (1, 16, 16)) == SHORT["patches"]
    assert paper_recipe("patches", (1, 16, 16))[1].beta_outer == 24.0
    assert paper_recipe("a/folder", (1, 28, 28))[0].t_train == 128
