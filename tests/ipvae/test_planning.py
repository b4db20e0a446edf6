"""The cost model: constants come back from times made with them; layouts; the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ipvae import cli
from ipvae.planning import Costs, Run, layouts
from ipvae.planning.costs import PROFILES
from ipvae.planning.fit import ALONE, CHECKED, PASSES, SHARED, fit, measure, measure_all, measure_training
from ipvae.planning.layouts import advice
from typer.testing import CliRunner

MADE = Costs(
    "made up", "measured", call=4e-6, bandwidth=1.5e10, cached=1.2e11, crowding=0.4, operations=8e10,
    packed_operations=1.6e11, events=2e10, packed_events=6e10, gathering=6e-10, aliasing=1.5, hiding=3.0,
    neuron=2e-9, latency=8e-5, link=2e9, backward=3.0, memory=2.0**34, fitted=((1e5, 1e8), (1, 512)),
)  # fmt: skip


def test_a_step_adds_up() -> None:
    run = Run(batch=8, features=1000, inputs=100, rate=0.0)
    read, multiply = 4e5 / 1.2e11, 2 * 8 * 1e5 / 1.6e11
    both = (read**3 + multiply**3) ** (1 / 3)
    assert MADE.seconds(run) == pytest.approx(4e-6 + both + 8000 * 2e-9)
    half = replace(run, rate=np.log(2))
    assert MADE.seconds(half) - MADE.seconds(run) == pytest.approx(8 * 1e5 / 6e10)
    wide = Run(batch=2, features=10**5, inputs=100, rate=np.log(2), neighbours=2)
    read, multiply = 4e7 / 1.5e10 * 1.4, 4e7 / 8e10
    both = (read**3 + multiply**3) ** (1 / 3)
    events = 1e7 * 0.75 * 6e-10 * 1.4 + 2e7 / 2e10
    assert MADE.seconds(wide) == pytest.approx(4e-6 + both + events + 2e5 * 2e-9)
    apart = replace(wide, features=102_400)  # rows 400 KiB apart
    gathered = 0.75 * 6e-10 * 1.4 * 102_400 * 100
    longer = MADE.seconds(apart) - replace(MADE, aliasing=1.0).seconds(apart)
    assert longer == pytest.approx(0.5 * gathered)
    shared = MADE.sum_seconds(replace(run, shards=4))
    assert shared == pytest.approx(3 * 8e-5 + 2 * 3 / 4 * 3200 / 2e9)
    assert MADE.sum_seconds(run) == 0.0
    assert MADE.training_seconds(run, 16) == pytest.approx(48 * MADE.seconds(run))
    two = replace(run, batch=130, shards=2)  # in three tiles of rows
    assert MADE.sum_seconds(two) == pytest.approx(3 * 8e-5 + 4 * 13_000 / 2e9)
    assert replace(MADE, rows=0).sum_seconds(two) == pytest.approx(8e-5 + 4 * 13_000 / 2e9)
    sums = 4 * 8e-5 + 3 * 4 * 13_000 / 2e9
    assert MADE.training_seconds(two, 2) == pytest.approx(
        2 * (3 * MADE.seconds(replace(two, shards=1)) + sums)
    )
    assert MADE.training_bytes(run, 16) > 4 * MADE.inference_bytes(run) > 16e5


def test_a_fit_finds_what_times_were_made_with() -> None:
    """From times with 3 % noise: on other shapes it is within 10 % of the law that made them."""
    runs = [*ALONE, *SHARED]
    noise = np.random.default_rng(0).normal(0.0, 0.03, len(runs))
    seconds = [MADE.seconds(run) * float(np.exp(e)) for run, e in zip(runs, noise, strict=True)]
    found = fit(runs, seconds, "again", backward=3.0)
    checked = replace(found, checked=tuple((run, MADE.seconds(run)) for run in CHECKED))
    assert max(map(abs, checked.errors)) < 0.10
    assert found.fitted is not None
    assert found.source == "measured"
    assert not set(CHECKED) & set(runs)


def test_the_profile_that_was_measured_was_within_a_quarter() -> None:
    """Of 16 runs that it was not fitted on, which `ipvae plan --fit` measured: they are in the profile."""
    costs = Costs.load("epyc-avx512")
    assert {run for run, _ in costs.checked} == set(CHECKED)
    assert {run for run, _ in costs.measured} == {*ALONE, *SHARED}
    errors = sorted(map(abs, costs.errors))
    assert errors[-1] < 0.25
    assert errors[len(errors) // 2] < 0.1


def test_every_run_is_measured_in_every_pass() -> None:
    """The shortest of each, in the order of the runs."""
    runs = [Run(1, 8, 4), Run(2, 8, 4)]
    seen: list[list[Run]] = []
    seconds = measure_all(runs, lambda every: seen.append([*every]) or every)
    assert seen == [runs * PASSES]
    assert 0 < seconds[0] < 1.0


@pytest.mark.parametrize("run", [Run(4, 64, 16, 0.5), Run(2, 32, 8, 0.1, shards=2, neighbours=2)])
def test_steps_are_measured(run: Run) -> None:
    assert 1e-9 < measure(run) < 1.0


def test_training_takes_longer_than_inference() -> None:
    assert measure_training(Run(4, 64, 16, 0.5), steps=2) > 1.0


def test_layouts_are_those_of_the_devices() -> None:
    found = layouts(MADE, 100_000, 256, 64, 8)
    assert {layout.name for layout in found} == {"1 x 1", "8 x 1", "4 x 2", "2 x 4", "1 x 8"}
    assert {layout.name for layout in layouts(MADE, 100_000, 256, 2, 8)} == {"1 x 1", "2 x 4", "1 x 8"}
    assert [layout.name for layout in layouts(MADE, 10, 4, 1, 1)] == ["1 x 1"]
    memory = {layout.shards: layout.bytes for layout in found if layout.replicas * layout.shards == 8}
    assert memory[8] < memory[4] < memory[2] < memory[1]


def test_advice() -> None:
    """Many rows: data parallel. Few, of a wide dictionary: sharding. A small network: one device."""
    quiet = replace(MADE, crowding=0.0)
    assert advice(layouts(quiet, 5000, 256, 512, 4), 512).startswith("Data parallel is the answer (4 x 1)")
    said = advice(layouts(quiet, 10**7, 256, 1, 4), 1)
    assert said.startswith("Sharding pays (1 x 4): ")
    assert "too few rows" in said
    assert advice(layouts(quiet, 64, 16, 1, 4), 1).startswith("One device is the answer")
    small = replace(quiet, memory=2.5e9)
    said = advice(layouts(small, 10**6, 256, 64, 4), 64)
    assert said.startswith("Sharding pays")
    assert "does not fit a device in training" in said
    assert advice(layouts(replace(quiet, memory=1e6), 10**6, 256, 64, 4), 64).startswith("No layout fits")


def test_predictions_are_marked() -> None:
    assert not MADE.is_prediction(Run(8, 1000, 1000))
    assert MADE.is_prediction(Run(8, 10**6, 1000))
    assert MADE.is_prediction(Run(1000, 1000, 1000))
    assert MADE.is_prediction(Run(8, 1000, 1000, shards=4))
    assert Costs.load("h100").is_prediction(Run(8, 1000, 1000))


def test_the_command(tmp_path: Path) -> None:
    arguments = ["plan", "--features", "1000000", "--inputs", "2304", "--gpus", "8"]
    result = CliRunner().invoke(cli.app, [*arguments, "--curve", str(tmp_path / "curve.png")])
    assert result.exit_code == 0, result.output
    assert "from its data sheet, nothing measured" in result.output
    assert "data x model" in result.output
    assert "is the answer" in result.output
    assert "a prediction" in result.output
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).output)
    assert len(values["layouts"]) == 5
    on_cpu = CliRunner().invoke(cli.app, ["plan", "--processes", "2"])
    assert "measured 20" in on_cpu.output


def test_bad_requests(tmp_path: Path) -> None:
    def said(*options: str) -> str:
        result = CliRunner().invoke(cli.app, ["plan", *options])
        assert result.exit_code == 2
        return result.stderr

    assert "profile: expected a file or one of epyc-avx512, h100, found 'nothing'" in said(
        "--profile", "nothing"
    )
    assert "--processes: expected none beside --gpus 2, found 2" in said("--gpus", "2", "--processes", "2")
    (tmp_path / "broken.json").write_text('{"name": 1}')
    assert "not a profile of ipvae plan" in said("--profile", str(tmp_path / "broken.json"))
    zero = json.loads((PROFILES / "h100.json").read_text()) | {"link": 0.0}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    assert "link" in said("--profile", str(tmp_path / "zero.json"))
    with pytest.raises(ValueError, match="batch: expected"):
        Run(0, 1, 1)
    saved = tmp_path / "made.json"
    made = replace(MADE, checked=((Run(1, 8, 4), 1e-5),))
    made.save(saved)
    assert Costs.load(saved) == made
