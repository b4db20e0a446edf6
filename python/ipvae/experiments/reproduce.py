"""Experiments: trials, what is measured of each, and what they answer; run by ``ipvae reproduce``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checkpoint import atomic_file
from ..extras import explained
from .trials import Measure, Trial, Workshop, commit, machine, version

with explained():
    import joblib  # type: ignore[import-untyped]
    from matplotlib.figure import Figure
    from scipy.stats import ttest_ind_from_stats  # type: ignore[import-untyped]
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

LEVEL = 0.05
PRESETS = ("quick", "short", "long")


class Mean(NamedTuple):
    """A measure over seeds.

    Attributes:
        mean: over the trials that ended.
        deviation: standard deviation over them; NaN of one.
        n: how many.
    """

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        """Of one number for each seed."""
        found = np.array(list(values), dtype=float)
        deviation = float(found.std(ddof=1)) if len(found) > 1 else math.nan
        return cls(float(found.mean()) if len(found) else math.nan, deviation, len(found))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.n) if self.n else math.nan

    def show(self, digits: int = 3, scale: float = 1.0) -> str:
        """As "mean ± deviation"."""
        if not self.n:
            return "diverged"
        spread = "" if math.isnan(self.deviation) else f" ± {scale * self.deviation:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{spread}"


class Claim(NamedTuple):
    """A claim and its answer.

    Attributes:
        claim: what is claimed, by whom.
        holds: whether it held here; None: this run cannot tell.
        evidence: the numbers.
    """

    claim: str
    holds: bool | None
    evidence: str


class Report(NamedTuple):
    """What an experiment makes of its results.

    Attributes:
        columns: of the table.
        rows: of the table.
        claims: with answers.
        figure: or None.
        caveats: what a reader has to know.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    claims: Sequence[Claim]
    figure: Figure | None
    caveats: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """A question, and how it is asked.

    Attributes:
        name: of the command.
        question: a sentence.
        protocol: what is trained, on what, and what is measured of it.
        minutes: preset -> time on two cores, about.
        trials: (preset, seeds) -> the trials.
        measure: of a trained model, plain values.
        report: of results by label, each a list over seeds.
    """

    name: str
    question: str
    protocol: str
    minutes: Mapping[str, float]
    trials: Callable[[str, int], list[Trial]]
    measure: Measure
    report: Callable[[Mapping[str, list[dict[str, Any]]]], Report]


Results = Mapping[str, list[dict[str, Any]]]
"""Label -> the results of its seeds."""


def found(results: Results, label: str, *path: str | int) -> Mean:
    """A measure over the seeds of a label; those that diverged are left out."""
    return Mean.of(_value(values, path) for values in ended(results, label))


def ended(results: Results, label: str) -> list[dict[str, Any]]:
    """The measures of the seeds of a label whose trainings did not diverge."""
    return [result["found"] for result in results[label] if "found" in result]


def _value(values: Any, path: Sequence[str | int]) -> float:
    for part in path:
        values = values[part]
    return math.nan if values is None else float(values)


def first_found(results: Results) -> dict[str, Any]:
    """The measures of one trial, to see which there are.

    Raises:
        ValueError: every trial diverged.
    """
    for label in results:
        for values in ended(results, label):
            return values
    raise ValueError("every training diverged: there is nothing to report")


def bar(mean: Mean) -> float:
    """Half an error bar: the standard deviation, nothing for one seed."""
    return 0.0 if math.isnan(mean.deviation) else mean.deviation


def nan_last(value: float) -> float:
    """A key that puts what diverged behind everything."""
    return math.inf if math.isnan(value) else value


def above(one: Mean, other: Mean) -> bool | None:
    """Whether a mean is above another, by Welch's test over seeds, one-sided at `LEVEL`; None: one seed.

    With two or three seeds a difference of two standard errors is nothing rare: the test knows how few
    they are.
    """
    if min(one.n, other.n) < 2:
        return None
    if one.deviation == other.deviation == 0.0:
        return one.mean > other.mean
    test = ttest_ind_from_stats(*one, *other, equal_var=False, alternative="greater")
    return bool(test.pvalue < LEVEL)


def reproduce(
    experiment: Experiment,
    workshop: Workshop,
    preset: str,
    seeds: int,
    *,
    jobs: int = 1,
    command: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Runs what is missing of an experiment, and writes its JSON, table and figure.

    Args:
        experiment: which.
        workshop: where.
        preset: a name of `PRESETS` that the experiment has.
        seeds: how many, from 0 on.
        jobs: trials at a time, each in a process of its own with its share of the threads.
        command: that a reader types to repeat it.
        progress: draw a bar over the trials.

    Returns:
        What the JSON holds.

    Raises:
        ValueError: no such preset, or less than one seed or job.
    """
    if preset not in experiment.minutes:
        raise ValueError(f"preset: expected one of {', '.join(experiment.minutes)}, found {preset!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, found {seeds}")
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, found {jobs}")
    trials = experiment.trials(preset, seeds)
    results: dict[str, list[dict[str, Any]]] = {}
    stale = [trial for trial in trials if workshop.stale(trial)]
    with tqdm(total=len(trials), desc=experiment.name, unit="trial", disable=not progress) as bar:
        if stale:
            bar.write(f"{len(stale)} results are of another version or damaged, and are made anew")
        threads = max(1, torch.get_num_threads() // jobs)
        done = joblib.Parallel(n_jobs=jobs, return_as="generator")(
            joblib.delayed(_result)(workshop, trial, experiment.measure, threads) for trial in trials
        )
        for trial, result in zip(trials, done, strict=True):
            results.setdefault(trial.label, []).append(result)
            bar.set_postfix_str(f"{trial.label}, seed {trial.seed}")
            bar.update()
    report = experiment.report(results)
    values = {
        "experiment": experiment.name, "preset": preset, "seeds": seeds, "version": version(),
        "commit": commit(), "machine": machine(), "command": command, "results": results,
        "question": experiment.question, "protocol": experiment.protocol,
        "claims": [claim._asdict() for claim in report.claims], "notes": notes(report, results),
        "columns": [*report.columns], "rows": [[*row] for row in report.rows],
        "figure": report.figure is not None,
    }  # fmt: skip
    _write(workshop.out / f"{experiment.name}.json", json.dumps(values, indent=1, allow_nan=False) + "\n")
    _write(workshop.out / f"{experiment.name}.md", page(values))
    _write(workshop.out / "claims.md", claims_page(workshop.out))
    if report.figure is not None:
        with atomic_file(workshop.out / f"{experiment.name}.png") as file:
            report.figure.savefig(file, format="png")
    return values


def _result(workshop: Workshop, trial: Trial, measure: Measure, threads: int) -> dict[str, Any]:
    """A trial's result, in a process of its own or in this one."""
    torch.set_num_threads(threads)
    return workshop.result(trial, measure)


def notes(report: Report, results: Results) -> list[str]:
    """What a reader has to know, with the trainings that diverged and the sets that were not at hand."""
    diverged = [
        f"{result['trial']['label']} seed {result['trial']['seed']}"
        for rows in results.values() for result in rows if "diverged" in result
    ]  # fmt: skip
    named = [f"Diverged, and not averaged in: {', '.join(diverged)}."] if diverged else []
    missing = {
        name for label in results for values in ended(results, label) for name in values.get("missing", ())
    }
    options = ", ".join(f"{name} (`--{name.partition('-')[0]}-dir FOLDER`)" for name in sorted(missing))
    lacking = [f"Not measured, since no folder of it was given: {options}."] if missing else []
    return [*report.caveats, *lacking, *named]


def page(values: Mapping[str, Any]) -> str:
    """The result of an experiment, what its JSON holds, as Markdown."""
    lines = [f"# {values['experiment']}", "", *_head(values), "", *table(values["columns"], values["rows"])]
    return "\n".join([*lines, "", *_answers(values)]).rstrip() + "\n"


def claims_page(out: Path) -> str:
    """Every claim whose experiment has a result in a folder: question, protocol, figure, answers, caveats.

    Other files of JSON, and results that are not of this version, are passed over.
    """
    found = [values for path in sorted(out.glob("*.json")) if (values := _result_in(path)) is not None]
    lines = [
        "# Claims and answers", "",
        "Written by `ipvae reproduce`, from the results beside this page. One mean is above another where "
        f"Welch's test over the seeds says so, one-sided, p < {LEVEL:g}; no is that it does not.",
    ]  # fmt: skip
    for values in found:
        name = values["experiment"]
        lines += ["", f"## {name}", "", *_head(values), f"All numbers: [{name}]({name}.md).", ""]
        lines += _answers(values)
    return "\n".join(lines).rstrip() + "\n"


def _result_in(path: Path) -> dict[str, Any] | None:
    """What an experiment of this version wrote, or None."""
    try:
        values = json.loads(path.read_text())
    except ValueError:
        return None
    whole = isinstance(values, dict) and {"experiment", "question", "claims", "notes"} <= values.keys()
    return values if whole and values["version"] == version() else None


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _head(values: Mapping[str, Any]) -> list[str]:
    """Question, protocol, and where the numbers come from."""
    every = [result for rows in values["results"].values() for result in rows]
    minutes = sum(result["seconds"] for result in every) / 60.0
    commits = sorted({str(result["commit"]) for result in every})
    machines = sorted({result["machine"] for result in every})
    return [
        f"**Question.** {values['question']}", "", f"**Protocol.** {values['protocol']}", "",
        f"Preset `{values['preset']}`, seeds 0 to {values['seeds'] - 1}; mean ± standard deviation. "
        f"{minutes:.0f} minutes in all, each trial on {'; '.join(machines)}; version {values['version']}, "
        f"commit {', '.join(commits)}.",
        *([f"Command: `{values['command']}`."] if values["command"] else []),
    ]  # fmt: skip


def _answers(values: Mapping[str, Any]) -> list[str]:
    """Figure, answers and caveats."""
    name, answers = values["experiment"], {True: "yes", False: "no", None: "cannot be told from this run"}
    lines = [f"![{name}]({name}.png)", ""] if values["figure"] else []
    rows = [(claim["claim"], answers[claim["holds"]], claim["evidence"]) for claim in values["claims"]]
    lines += table(("claim", "holds here", "evidence"), rows)
    return [*lines, "", *(f"* {note}" for note in values["notes"])]


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
