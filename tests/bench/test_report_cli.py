"""The commands, and tables and plots from rows alone."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ipvae import cli
from ipvae_bench import report
from ipvae_bench.problem import Settings
from ipvae_bench.report import Results, seconds_text
from typer.testing import CliRunner


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def row(case: str, contestant: str, median: float, **changes: Any) -> dict[str, Any]:
    values = {
        "case": case, "group": "inference", "op": "infer", "axis": "", "contestant": contestant,
        "device": "cpu", "sizes": {"B": 2, "T": 3, "K": 4, "M": 5}, "estimator": "hard", "temperature": 0.0,
        "state": {"name": "paper", "updates": 2, "nonzero": 0.25, "rate": 0.5}, "status": "ok", "reason": "",
        "note": "", "check": {"ok": True}, "compile_seconds": None, "peak_mib": 2.0, "median": median,
        "p20": 0.9 * median, "p80": 1.1 * median, "rounds": 3, "per_second": 6 / median,
        "spikes_per_second": 1.0, "operations": 1e6, "bytes": 1e5, "roofline": 0.01, "faster_than": {},
        "peaks": {"flops": 1e11, "bytes": 1e10},
    }  # fmt: skip
    return values | changes


@pytest.fixture
def results() -> Results:
    growth = [
        row(f"growth-K-{k}", who, k**2 * 1e-6, axis="K", sizes={"B": 2, "T": 3, "K": k, "M": 5})
        for k in (128, 256, 512)
        for who in ("cpu", "baseline")
    ]
    failed = row("infer-paper", "authors", 1.0) | {
        "status": "not measured", "reason": "no --reference", "median": None
    }  # fmt: skip
    rows = [
        row("infer-paper", "cpu", 0.001, faster_than={"compiled": 9.0}),
        row("infer-paper", "compiled", 0.009, note="compiled: one step", compile_seconds=12.5, rounds=1),
        failed, *growth,
    ]  # fmt: skip
    machine = {"commit": "abc", "cpu": "A CPU", "gpu": None, "threads": 2, "date": "today"}
    return Results(machine, rows)


def test_files(results: Results, tmp_path: Path) -> None:
    results.to_json(tmp_path / "rows.json")
    assert Results.from_json(tmp_path / "rows.json") == results
    results.to_csv(tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results.rows)
    assert lines[0]["cpu"] == "A CPU"
    assert lines[0]["state.nonzero"] == "0.25"
    assert lines[0]["faster_than.compiled"] == "9.0"


def test_report(results: Results, tmp_path: Path) -> None:
    results.to_json(tmp_path / "rows.json")
    told = call("bench", "report", tmp_path / "rows.json", "--out", tmp_path / "report")
    assert told.exit_code == 0, told.output
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md", "growth.png", "speedup.png", "roofline.png"
    }  # fmt: skip
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| infer-paper | 9.0 x |" in text
    assert not re.search(r"\b(goal|aim|least)", text, re.IGNORECASE)
    assert "- authors' code: not measured: no --reference" in text
    assert "- torch.compile: compiled: one step; compiled in 12.5 s; rounds: 1" in text
    assert "A CPU, 2 threads, abc" in text
    assert "| K | cpu | 256: 2.00, 512: 2.00 |" in text


def roofline_of(results: Results) -> tuple[Any, Any]:
    """The points and the roof of the plot, [n, 2] each."""
    figure = report._draw_roofline([results])
    *points, bound = (line.get_xydata() for line in figure.axes[0].lines)
    return np.concatenate(points), bound


@pytest.mark.parametrize(
    "changes",
    [
        {},  # within the peaks of the machine
        {"operations": 3e9},  # faster than the product that was timed, on more than one core
        {"bytes": 1e9},  # more than memory gives: it came from a cache
    ],
)
def test_no_point_pierces_the_roof(results: Results, changes: dict[str, float]) -> None:
    results.rows[0] |= changes
    points, bound = roofline_of(results)
    above = np.exp(np.interp(*(np.log(values) for values in (points[:, 0], *bound.T))))
    assert (points[:, 1] <= above * (1 + 1e-9)).all()


def test_the_roof_counts_the_cores_that_ran(results: Results) -> None:
    assert report.roof([results]) == (2 * 1e11, 1e10)


def test_plots_say_where_what_and_how_large(results: Results) -> None:
    for draw in (report._draw_growth, report._draw_speedup, report._draw_roofline):
        figure = draw([results])
        assert "A CPU, 2 threads" in figure.get_suptitle()
    growth = report._draw_growth([results]).axes[0]
    assert growth.get_title() == "B 2, T 3, M 5"
    assert growth.get_xlabel() == "K neurons"
    (tick,) = report._draw_speedup([results]).axes[0].get_yticklabels()
    assert tick.get_text() == "infer-paper\nB 2, T 3, K 4, M 5"


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 0}', "[]"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    told = call("bench", "report", tmp_path / "rows.json")
    assert told.exit_code == 2
    assert told.stderr.startswith("error: ")


def test_seconds() -> None:
    assert seconds_text(1.234) == "1.23 s"
    assert seconds_text(0.01, 0.0123) == "10..12.3 ms"
    assert seconds_text(2e-6) == "2 us"


def test_run(settings: Settings, tmp_path: Path) -> None:
    told = call(
        "bench", "--case", "quick-infer", "--json", tmp_path / "rows.json", "--csv", tmp_path / "rows.csv",
        "--seconds", 0, "--updates", 2, "--state-dir", settings.state_dir, "--no-memory", "--threads", 1,
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "plain PyTorch" in told.output
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["contestant"] for row in found["rows"]] == ["cpu", "baseline"]
    assert found["machine"]["threads"] == 1
    assert found["machine"]["installation"]["torch"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "abacus"), "--backend: expected one of"),
        (("--without", "abacus"), "--without: expected one of"),
        (("--case", "zebra"), "'zebra' is in the name of no case"),
        (("--json", "nowhere/rows.json"), "no folder nowhere"),
    ],
)
def test_what_a_user_can_get_wrong(options: tuple[str, ...], words: str) -> None:
    told = call("bench", *options)
    assert told.exit_code == 2
    assert words in told.stderr


def test_help_lists_the_command_and_imports_no_torch() -> None:
    code = (
        "import atexit, sys; from ipvae import cli; "
        "atexit.register(lambda: print('torch' in sys.modules)); cli.app(['--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bench" in result.stdout
    assert result.stdout.strip().endswith("False")
