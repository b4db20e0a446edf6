"""Trials: a model trained and measured, each with a file of its own, so that experiments go on anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import LAST, atomic_file
from ..data import DataSplits
from ..extras import DISTRIBUTION, explained
from ..models.base import VAE
from ..models.registry import build_model, load_model, model_named
from ..training.config import TrainConfig
from ..training.motion import moving
from ..training.outcome import TrainingError
from ..training.recipes import short_recipe
from ..training.run import train
from .sets import load_set

with explained():
    import filelock

Measure = Callable[[VAE, "Workshop", "Trial"], dict[str, Any]]
# Updates of a training on patches, or on the digits of the quick preset: experiments share such trainings.
UPDATES = {"quick": 150, "short": 1500, "long": 12_000}


@dataclass(frozen=True)
class Trial:
    """One model, trained and measured.

    Attributes:
        label: of the row; trials that differ in their seed alone share it.
        model: a name of ``ipvae train --model``.
        data: a name of ``--data``, or of `SETS`.
        seed: of weights, noise and order of the data.
        fields: of the configuration, that differ from the short recipe.
        train: of the training, likewise.
        options: of the measure.
        motion: of the training, a name of ``ipvae train --motion``.
    """

    label: str
    model: str
    data: str
    seed: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    motion: str = "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @property
    def key(self) -> str:
        """What tells its file from others'."""
        return _digest(self.to_dict())


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def version() -> str:
    """Of this package; results of others are not taken over."""
    return metadata.version(DISTRIBUTION)


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "+" behind it where files differ; or None."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def machine() -> str:
    """The processor and the threads in use, and the GPU that trains where there is one."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}{gpu}"


class Workshop:
    """A folder of trials and of the runs that trained them.

    Args:
        out: the folder; created.
        folders: of data sets that lie in files, by name of the set.
        progress: whether training draws a progress bar.
    """

    def __init__(
        self, out: Path, *, folders: Mapping[str, Path | None] | None = None, progress: bool = True
    ) -> None:
        self.out, self.progress = out, progress
        self.folders = {name: folder for name, folder in (folders or {}).items() if folder is not None}
        for name in ("trials", "runs"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def data(self, name: str) -> DataSplits:
        """A data set, loaded once a process.

        Raises:
            FileNotFoundError, DownloadError: its files are not there, and cannot be had.
        """
        return load_set(name, self.folders.get(name))

    def sets(self, names: Iterable[str]) -> tuple[dict[str, DataSplits], list[str]]:
        """Data sets by name, and the names of those that are not at hand and no folder was given of.

        Raises:
            FileNotFoundError: a folder that was given lacks its set.
        """
        found, missing = {}, []
        for name in names:
            try:
                found[name] = self.data(name)
            except FileNotFoundError:
                if name in self.folders:
                    raise
                missing.append(name)
        return found, missing

    def finished(self, trial: Trial) -> dict[str, Any] | None:
        """The result of a trial, if it is there, of this version, and lacks no set whose folder is given."""
        try:
            found: dict[str, Any] = json.loads(self._file(trial).read_text())
        except (OSError, ValueError):
            return None
        fits = found.get("trial") == trial.to_dict() and found.get("version") == version()
        lacks = set(found.get("found", {}).get("missing", ())) & set(self.folders)
        return found if fits and not lacks else None

    def stale(self, trial: Trial) -> bool:
        """Whether there is a result that does not count: of another version, damaged, or without a set."""
        return self._file(trial).exists() and self.finished(trial) is None

    def result(self, trial: Trial, measure: Measure) -> dict[str, Any]:
        """The result of a trial, computed unless it is there; another process that needs its run waits."""
        if (found := self.finished(trial)) is not None:
            return found
        with filelock.FileLock(self._run(trial).with_suffix(".lock")):
            return self.finished(trial) or self._computed(trial, measure)

    def _computed(self, trial: Trial, measure: Measure) -> dict[str, Any]:
        values: dict[str, Any] = {
            "trial": trial.to_dict(), "version": version(), "commit": commit(), "machine": machine()
        }  # fmt: skip
        self.data(trial.data)  # whose loading is not timed
        started = time.perf_counter()
        try:
            model, seconds = self.trained(trial)
        except TrainingError as error:
            values["diverged"] = str(error)
        else:
            measured = time.perf_counter()
            found = measure(model.eval(), self, trial)
            values |= {"found": found, "training_seconds": seconds}
            values["measuring_seconds"] = time.perf_counter() - measured
        values["seconds"] = time.perf_counter() - started
        with atomic_file(self._file(trial)) as file:
            file.write(json.dumps(values, indent=1, allow_nan=False).encode() + b"\n")
        return values

    def trained(self, trial: Trial) -> tuple[VAE, float]:
        """The model of a trial, and the seconds that its training took; what was begun is continued.

        Raises:
            TrainingError: it diverged.
        """
        folder = self._run(trial)
        done = folder / "seconds.json"
        if done.exists():
            values = json.loads(done.read_text())
            if values["version"] == version():
                return load_model(folder), float(values["seconds"])
        model_config, train_config = self.configs(trial)
        part = done.with_suffix(".part")  # the seconds of earlier sessions
        before = float(part.read_text()) if part.exists() else 0.0
        result = train(
            build_model(model_config), self.data(trial.data), train_config, folder,
            resume=(folder / LAST).exists(), progress=self.progress, logger=None,
            frames=moving(trial.motion, self.data(trial.data).shape, getattr(model_config, "t_train", 1)),
        )  # fmt: skip
        seconds = before + result.seconds
        name = done if result.complete else part
        with atomic_file(name) as file:
            what = {"seconds": seconds, "version": version()} if result.complete else seconds
            file.write(json.dumps(what).encode())
        if not result.complete:
            raise KeyboardInterrupt(f"stopped by {result.stopped_by}; the same command goes on")
        return result.model, seconds

    def configs(self, trial: Trial) -> tuple[Any, TrainConfig]:
        """The configurations of a trial."""
        cell, fields = model_named(trial.model)
        activation = fields.pop("activation", "identity")
        fields |= {name: tuple(v) if isinstance(v, list) else v for name, v in trial.fields.items()}
        model, recipe = short_recipe(
            self.data(trial.data), cell, activation, **{**fields, "seed": trial.seed}
        )
        given = dict(trial.train)
        if "epochs" in given:
            given = {"max_steps": None, **given}
        return model, dataclasses.replace(recipe, **given, seed=trial.seed)

    def _run(self, trial: Trial) -> Path:
        """The folder of its training, which trials share whose configurations are the same."""
        what = [trial.data, trial.motion, *(dataclasses.asdict(config) for config in self.configs(trial))]
        return self.out / "runs" / _digest(what)

    def _file(self, trial: Trial) -> Path:
        return self.out / "trials" / f"{trial.key}.json"
