"""The replay of recorded runs of the released code, and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ipvae_kernels import replay

FILES = {
    "gaussian": 24,
    "gaussian_inner2": 24,
    "gaussian_relu": 24,
    "poisson_estimators": 86,
    "poisson_hard_inner2_moving": 16,
    "poisson_hard_paper_size": 16,
    "poisson_hard_static": 16,
    "poisson_relaxed_clamped": 26,
    "poisson_relaxed_inner3": 26,
    "poisson_relaxed_moving": 26,
    "poisson_relaxed_static": 26,
}  # how many arrays each replays, over its modes
Golden = Callable[[str], Path]
RECORDED = Path(__file__).parent / "recorded"  # what belongs to the repository; the rest lies beside it


@pytest.fixture
def golden(shared: Callable[[str], Path]) -> Golden:
    """Finds a recorded run by name; skips where it is one that does not lie beside this checkout."""

    def find(name: str) -> Path:
        path = RECORDED / f"{name}.npz"
        return path if path.exists() else shared(f"golden/{name}.npz")

    return find


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FILES)
def test_golden_files(name: str, dtype: str, golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    path = golden(name)
    status = replay.main([str(path), "--dtype", dtype])
    output = capsys.readouterr().out.splitlines()
    assert status == 0, output
    assert output[-1].startswith(f"{path}: ok: {FILES[name]} arrays, largest relative error ")
    assert len(output) == FILES[name] + 2


def test_the_repository_has_recorded_runs_of_every_kind() -> None:
    metas = [replay.Golden(path).meta for path in RECORDED.glob("*.npz")]
    assert {meta and (meta["kind"], meta["latent_act"], meta["indicator"]) for meta in metas} == {
        None,  # the estimators
        ("gaussian", None, None),
        ("gaussian", "relu", None),
        ("poisson", None, None),
        ("poisson", None, "sigmoid"),
    }
    assert {path.stem for path in RECORDED.glob("*.npz")} <= set(FILES)


def test_no_golden_file_is_forgotten(shared: Callable[[str], Path]) -> None:
    assert {path.stem for path in shared("golden").glob("*.npz")} == set(FILES)


def tampered(path: Path, target: Path, name: str, change: Callable[[Any], Any]) -> Path:
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays[name] = change(arrays[name])
    np.savez(target, **arrays)
    return target


@pytest.mark.parametrize("name", ["u", "grad_weight", "loss", "loss_kl_exact", "grad_u_init"])
def test_a_wrong_number_is_found(
    name: str, golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(array: Any) -> Any:
        array = array.copy()
        array.reshape(-1)[-1] *= 1 + 1e-6
        return array

    path = tampered(golden("poisson_relaxed_inner3"), tmp_path / "wrong.npz", name, change)
    assert replay.main([str(path)]) == 1
    output = capsys.readouterr().out
    assert "FAIL: 2 of 26 arrays beyond tolerance" in output
    assert sum(line.endswith("FAIL") and f" {name} " in line for line in output.splitlines()) == 2


def test_nan_and_wrong_shapes_fail(golden: Golden, tmp_path: Path) -> None:
    for change in (lambda a: a * np.nan, lambda a: a[:-1]):
        path = tampered(golden("poisson_relaxed_moving"), tmp_path / "wrong.npz", "u", change)
        assert replay.main([str(path)]) == 1


def foreign(tmp_path: Path, **arrays: Any) -> Path:
    path = tmp_path / "foreign.npz"
    np.savez(path, **arrays)
    return path


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    meta = json.dumps({"kind": "laplace"})
    cases = [
        (tmp_path / "absent.npz", "not an .npz archive, or there is no such file"),
        (text, "not an .npz archive"),
        (tmp_path, "not an .npz archive"),
        (foreign(tmp_path, a=np.zeros(3)), "it holds neither 'meta' nor 'cases'"),
    ]
    for path, message in cases:
        assert replay.main([str(path)]) == 2
        assert message in capsys.readouterr().err
    assert replay.main([str(foreign(tmp_path, cases="[]"))]) == 2
    assert "there is nothing to compare" in capsys.readouterr().err
    assert replay.main([str(foreign(tmp_path, meta=meta))]) == 2
    assert "expected kind 'poisson' or 'gaussian', found 'laplace'" in capsys.readouterr().err
    assert replay.main([str(foreign(tmp_path, meta="{"))]) == 2
    assert "meta is not JSON" in capsys.readouterr().err


def test_objects_are_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(foreign(tmp_path, meta=np.array([{"kind": "poisson"}], dtype=object)))]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_truncated_files(
    cut: float, golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = golden("poisson_hard_inner2_moving").read_bytes()
    path = tmp_path / "cut.npz"
    path.write_bytes(data[: int(cut * len(data))])
    assert replay.main([str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_damaged_bytes(golden: Golden, tmp_path: Path) -> None:
    data = bytearray(golden("poisson_hard_inner2_moving").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path = tmp_path / "damaged.npz"
    path.write_bytes(data)
    assert replay.main([str(path)]) == 2


@pytest.mark.parametrize("name", ["exp_noise", "weight", "u", "log_lr"])
def test_missing_arrays(
    name: str, golden: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(golden("poisson_relaxed_moving")) as archive:
        arrays = {key: archive[key] for key in archive.files if key != name}
    path = foreign(tmp_path, **arrays)
    assert replay.main([str(path)]) == 2
    message = "does not hold the draws" if name == "exp_noise" else f"the array '{name}' is missing"
    assert message in capsys.readouterr().err


def test_worst_status_of_several_files_counts(golden: Golden, tmp_path: Path) -> None:
    good = str(golden("poisson_relaxed_moving"))
    assert replay.main([good, good]) == 0
    assert replay.main([good, str(tmp_path / "absent.npz"), good]) == 2


def test_errors_are_the_stated_ones() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    assert replay.relative_error(a, b) == pytest.approx(0.5 / (2.5 + 1e-6))
    assert replay.scaled_error(torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.0])) == pytest.approx(
        0.1, rel=1e-5
    )
    assert replay.relative_error(a, a[:1]) == float("inf")


def test_command_line(golden: Golden) -> None:
    path = str(golden("poisson_hard_inner2_moving"))
    command = [sys.executable, "-m", "ipvae_kernels.replay", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "ok: 16 arrays" in done.stdout
    assert done.stderr == ""
