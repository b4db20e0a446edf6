"""Several devices, launched as scripts and notebooks launch them: in an interpreter of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import warnings
import torch
from ipvae import IPVAEConfig, TrainConfig, build_model, train

warnings.simplefilter("ignore")
def run(folder, **options):
    x = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    sizes = dict(n_inputs=10, n_latents=12, t_train=4, init_scale=0.1, init_log_rate=(-6.0, -4.0))
    recipe = TrainConfig(lr=0.02, max_steps=12, batch_size=8, seed=5)
    model = build_model(IPVAEConfig(estimator="cubic", **sizes))
    return train(model, x, recipe, folder, accelerator="cpu", progress=False, logger=None, **options)

if __name__ == "__main__":
    one, two = run("one"), run("two", devices=2, strategy=STRATEGY)
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values())
    print("steps", two.steps, two.stopped_by, "differ by", max(float((a - b).abs().max()) for a, b in pairs))

"""


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_two_devices_are_one_run(strategy: str, tmp_path: Path) -> None:
    text = SCRIPT.replace("STRATEGY", repr(strategy))
    script = tmp_path / "script.py"
    script.write_text(text)
    notebook = strategy == "ddp_notebook"  # which Lightning refuses outside of an interactive interpreter
    done = subprocess.run(
        [sys.executable, *(["-i"] if notebook else [script])], input=text if notebook else None, text=True,
        capture_output=True, cwd=tmp_path, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = re.search(r"steps 12 None differ by (\S+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < 1e-5
