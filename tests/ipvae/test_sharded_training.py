"""`ipvae train` with neurons in several processes: one run, whatever their number; one that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ipvae import IPVAEConfig, TrainConfig, build_model, load_model, read_history, train
from ipvae.fields import ConfigError
from torch import distributed

if not distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

# Of 42 neurons the last process has fewer.
RUN = [
    "train",
    "--data",
    "digits",
    "--latents",
    "42",
    "--t-train",
    "4",
    "--batch-size",
    "20",
    "--device",
    "cpu",
]
RUN += ["--threads", "1", "--eval-steps", "0"]
LIMIT = 240


def command(folder: Path, steps: int, *options: str) -> list[str]:
    return ["-m", "ipvae", *RUN, "--out", str(folder), "--max-steps", str(steps), *options]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """In a session of its own, whose processes can be ended together."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], limit: float = LIMIT) -> str:
    try:
        return process.communicate(timeout=limit)[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(arguments: list[str]) -> str:
    process = start(arguments)
    said = finished(process)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(command(folder, 30))
    return folder


def same(folder: Path, alone: Path) -> None:
    """The weights and the log of one process, but for the order of sums."""
    found, expected = load_model(folder).state_dict(), load_model(alone).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    ours, theirs = read_history(folder), read_history(alone)
    for name in ("loss", "recon", "kl", "grad_norm", "val_r2", "val_nelbo", "val_zeros"):
        own, other = (h[name][np.isfinite(h[name])][-1] for h in (ours, theirs))
        assert own == pytest.approx(other, rel=2e-3), name


def test_neurons_and_rows_in_four_processes(alone: Path, tmp_path: Path) -> None:
    """By torchrun; a run that began with two processes goes on with four, of which two share each model."""
    said = run(command(tmp_path / "run", 30, "--devices", "2", "--shard-neurons", "2"))
    assert said.count("Model in") == 1
    same(tmp_path / "run", alone)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "4", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    longer = command(tmp_path / "run", 40, "--devices", "4", "--shard-neurons", "2", "--resume")
    run([*torchrun, *longer])
    run(command(alone, 40, "--resume"))
    same(tmp_path / "run", alone)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds a process's children in /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_ends_the_run_and_its_checkpoint_goes_on(
    tmp_path: Path, end: signal.Signals
) -> None:
    """One that dies at once, one that hangs within the timeout; one process goes on to the end."""
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    main = start(command(folder, 600, "--devices", "2", "--shard-neurons", "2", "--rank-timeout", "5"))
    deadline = time.monotonic() + LIMIT
    while not last.exists() and main.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(Path(f"/proc/{main.pid}/task/{main.pid}/children").read_text().split()[0])
    os.kill(child, end)
    said = finished(main, 120)
    assert main.returncode not in (0, None)
    assert "another process of this run is gone or did not answer" in said
    assert "last.ckpt" in said
    step = int(torch.load(last, weights_only=True)["global_step"])
    assert 30 <= step < 600
    assert load_model(last).dictionary.shape == (64, 42)
    run(command(folder, 600, "--resume"))
    assert torch.load(last, weights_only=True)["global_step"] == 600
    assert read_history(folder)["val_r2"][-1] > 0.3


DIFFERENT = """
import os, torch
from ipvae import IPVAEConfig, TrainConfig, build_model, train

if __name__ == "__main__":
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    model = build_model(IPVAEConfig(n_inputs=8, n_latents=12, seed=SEED))
    x = OFFSET + torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    train(model, x, TrainConfig(max_steps=2, batch_size=8, seed=0), "run", devices=2, shard_neurons=2,
          accelerator="cpu", progress=False, logger=None)
"""


@pytest.mark.parametrize(("seed", "offset", "named"), [("rank", "0", "model"), ("0", "rank", "digest")])
def test_processes_that_began_differently_are_refused_in_all(
    seed: str, offset: str, named: str, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(DIFFERENT.replace("SEED", seed).replace("OFFSET", offset))
    process = start([str(script)])
    said = finished(process)
    assert process.returncode != 0
    assert f"{named}: expected the same in all processes of the group" in said


def test_bad_calls(tmp_path: Path) -> None:
    x, recipe = torch.rand(40, 8), TrainConfig(max_steps=2, batch_size=8)
    linear = build_model(IPVAEConfig(n_inputs=8, n_latents=12))
    with pytest.raises(ValueError, match="shard_neurons: expected a divisor of 2 devices, found 3"):
        train(linear, x, recipe, tmp_path, devices=2, shard_neurons=3)
    with pytest.raises(ValueError, match="strategy: expected 'auto' beside shard_neurons, found 'ddp_spawn'"):
        train(linear, x, recipe, tmp_path, devices=2, shard_neurons=2, strategy="ddp_spawn")
    curved = build_model(IPVAEConfig(n_inputs=8, n_latents=12, decoder="mlp"))
    with pytest.raises(ConfigError, match=r"shard_neurons: expected an iterative model .* linear decoder"):
        train(curved, x, recipe, tmp_path, devices=2, shard_neurons=2)
    with pytest.raises(ValueError, match="devices: expected a divisor of the batch size 8, found 3"):
        train(linear, x, recipe, tmp_path, devices=6, shard_neurons=2)
