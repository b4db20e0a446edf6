"""`ipvae.experiments.demo`: a tiny one end to end, what it claims, and whose folders it touches."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IPVAE, ConfigError, evaluate
from ipvae.data import DataSplits
from ipvae.experiments import demo, timing, turns
from ipvae.training.folder import alone_in
from ipvae.training.outcome import TrainingError
from rich.console import Console


@pytest.fixture(scope="module")
def data() -> DataSplits:
    x = torch.randn(120, 36, generator=torch.Generator().manual_seed(0))
    return DataSplits(x[:80], x[80:100], x[100:], shape=(1, 6, 6), name="noise", about="noise [of 6x6]")


def tiny(out: Path, data: DataSplits, **options: object) -> tuple[dict[str, object], str]:
    text = io.StringIO()
    settings = {"steps": 4, "n_latents": 16, "eval_steps": 20, "timing_seconds": 0.2, "progress": False}
    metrics = demo.run(out, data=data, console=Console(file=text, width=120), **{**settings, **options})  # type: ignore[arg-type]
    return metrics, text.getvalue()


def visible(folder: Path) -> set[str]:
    """The names in a folder, without the locks."""
    return {path.name for path in folder.iterdir()} - {".lock", ".demo.lock"}


@pytest.mark.usefixtures("coarse_figures")
def test_the_demo_leaves_what_it_says(tmp_path: Path, data: DataSplits) -> None:
    out = tmp_path / "demo"
    metrics, text = tiny(out, data)
    expected = {*demo.FIGURES, *demo.FOLDERS, demo.METRICS}
    assert visible(out) == expected
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in demo.FIGURES)
    assert json.loads((out / demo.METRICS).read_text()) == json.loads(json.dumps(metrics))
    model = IPVAE.from_pretrained(out / "model")
    found = evaluate(model, data.test, 20)
    marks = metrics["marks"]
    assert [mark["step"] for mark in marks] == [1, 16, 20]  # type: ignore[attr-defined]
    for mark in marks:  # type: ignore[attr-defined]
        i = mark["step"] - 1
        assert mark["r2"] == pytest.approx(found.r2[i], rel=1e-4)
        assert mark["zeros"] == pytest.approx(found.zeros[i])
    for words in (
        "4 updates",
        "noise [of 6x6]",
        "Another data set",
        "faster",
        "Next",
        f"ipvae eval {out}/model",
    ):
        assert words in text

    # What cannot work is refused before anything is removed.
    for wrong in ({"n_latents": 0}, {"steps": 0}):
        with pytest.raises(ConfigError, match=r"^(n_latents|max_steps): expected"):
            tiny(out, data, **wrong)
        assert visible(out) == expected

    # Again into the same folder: replaced; what is not the demo's stays.
    (out / "notes.txt").write_text("mine")
    (out / "logs" / "version_9").mkdir()
    tiny(out, data, timing_seconds=0, seed=1)
    assert visible(out) == expected | {"notes.txt"}
    assert not (out / "logs" / "version_9").exists()
    assert json.loads((out / demo.METRICS).read_text())["speed"] == []


@pytest.mark.parametrize("content", [None, "{}", "[]", "not JSON"])
def test_foreign_folders_are_refused(tmp_path: Path, data: DataSplits, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:
        (tmp_path / demo.METRICS).write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="--out"):
        demo.run(tmp_path, data=data)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(FileExistsError, match="found a file"):
        demo.run(tmp_path / "thesis.tex", data=data)


def test_speed_is_measured_only_where_both_agree(data: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    model = IPVAE(demo.dataclasses.replace(demo.DEMO_MODEL, n_inputs=36, input_shape=(6, 6), n_latents=8))
    timings = timing.compare(model, data.train, 0.2, progress=False)
    assert [t["what"].split(",")[0] for t in timings] == ["training step", "training step", "inference"]
    for case in timings:
        assert case["repeats"] >= turns.MIN_ROUNDS
        assert case["speedup"] == pytest.approx(case["plain_seconds"] / case["ours_seconds"])
        assert case["recon_plain"] == pytest.approx(case["recon_ours"], rel=0.05)
    infer = model.infer

    def wrong(*args: object, **kwargs: object) -> object:
        result = infer(*args, **kwargs)  # type: ignore[arg-type]
        if "recon" in result.records:
            result.records["recon"].mul_(1.5)
        return result

    monkeypatch.setattr(model, "infer", wrong)
    with pytest.raises(RuntimeError, match="differ"):
        timing.compare(model, data.train, 0.2, progress=False)


def test_a_slow_baseline_gets_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(x: torch.Tensor) -> torch.Tensor:
        clock[0] += 0.001 * len(x)  # 1 ms a sample
        return x.T

    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 1)
    case = timing._in_turns("slow", slow, slow, torch.rand(80, 2), seconds=0.11)
    # 3 repeats of 80 or 40 ms are more than 0.11 s, 3 of 20 ms are not.
    assert case["batch"] == 20
    assert case["plain_seconds"] == case["ours_seconds"] == pytest.approx(0.02)


def test_the_verdict_hides_nothing() -> None:
    def marks(r2: float, zeros: float) -> list[demo.Mark]:
        return [
            demo.Mark(step=16, r2=0.7, r2_standard_error=0.01, zeros=0.5, spikes=9.0),
            demo.Mark(step=1000, r2=r2, r2_standard_error=0.01, zeros=zeros, spikes=9.0),
        ]

    assert "lower at the end than at step 16" in demo.verdict(marks(0.699, 0.9))
    assert "better and sparser" in demo.verdict(marks(0.8, 0.9))
    assert "sparser" not in demo.verdict(marks(0.8, 0.4))
    assert "0.700" in demo.verdict(marks(0.8, 0.4))
    assert "step 16: 0.700" in demo.verdict(marks(0.8, 0.4)[:1])


def test_standard_errors_are_those_of_patches(data: DataSplits) -> None:
    model = IPVAE(demo.dataclasses.replace(demo.DEMO_MODEL, n_inputs=36, input_shape=(6, 6), n_latents=8))
    marks, curves = demo.measure(model, data.test, 3, progress=False)
    records = model.infer(data.test, 3, record=("squared_error",), seed=0).records["squared_error"]
    r2 = demo.r2_from_error(records, demo.total_variation(data.test))
    np.testing.assert_allclose([m["r2"] for m in marks], r2[[0, 2]].mean(1), rtol=1e-5)
    np.testing.assert_allclose(
        [m["r2_standard_error"] for m in marks], r2[[0, 2]].std(1) / 20**0.5, rtol=1e-5
    )
    assert len(curves["r2"]) == 3


def test_a_second_demo_is_refused_while_one_runs(
    tmp_path: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    measure = demo.measure

    def second(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(TrainingError, match="in this folder"):
            tiny(out, data, timing_seconds=0.0)
        assert (out / "model" / "model.safetensors").is_file()
        return measure(*arguments, **options)

    monkeypatch.setattr(demo, "measure", second)
    tiny(out, data, timing_seconds=0.0)
    with alone_in(out), pytest.raises(TrainingError, match="in this folder"):  # a training that goes on
        tiny(out, data, timing_seconds=0.0)
    assert (out / "checkpoints" / "last.ckpt").is_file()
