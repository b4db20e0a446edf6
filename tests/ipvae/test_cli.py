"""`ipvae.cli`: every command on a small model, and that what a user can get wrong ends in one clear line."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig, cli
from ipvae.data import DataSplits, load_whole
from ipvae.figures import FIGURES
from ipvae.training.module import Training
from ipvae.training.outcome import CollapseWarning
from ipvae.training.recipes import SHORT, paper_recipe, short_recipe
from typer.testing import CliRunner

import ipvae_kernels
from ipvae_kernels.backend.choice import NAMES
from ipvae_kernels.rollout.config import MATMUL_PRECISIONS

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
    assert all(name in result.stdout for name in ("demo", "train", "eval", "infer", "stream", "plot", "info"))


@pytest.mark.parametrize("command", ["demo", "train", "eval", "infer", "stream", "convert", "plot", "info"])
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
    options = ("--cell", "gaussian", "--activation", "relu", "--out", tmp_path / "run", "--eval-steps", 4)
    result = call("train", *SMALL, "--data", tmp_path / "x.npy", *options)
    assert result.exit_code == 0, result.output
    assert "gaussian model" in result.output
    record = ("--record", "log_rate,counts", "--split", "test", "--steps", 4, "--out", tmp_path / "y.npz")
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
        (["--data", "digits", "--max-steps", "1", "--backend", "gpu"], ["backend", "cpu"]),
    ],
)
def test_wrong_options_of_train(tmp_path: Path, options: list[str], words: list[str]) -> None:
    refused(call("train", *options, "--out", tmp_path / "run"), *words)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Python's own handlers, which a shell's background jobs lack; puts those back that were there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the ``ipvae`` command, run here."""
    monkeypatch.setattr("sys.argv", ["ipvae", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.usefixtures("handlers")
def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes at any moment after the first row of the log."""
    out, ended = tmp_path / "run", threading.Event()

    def interrupt() -> None:
        while not list(out.glob("logs/*/metrics.csv")):
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert main(monkeypatch, "train", *SMALL, "--max-steps", 100_000, "--out", out) == 130
    finally:
        ended.set()
        thread.join()
    errors = capsys.readouterr().err
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").is_file()


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
    refused(still, "motion (frames): expected None, found ", "motion='jitter'", "another out_dir")
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
    IPVAE(IPVAEConfig(n_inputs=64, n_latents=4)).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(call("eval", folder, "--data", "digits"), "damaged")


def test_eval_reads_a_model_from_any_of_its_files(run: Path, tmp_path: Path) -> None:
    """Folders and files of one run hold the same model, and the numbers are the same."""
    found = []
    for i, path in enumerate(
        (run, run / "model", run / "model" / "model.safetensors", run / "checkpoints" / "last.ckpt")
    ):
        out = tmp_path / f"{i}.json"
        result = call("eval", path, "--data", "digits", "--steps", 2, "--limit", 3, "--json", out)
        assert result.exit_code == 0, result.output
        found.append(json.loads(out.read_text())["kl"])
    assert found == [found[0]] * 4
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    result = call("eval", tmp_path / "linear.pt", "--data", "digits")
    refused(result, "linear.pt", "torch.nn.modules.linear.Linear")
    assert "weights_only" not in result.output


def test_eval_reads_the_authors_checkpoints(tmp_path: Path) -> None:
    net = IPVAE(IPVAEConfig(n_inputs=64, n_latents=4, kl="released"))
    torch.save({"model": net.state_dict()}, tmp_path / "theirs.pt")
    refused(call("eval", tmp_path / "theirs.pt", "--data", "digits"), "no settings (ConfigPoisVAE.json)")
    settings = {"t_train": 16, "n_iters_inner": 1, "clamp_u": 10.0, "clamp_du": 10.0}
    (tmp_path / "ConfigPoisVAE.json").write_text(json.dumps(settings))
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


@pytest.mark.parametrize("command", ["train", "eval", "infer", "plot"])
def test_help_lists_every_backend_and_precision(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipvae_kernels.backend.choice.NAMES", (*NAMES, "abacus"))
    text = re.sub(r"\W+", " ", call(command, "--help").output)
    assert " ".join((*NAMES, "abacus")) in text
    assert " ".join(MATMUL_PRECISIONS) in text
    assert "cuda N" in text


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--device", "gpu", ["--device", "auto, cpu, cuda or cuda:N", "'gpu'"]),
        ("--device", "cuda:99", ["--device", "'cuda:99'", "PyTorch finds"]),
        ("--device", "cuda:-1", ["--device", "'cuda:-1'"]),
        ("--backend", "abacus", ["backend", "triton", "'abacus'"]),
        ("--matmul-precision", "half", ["--matmul-precision", "bf16", "'half'"]),
    ],
)
def test_wrong_machines_are_refused_before_any_work(
    option: str, value: str, words: list[str], tmp_path: Path
) -> None:
    for command in (["train"], ["eval", "none"], ["infer", "none", "--out", "x.npz"], ["plot", "none"]):
        out = ["--out", str(tmp_path / "new")] if command[0] in ("train", "plot") else []
        refused(call(*command, *out, "--data", "digits", option, value), *words)


def test_device_and_precision_reach_the_kernels(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    infer, elbo = ipvae_kernels.infer, ipvae_kernels.elbo

    def spy(op: Any) -> Any:
        def call(x: torch.Tensor, *rest: Any, **options: Any) -> Any:
            seen.append((x.device.type, options["matmul_precision"], options["backend"]))
            return op(x, *rest, **options)

        return call

    monkeypatch.setattr(ipvae_kernels, "infer", spy(infer))
    monkeypatch.setattr(ipvae_kernels, "elbo", spy(elbo))
    options = ("--data", "digits", "--device", "cpu", "--matmul-precision", "bf16", "--backend", "eager")
    where = ("--out", tmp_path / "run", "--eval-steps", 2)
    trained = call("train", *SMALL, *where, *options[2:], "--max-steps", 1)
    assert trained.exit_code == 0, trained.output
    shared = (*options, "--steps", 2, "--limit", 2)
    for command in (("eval", run), ("infer", run, "--out", tmp_path / "x.npz")):
        result = call(*command, *shared)
        assert result.exit_code == 0, result.output
    assert set(seen) == {("cpu", "bf16", "eager")}


def test_infer_takes_all_of_ones_own_file_in_its_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((30, 64), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    IPVAE(IPVAEConfig(n_inputs=64, n_latents=4)).save_pretrained(tmp_path / "model")

    def inferred(*options: object) -> tuple[Any, str]:
        out = tmp_path / "y.npz"
        shared = ("--data", tmp_path / "x.npy", "--steps", 2, "--out", out)
        result = call("infer", tmp_path / "model", *shared, *options)
        assert result.exit_code == 0, result.output
        with np.load(out) as found:
            return found["x"], re.sub(r"\s+", " ", result.output)

    for options in ((), ("--split", "all")):
        found, said = inferred(*options)
        np.testing.assert_array_equal(found, x)
        assert "30 samples of" in said
    found, said = inferred("--split", "test")
    assert len(found) == 3
    assert "3 of its 30; --split all" in said
    found, said = inferred("--limit", 5)
    np.testing.assert_array_equal(found, x[:5])
    assert "the first 5 of 30 samples" in said
    evaluated = call("eval", tmp_path / "model", "--data", tmp_path / "x.npy", "--steps", 2, "--split", "all")
    assert "30 samples of" in evaluated.output


def test_all_of_a_named_set_has_every_sample_and_label() -> None:
    whole = load_whole("digits")
    assert len(whole.train) == len(whole.labels["train"]) == 1797
    assert len(whole.test) == 0


@pytest.mark.usefixtures("coarse_figures")
def test_plot_draws_what_the_demo_draws(run: Path, tmp_path: Path) -> None:
    options = ("--data", "digits", "--steps", 20, "--limit", 30)
    for model in (run, run / "model"):
        result = call("plot", model, *options, "--out", tmp_path / "figures")
        assert result.exit_code == 0, result.output
        files = {path.name: path for path in (tmp_path / "figures").iterdir()}
        assert set(files) == set(FIGURES)
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.values())


def test_plot_leaves_out_what_a_model_does_not_have(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 3, 5), dtype=np.float32))
    model = IGVAE(IGVAEConfig(n_inputs=15, n_latents=4, input_shape=(15,)))
    model.save_pretrained(tmp_path / "model")
    options = ("--data", tmp_path / "x.npy", "--steps", 3, "--out", tmp_path / "figures")
    result = call("plot", tmp_path / "model", *options)
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["convergence.png"]


def test_version() -> None:
    assert call("--version").output == f"ipvae-kernels {metadata.version('ipvae-kernels')}\n"
    assert ipvae_kernels.__version__ == metadata.version("ipvae-kernels")
    code = "import sys; from ipvae.__main__ import main; sys.argv[1:] = ['--version']; main()"
    code = f"import atexit; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["ipvae-kernels", ipvae_kernels.__version__, "False"]


def test_shells_complete_commands_and_names() -> None:
    def completing(line: str) -> dict[str, str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return {"_IPVAE_COMPLETE": "complete_bash", **words}

    code = "import sys; sys.argv[0] = 'ipvae'; from ipvae.__main__ import main; main()"
    environment = {**os.environ, **completing("ipvae ")}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
    assert {"demo", "plot", "bench"} <= set(told.split())
    # Here, since it takes PyTorch to know the backends.
    result = CliRunner().invoke(cli.app, env=completing("ipvae infer --backend t"), prog_name="ipvae")
    assert "triton" in result.stdout


def test_a_collapsed_run_says_what_to_change(tmp_path: Path) -> None:
    with pytest.warns(CollapseWarning, match=r"R2 .*silent.*beta_outer 1000; default 2"):
        result = call("train", *SMALL, "--beta", 1000, "--out", tmp_path / "run", "--eval-steps", 0)
    assert result.exit_code == 0, result.output


def test_warnings_of_ours_are_one_line() -> None:
    @cli.clear_errors
    def command() -> tuple[str, str]:
        form = warnings.formatwarning
        return form("change this", CollapseWarning, "f", 1), form("old", DeprecationWarning, "f", 1, "")  # type: ignore[arg-type]

    ours, other = command()
    assert ours == "warning: change this\n"
    assert other == "f:1: DeprecationWarning: old\n"


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
    for shape, low, name in (
        ((1, 16, 16), -1.0, "patches"),
        ((1, 8, 8), 0.0, "digits"),
        ((1, 28, 28), 0.0, "images"),
        ((3, 1, 10), -0.1, "patches"),
        ((1, 12, 12), 0.0, "images"),
    ):
        # The numbers tell, not the name: whitened photographs in a folder are patches too.
        x = torch.linspace(low, 1.0, math.prod(shape))[None]
        splits = DataSplits(x, x[:0], x[:0], shape=shape, name="one's own")
        for kind, activation in (("poisson", "identity"), ("gaussian", "relu")):
            model, recipe = short_recipe(splits, kind, activation)  # type: ignore[arg-type]
            assert (model.shape, model.cell) == (shape, kind)
            assert recipe == SHORT[name][1]
            assert model.n_latents == SHORT[name][0].n_latents
    assert paper_recipe("patches", (1, 16, 16))[1].beta_outer == 24.0
    assert paper_recipe("a/folder", (1, 28, 28))[0].t_train == 128
