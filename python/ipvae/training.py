"""Training with the released recipe, on Lightning.

Everything that changes over a run is a pure function of the optimizer step: schedules (`ipvae.schedules`),
the seed of the noise (`mix`) and the order of the data. A checkpoint therefore holds weights, optimizer and a
step number, no generator state, and a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import signal
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, cast

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from ipvae_kernels import _checks

from . import schedules
from .checkpoint import CheckpointError, atomic_file, load_pickled
from .config import TrainConfig
from .data.batches import epoch_order
from .evaluation import evaluate
from .inputs import KINDS, Source, gather, refuse_pixels
from .model import IPVAE, IterativeVAE

# The released code renews its cut of the arrivals every 200 updates, at this quantile of the largest rate.
N_EXP_EVERY, N_EXP_TAIL = 200, 1e-3
LAST = "last.ckpt"

_NOISE, _N_EXP, _FRAMES = range(3)


# A batch [B, M] and a seed -> moving input [T, B, M].
Frames = Callable[[Tensor, int], Tensor]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


class Splits(Protocol):
    """What `train` needs of a data set: inputs [N, ...], flattened or not, of any kind in `ipvae.inputs`."""

    @property
    def train(self) -> Source:
        """[N, ...]."""

    @property
    def validation(self) -> Source | None:
        """[V, ...], or None or empty for no validation."""


@dataclass(frozen=True)
class TrainResult:
    """What `train` leaves.

    Attributes:
        model: trained, the one that was given.
        out_dir: folder of the run: ``model/``, ``checkpoints/last.ckpt``, ``logs/``.
        steps: optimizer steps in all.
        seconds: wall time of this call's steps.
        history: "step" and logged measures, [rows] each, NaN where a row has no value; of all sessions with
            CSV logs.
    """

    model: IterativeVAE
    out_dir: Path
    steps: int
    seconds: float
    history: dict[str, NDArray[np.float64]]

    @property
    def model_dir(self) -> Path:
        """Folder for `IterativeVAE.from_pretrained`."""
        return self.out_dir / "model"

    @property
    def checkpoint(self) -> Path:
        """File to resume from."""
        return self.out_dir / "checkpoints" / LAST


def mix(seed: int, purpose: int, index: int) -> int:
    """A 64-bit seed, a pure and well-mixed function of a seed, what it is for, and a step or epoch."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, purpose, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def arrivals_quantile(rate: float, tail: float = N_EXP_TAIL) -> int:
    """The smallest n >= 1 with P(Poisson(rate) <= n) >= 1 - tail, the released number of arrivals.

    This n is a number of arrivals, so counts go up to n; the same quantile serves `gumbel_upper_bound` of
    `ipvae_kernels.poisson.eager` as a support size, where they go up to n - 1.

    Raises:
        ValueError: for a rate that is not positive and finite.
    """
    if not 0.0 < rate < math.inf:
        raise ValueError(f"rate: expected a positive, finite number, found {rate}")
    n = torch.arange(math.ceil(rate + 12.0 * math.sqrt(rate) + 24.0), dtype=torch.float64, device="cpu")
    below = torch.special.gammaincc(n + 1.0, torch.full_like(n, rate))
    return max(int(torch.searchsorted(below, 1.0 - tail)), 1)


class Batches:
    """Batches of a data set in memory; the order of an epoch is a pure function of (seed, epoch).

    An iteration starts where `step` says training is, so a run resumes within an epoch. The last, incomplete
    batch of an epoch is left out, as in the released code; a data set smaller than a batch is one batch.

    Args:
        x: [N, M].
        batch_size: over all devices.
        seed: of the order.
        step: tells the optimizer step of the next batch.
        rank, world: this device's share is rows rank * B/world and on of every batch.
    """

    def __init__(
        self, x: Tensor, batch_size: int, seed: int, step: Callable[[], int], rank: int = 0, world: int = 1
    ) -> None:
        self.x, self.seed, self.step = x, seed, step
        self.batch_size = min(batch_size, len(x))
        share = self.batch_size // world
        self._rows = slice(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.x) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        epoch, first = divmod(self.step(), len(self))
        order = epoch_order(len(self.x), self.seed, epoch).to(self.x.device)
        for i in range(first, len(self)):
            yield self.x[order[i * self.batch_size : (i + 1) * self.batch_size][self._rows]]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step says it all. Tells Lightning that these batches resume within an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""


class Training(lightning.LightningModule):
    """The released recipe as a Lightning module; `train` wraps it with a trainer, logs and checkpoints.

    Args:
        model: is trained in place.
        config: the recipe.
        x: training inputs, [N, M].
        validation: inputs of the validation, [V, M], or None.
        out_dir: of the run.
        log_every: steps between rows of the log.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints.
        backend: of `ipvae_kernels`.
        progress: whether to draw a progress bar.
        frames: makes moving input; see `train`.
    """

    def __init__(
        self,
        model: IterativeVAE,
        config: TrainConfig,
        x: Tensor,
        validation: Tensor | None,
        out_dir: Path,
        *,
        log_every: int,
        validate_every: int,
        checkpoint_every: int,
        backend: str,
        progress: bool,
        frames: Frames | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.config = config
        self.total = config.total_steps(len(x))
        self.x, self.validation = x, validation
        self.last = out_dir / "checkpoints" / LAST
        self.log_every, self.validate_every, self.checkpoint_every = (
            log_every,
            validate_every,
            checkpoint_every,
        )
        self.backend = backend
        self.progress = progress
        self.frames = frames
        self.interrupted = False
        self.rows: list[dict[str, float]] = []
        self.started = self.stopped = 0.0
        self.first_step = 0
        self._parameters_to_clip = [p for p in model.parameters() if p.requires_grad]
        self._bar: tqdm[Any] | None = None

    @property
    def steps(self) -> int:
        """Inference steps per optimizer step."""
        return self.config.steps or self.model.config.t_train

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adamax over all parameters, weight decay included, as released."""
        c = self.config
        return torch.optim.Adamax(
            self._parameters_to_clip, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay
        )

    def train_dataloader(self) -> Batches:
        """Batches on this module's device."""
        trainer = self.trainer
        return Batches(
            self.x.to(self.device), self.config.batch_size, self.config.seed,
            lambda: trainer.global_step, trainer.global_rank, trainer.world_size,
        )  # fmt: skip

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One optimizer step. Reads nothing back from the device except where a row is logged."""
        c, step = self.config, self.global_step
        if self.frames is not None:
            batch = self.frames(batch, mix(c.seed, _FRAMES, step))
        coefficients = self._anneal(step)
        self._renew_n_arrivals(batch, step)
        optimizer = cast(Any, self.optimizers())
        optimizer.param_groups[0]["lr"] = coefficients["lr"]
        result = self.model(
            batch, self.steps, beta=coefficients["beta"], truncate=c.truncate, seed=mix(c.seed, _NOISE, step),
            sample_offset=self.global_rank * batch.shape[-2], backend=self.backend,
        )  # fmt: skip
        optimizer.zero_grad()
        self.manual_backward(result.loss)
        norm = self._clip(step)
        optimizer.step()
        if (step + 1) % self.log_every == 0 or step + 1 == self.total:
            terms = {
                "loss": result.loss,
                "recon": result.recon.mean(),
                "kl": result.kl.mean(),
                "grad_norm": norm,
            }
            self._log_row({name: float(value.detach()) for name, value in terms.items()} | coefficients)

    def _anneal(self, step: int) -> dict[str, float]:
        """Sets the model's temperature and clamps; returns every scheduled number of the step."""
        c = self.config
        portions = {"anneal_portion": c.anneal_portion, "const_portion": c.const_portion}
        values = {
            "lr": schedules.learning_rate(
                step, self.total, peak=c.lr, low=c.lr_min, warmup_portion=c.warmup_portion
            ),
            "beta": schedules.beta(step, self.total, final=c.beta_outer, low=c.beta_min, **portions),
            "eps": schedules.eps(step, self.total, **portions),
            "temperature": schedules.temperature(
                step,
                self.total,
                start=c.temperature_start,
                stop=c.temperature_stop,
                portion=c.temperature_portion,
            ),
        }
        self.model.set_annealing(temperature=values["temperature"], eps=values["eps"])
        return values

    def _renew_n_arrivals(self, batch: Tensor, step: int) -> None:
        """The released rule for the cut of the arrivals.

        Theirs keeps one cut per inference step, from the largest rates averaged over the epoch so far; ours
        is one cut, from the largest rate of this batch at any step.
        """
        model = self.model
        if not isinstance(model, IPVAE) or model.config.n_arrivals != "released" or step % N_EXP_EVERY:
            return
        if schedules.warming_up(step, self.total, portion=self.config.warmup_portion):
            return
        path = model.infer(
            batch, self.steps, record=("log_rate",), seed=mix(self.config.seed, _N_EXP, step),
            sample_offset=self.global_rank * batch.shape[-2], backend=self.backend,
        ).records["log_rate"]  # fmt: skip
        largest = self.trainer.strategy.reduce(path.max().exp(), reduce_op="max")
        model.set_n_arrivals(arrivals_quantile(float(largest)))

    def _clip(self, step: int) -> Tensor:
        """Clips the gradient's norm, at three times the bound during warm-up; returns the norm before."""
        bound = self.config.grad_clip if self.config.grad_clip is not None else math.inf
        if schedules.warming_up(step, self.total, portion=self.config.warmup_portion):
            bound *= 3.0
        return torch.nn.utils.clip_grad_norm_(self._parameters_to_clip, bound)

    def on_train_start(self) -> None:
        """Starts the clock and the progress bar."""
        self.started, self.first_step = time.perf_counter(), self.global_step
        if self.progress and self.global_rank == 0:
            self._bar = tqdm(
                total=self.total, initial=self.global_step, desc="training", unit="step", mininterval=0.5,
                dynamic_ncols=True, smoothing=0.1,
            )  # fmt: skip

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Validates, saves and stops where the step asks for it."""
        step = self.global_step
        if self.validation is not None and (step % self.validate_every == 0 or step == self.total):
            self._validate()
        if self.interrupted:
            self.trainer.should_stop = True
        if step % self.checkpoint_every == 0 or step == self.total or self.interrupted:
            self.trainer.save_checkpoint(self.last)
        if self._bar is not None and (step % self.log_every == 0 or step == self.total):
            self._bar.update(step - self._bar.n)

    def on_train_end(self) -> None:
        """Stops the clock."""
        self.stopped = time.perf_counter()

    def close(self) -> None:
        """Closes the progress bar, however the run ended."""
        if self._bar is not None:
            self._bar.close()

    def _log_row(self, row: dict[str, float]) -> None:
        if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
            raise TrainingError(
                f"training diverged: loss {row['loss']}, gradient norm {row['grad_norm']} at step "
                f"{self.global_step} of {self.total}; lower lr or grad_clip. {self.last} is older and whole"
            )
        if isinstance(self.model, IPVAE) and self.model.n_arrivals is not None:
            row["n_arrivals"] = float(self.model.n_arrivals)
        row["steps_per_second"] = (self.global_step - self.first_step) / (time.perf_counter() - self.started)
        self._write(row)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)

    def _validate(self) -> None:
        assert self.validation is not None
        x = (
            self.validation
            if self.frames is None
            else self.frames(self.validation, mix(self.config.seed, _FRAMES, -1))
        )
        result = evaluate(self.model, x, self.steps, marks=(), backend=self.backend)
        names = ("r2", "squared_error", "zeros", "nelbo")
        self._write({f"val_{name}": float(getattr(result, name)[-1]) for name in names})

    def _write(self, row: dict[str, float]) -> None:
        """A row of the log; what was measured after the same number of steps shares a row of the history."""
        if self.rows and self.rows[-1]["step"] == self.global_step:
            self.rows[-1].update(row)
        else:
            self.rows.append({"step": float(self.global_step), **row})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume must agree with, and refuses to replace good weights by broken ones."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise TrainingError(
                    f"training diverged: {name} is not finite after step {self.global_step} of "
                    f"{self.total}; lower lr or grad_clip. {self.last} is older and whole"
                )
        checkpoint["ipvae"] = self.identity()

    def identity(self) -> dict[str, Any]:
        """What must be equal between a run and its continuation: configurations and the shape of the data."""
        return {
            "model": _plain(self.model.config.to_dict()),
            "train": _plain(self.config.to_dict()),
            "data": list(self.x.shape),
        }


class _AtomicIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and load without executing code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        return cast("dict[str, Any]", load_pickled(path))


def train(
    model: IterativeVAE,
    splits: Splits | Source,
    config: TrainConfig,
    out_dir: str | PathLike[str],
    *,
    resume: bool | str | PathLike[str] | None = None,
    logger: Literal["csv", "tensorboard"] | Logger | None = "csv",
    progress: bool = True,
    log_every: int = 50,
    validate_every: int | None = None,
    checkpoint_every: int | None = None,
    validation_samples: int = 1000,
    frames: Frames | None = None,
    backend: str = "auto",
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "auto",
    callbacks: Sequence[lightning.Callback] = (),
) -> TrainResult:
    """Trains a model in place and leaves it in ``out_dir/model``.

    The first Ctrl-C stops after the step at hand and saves a checkpoint, the second at once; either way
    ``out_dir/checkpoints/last.ckpt`` is whole, and ``resume=True`` continues as if nothing had happened.

    Args:
        model: of either kind.
        splits: inputs [N, M] for training, or an object with such in `train` and in `validation` (which may
            be None): a tensor, a NumPy array, or a Dataset or DataLoader of inputs or of (input, class),
            which is read into memory once. Pixels of 0 to 255 are refused.
        config: the recipe.
        out_dir: of the run; created.
        resume: True: from ``out_dir/checkpoints/last.ckpt``; a path: from that file; None or False: a fresh
            run.
        logger: rows in ``out_dir/logs``, one folder per session, or a Lightning logger; None: no log.
        progress: draw a progress bar.
        log_every: steps between rows of the log, and between looks at the loss.
        validate_every: steps between validations (hard counts, the training's number of inference steps);
            None: a twentieth of the run.
        checkpoint_every: steps between checkpoints; None: a twentieth of the run, 1000 at most.
        validation_samples: validate on the first so many.
        frames: makes moving input: called with inputs [B, M] and a seed, returns [T, B, M], a frame per
            inference step; None: inputs stand still.
        backend: of `ipvae_kernels`.
        accelerator: of `lightning.Trainer`.
        devices: of `lightning.Trainer`; they share out every batch.
        strategy: of `lightning.Trainer`.
        callbacks: more of Lightning's.

    Returns:
        Model, paths and history.

    Raises:
        CheckpointError: `resume` names a file that is missing, damaged, or of another run.
        FileExistsError: `out_dir` holds a run and `resume` was not asked for.
        KeyboardInterrupt: after an interrupt, with the checkpoint to resume from in the message.
        TrainingError: the loss or the weights are no longer finite.
        ValueError: for data that do not fit the model.
    """
    out_dir = Path(out_dir)
    devices, log_every = _count("devices", devices), _count("log_every", log_every)
    validation_samples = _count("validation_samples", validation_samples)
    validate_every, checkpoint_every = (
        None if value is None else _count(name, value)
        for name, value in (("validate_every", validate_every), ("checkpoint_every", checkpoint_every))
    )
    x, validation = _inputs(model, splits, validation_samples)
    total = config.total_steps(len(x))
    often = max(1, total // 20)
    training = Training(
        model, config, x, validation, out_dir, log_every=log_every, validate_every=validate_every or often,
        checkpoint_every=checkpoint_every or min(often, 1000), backend=backend, progress=progress,
        frames=frames,
    )  # fmt: skip
    if min(config.batch_size, len(x)) % devices:
        raise ValueError(
            f"devices: expected a divisor of the batch size {config.batch_size}, found {devices}"
        )
    start = _resume_from(training, resume)
    with _quiet(), _deferred_interrupt(training, devices):
        trainer = lightning.Trainer(
            max_steps=total, max_epochs=-1, logger=_logger(logger, out_dir), callbacks=list(callbacks),
            accelerator=accelerator, devices=devices, strategy=strategy, plugins=[_AtomicIO()],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, log_every_n_steps=log_every, num_sanity_val_steps=0,
            default_root_dir=out_dir,
        )  # fmt: skip
        try:
            trainer.fit(training, ckpt_path=start)
        except SystemExit as stop:  # how Lightning answers an interrupt in the middle of a step
            raise KeyboardInterrupt(_interrupted(training)) from stop
        finally:  # Lightning tells a module of no exception
            training.close()
    if trainer.global_step < total:
        raise KeyboardInterrupt(_interrupted(training))
    if trainer.is_global_zero:
        model.save_pretrained(out_dir / "model")
    seconds = training.stopped - training.started
    history = read_history(out_dir) if logger == "csv" else _columns(training.rows)
    return TrainResult(model, out_dir, total, seconds, history)


def _count(name: str, value: int) -> int:
    return _checks.integer(name, value, 1, 2**31 - 1)


def read_history(out_dir: str | PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """The CSV logs of all sessions of a run as one; where sessions overlap, the later one holds.

    Args:
        out_dir: of the run.

    Returns:
        "step" and every logged measure, [rows] each, NaN where a row has no value; empty without logs.
    """
    rows: list[dict[str, float]] = []
    folders = sorted(
        (Path(out_dir) / "logs").glob("version_*"), key=lambda path: int(path.name.split("_")[1])
    )
    for folder in folders:
        if not (folder / "metrics.csv").is_file():
            continue
        with open(folder / "metrics.csv", newline="") as file:
            session = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
        if session:
            rows = [row for row in rows if row["step"] < session[0]["step"]]
        for row in session:
            if rows and rows[-1]["step"] == row["step"]:
                rows[-1].update(row)
            else:
                rows.append(row)
    return _columns(rows)


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows]) for name in names}


def _inputs(
    model: IterativeVAE, splits: Splits | Source, validation_samples: int
) -> tuple[Tensor, Tensor | None]:
    """Training and validation inputs, flattened and checked."""
    like = model.layer.phi.weight
    inputs: Source
    validation: Source | None = None
    if isinstance(splits, (Tensor, np.ndarray, Dataset, DataLoader)):
        inputs = splits
    elif hasattr(splits, "train") and hasattr(splits, "validation"):
        inputs, validation = splits.train, splits.validation
    else:
        raise TypeError(
            f"splits: expected {KINDS}, or an object with such in train and validation, "
            f"found {type(splits).__name__}"
        )
    x = model.flatten(gather("splits", inputs, like)[0])
    refuse_pixels("splits", x)
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(
            f"splits: expected training inputs [N, {model.config.n_inputs}], found {list(x.shape)}"
        )
    if validation is None or (hasattr(validation, "__len__") and len(validation) == 0):
        return x, None
    return x, model.flatten(gather("splits.validation", validation, like)[0])[:validation_samples]


def _resume_from(training: Training, resume: bool | str | PathLike[str] | None) -> Path | None:
    """The checkpoint to start from, checked to be whole and to be of this run; None for a fresh run."""
    if resume is None or resume is False:
        if training.last.exists():
            raise FileExistsError(
                f"{training.last} is there: resume=True continues that run, another out_dir starts anew"
            )
        return None
    path = training.last if resume is True else Path(resume)
    saved = load_pickled(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("ipvae"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of ipvae training")
    own, found = training.identity(), saved["ipvae"]
    wrong = [
        f"{part}.{name}: expected {own_part.get(name)!r}, found {found_part.get(name)!r}"
        for part in ("model", "train")
        for own_part, found_part in [(own[part], found.get(part, {}))]
        for name in own_part | found_part
        if own_part.get(name) != found_part.get(name)
    ]
    if own["data"] != found.get("data"):
        wrong.append(f"data: expected training inputs {own['data']}, found {found.get('data')}")
    if wrong:
        raise CheckpointError(f"{path}: of another run:\n  " + "\n  ".join(wrong))
    return path


def _interrupted(training: Training) -> str:
    if not training.last.exists():
        return f"interrupted before the first checkpoint of {training.last.parent.parent}"
    return f"interrupted; resume=True continues from {training.last}"


def _logger(logger: Literal["csv", "tensorboard"] | Logger | None, out_dir: Path) -> Logger | Literal[False]:
    if logger is None:
        return False
    if isinstance(logger, Logger):
        return logger
    if logger == "csv":
        return CSVLogger(out_dir, name="logs", flush_logs_every_n_steps=1)
    if logger == "tensorboard":
        return TensorBoardLogger(out_dir, name="logs")
    raise ValueError(f"logger: expected 'csv', 'tensorboard', a Lightning logger or None, found {logger!r}")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, as they come back from a file."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what Lightning says about hardware, tips and loaders; its errors and our own logs stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _deferred_interrupt(training: Training, devices: int) -> Iterator[None]:
    """Lets the first Ctrl-C wait for the end of the step at hand; the second one acts at once.

    Only where one process trains: several could end at different steps and wait for each other.
    """
    if devices > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def wait(number: int, frame: FrameType | None) -> None:
        training.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
