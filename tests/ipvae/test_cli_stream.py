"""``ipvae stream`` and ``ipvae convert``: frames of a file in, spikes on disk, stopped and gone on with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IPVAE, IPVAEConfig, Stream, cli
from ipvae.records import SpikeRecord, writer
from typer.testing import CliRunner

M, K, T, B = 12, 20, 30, 2


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.1)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames.npy"
    np.save(path, np.random.default_rng(0).normal(size=(T, B, M)).astype(np.float32))
    return path


def test_frames_of_a_file_become_spikes_on_disk(model: Path, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "spikes"
    result = call("stream", model, frames, "--out", out, "--seed", 3, "--device", "cpu")
    assert result.exit_code == 0, result.output
    net = IPVAE.from_pretrained(model).eval()
    expected = net.infer(torch.from_numpy(np.load(frames)), T, record=("counts",), seed=3).records["counts"]
    record = SpikeRecord(out)
    assert torch.equal(record.dense(), expected)
    events = int((expected > 0).sum())
    assert record.n_events == events
    assert f"events   {events:,}, {events / (T * B * K):.1%} of counts are not 0" in result.stdout
    spikes = int(expected.sum())
    assert spikes > events
    assert record.n_spikes == spikes
    assert f"spikes   {spikes:,}, {spikes / (T * B * K):.3g} a neuron and step" in result.stdout
    assert f"{T}/{T}" in result.stderr  # the bar knows the end of the frames without --steps
    assert re.search(r"dense +0\.0 MiB as float32", result.stdout)


def test_a_run_goes_on(model: Path, frames: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert call("stream", model, frames, "--out", whole).exit_code == 0
    assert call("stream", model, frames, "--out", cut, "--steps", 11).exit_code == 0
    again = call("stream", model, frames, "--out", cut)
    assert again.exit_code == 2
    assert "Stream.resume goes on with it" in again.stderr or "--resume" in again.stderr
    assert call("stream", model, frames, "--out", cut, "--resume").exit_code == 0
    assert torch.equal(SpikeRecord(cut).dense(), SpikeRecord(whole).dense())
    done = call("stream", model, frames, "--out", cut, "--resume", "--steps", T)
    assert done.exit_code == 2
    assert f"already holds {T} steps" in done.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    still = tmp_path / "still.npy"
    np.save(still, np.zeros((B, M), np.float32))
    command = ["stream", model, still, "--steps", 10**8, "--out", tmp_path / "spikes", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ipvae", *map(str, command)], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    while process.poll() is None and not (tmp_path / "spikes" / "state.safetensors").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    steps = int(re.findall(r"interrupted after ([\d,]+) steps, which are saved", rest)[0].replace(",", ""))
    assert "--resume goes on" in rest
    assert Stream.resume(IPVAE.from_pretrained(model).eval(), tmp_path / "spikes").steps == steps > 0


@pytest.mark.parametrize("files", [1, 2])
def test_ctrl_c_while_a_file_is_written(
    files: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still, out, written = tmp_path / "still.npy", tmp_path / "spikes", []
    np.save(still, np.zeros((B, M)))  # float64, which an array has unasked, is as good
    command = ("stream", model, still, "--steps", 2_500, "--device", "cpu", "--out")

    def interrupt() -> None:
        written.append(1)
        if len(written) == files:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_give_back", interrupt)
        result = call(*command, out)
    assert result.exit_code == 130
    said = "before any step was saved; the same command begins anew" if files == 1 else "after 1,000 steps"
    assert said in result.stderr
    assert call(*command, out, *(["--resume"] if files > 1 else [])).exit_code == 0
    assert call(*command, tmp_path / "whole").exit_code == 0
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_bad_frames_are_refused_by_name(model: Path, frames: Path, tmp_path: Path) -> None:
    still, wrong, text = (tmp_path / name for name in ("still.npy", "wrong.npy", "text.npy"))
    np.save(still, np.zeros((B, M), np.float32))
    np.save(wrong, np.zeros((T, B, M + 1), np.float32))
    text.write_text("no numbers")
    for path, options, said in (
        (still, (), "--steps: expected a number for a still input"),
        (
            wrong,
            (),
            f"expected frames [T, B, {M}] or a still input [B, {M}], found shape [{T}, {B}, {M + 1}]",
        ),
        (text, (), "text.npy: expected an array of numbers"),
        (tmp_path / "none.npy", (), "none.npy: no such file"),
        (frames, ("--resume",), "no state of a stream there"),
        (frames, ("--steps", T + 1), "the source ended after 30"),
    ):
        result = call("stream", model, path, "--out", tmp_path / "spikes", *options)
        assert result.exit_code == 2, result.output
        assert said in result.stderr


@pytest.mark.parametrize(("to", "module"), [("nwb", "pynwb"), ("sonata", "h5py")])
def test_spikes_are_converted(to: str, module: str, model: Path, frames: Path, tmp_path: Path) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed")
    assert call("stream", model, frames, "--out", tmp_path / "spikes").exit_code == 0
    result = call("convert", tmp_path / "spikes", "--to", to, "--out", tmp_path / "x", "--step-ms", 2)
    assert result.exit_code == 0, result.output
    assert "30 steps of 2 samples" in result.stdout
    bad = call("convert", tmp_path / "spikes", "--to", to, "--out", tmp_path / "y", "--step-ms", 0)
    assert bad.exit_code == 2
    assert "--step-ms: expected" in bad.stderr
    missing = call("convert", tmp_path / "nothing", "--to", to, "--out", tmp_path / "y")
    assert missing.exit_code == 2
    assert "no record of spikes there" in missing.stderr
