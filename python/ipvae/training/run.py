"""`train`: a run of the released recipe, with its trainer, logs, checkpoints and signals."""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.multiprocessing.spawn import ProcessRaisedException

from ipvae_kernels import checks

from ..checkpoint import LAST, CheckpointError, atomic_file, load_pickled
from ..extras import explained
from ..inputs import Source
from ..models.base import VAE
from ..models.iterative import IterativeVAE
from ..models.sharding import refuse_unshardable, restore_whole, whole_state
from . import signals
from .config import TrainConfig
from .folder import alone_in
from .history import columns, read_history
from .identity import differences
from .inputs import Splits, training_inputs
from .module import Frames, Training
from .outcome import CollapseWarning, Outcome, TrainingError
from .sharded import NeuronStrategy, is_lost

with explained():
    import lightning.pytorch as lightning
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
    from lightning.pytorch.utilities.exceptions import SIGTERMException


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
        stopped_by: what ended the run before its last step, "SIGTERM" or "callback" (one that set Lightning's
            ``should_stop``, such as its EarlyStopping or Timer); None: nothing, the run is complete.
    """

    model: VAE
    out_dir: Path
    steps: int
    seconds: float
    history: dict[str, NDArray[np.float64]]
    stopped_by: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the run reached its last step; if not, ``resume=True`` continues it."""
        return self.stopped_by is None

    @property
    def model_dir(self) -> Path:
        """Folder for `IPVAE.from_pretrained`."""
        return self.out_dir / "model"

    @property
    def checkpoint(self) -> Path:
        """File to resume from."""
        return self.out_dir / LAST


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
    model: VAE,
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
    devices: int | list[int] = 1,
    shard_neurons: int = 1,
    rank_timeout: float = 600.0,
    strategy: str = "auto",
    callbacks: Sequence[lightning.Callback] = (),
) -> TrainResult:
    """Trains a model in place and leaves it in ``out_dir/model``.

    The first Ctrl-C stops after the step at hand and saves a checkpoint, the second at once; either way
    ``out_dir/checkpoints/last.ckpt`` is whole, and ``resume=True`` continues as if nothing had happened.
    SIGTERM, and a callback that sets Lightning's ``should_stop``, stop after the step at hand, save the
    checkpoint and the model and return: `TrainResult.stopped_by` says which. A script that should end on
    SIGTERM looks there.

    A longer `config` (`max_steps`, `epochs`) extends a run on resume. Schedules are portions of all steps, so
    they are those of the longer run from the step at hand on: the learning rate rises again, and the
    temperature too if the run had been past its fall. Such a run is a run of its own; it does not equal one
    of that length from the start, whose earlier steps had another schedule.

    Callbacks find the columns of the log in ``trainer.callback_metrics`` (loss, recon, kl, grad_norm; val_r2,
    val_squared_error, val_zeros, val_nelbo; ...) from the step on at which a row is logged, or from the end
    of the first epoch if one monitors them.

    With several devices each takes its rows of every batch with the noise and the motion that these rows have
    on one device; with `shard_neurons`, so many devices take the same rows and share the neurons of the
    model. Lightning starts the other processes by running the script again, or torchrun does. A checkpoint
    goes on with any number of devices and shards. If a process is lost, the others end with a
    `TrainingError`.

    Args:
        model: with either cell.
        splits: inputs [N, M] for training, or an object with such in `train` and in `validation` (which may
            be None): a tensor, a NumPy array, or a Dataset or DataLoader of inputs or of (input, class),
            which is read into memory once. Pixels of 0 to 255 are refused.
        config: the recipe.
        out_dir: of the run; created.
        resume: True: from ``out_dir/checkpoints/last.ckpt``; a path: from that file; None or False: a fresh
            run. Configurations, inputs and `frames` must be those the run began with, but for more steps.
        logger: rows in ``out_dir/logs``, one folder per session, or a Lightning logger; None: no log.
        progress: draw a progress bar, unless `callbacks` holds one of Lightning's.
        log_every: steps between rows of the log, and on an accelerator between looks at the loss.
        validate_every: steps between validations (hard counts, the training's number of inference steps);
            None: a twentieth of the run.
        checkpoint_every: steps between checkpoints; None: a twentieth of the run, 1000 at most.
        validation_samples: validate on the first so many.
        frames: makes moving input: called with inputs [B, M] and a seed, returns [T, B, M], a frame per
            inference step; None: inputs stand still. A resume knows it by its name and by the plain values
            and tensors in its defaults, closure, or public attributes.
        backend: of `ipvae_kernels`.
        accelerator: of `lightning.Trainer`.
        devices: of `lightning.Trainer`: how many, or the numbers of which; they share out every batch.
        shard_neurons: devices that share the neurons of a model, a divisor of the number of devices: for
            dictionaries that do not fit one device. Of iterative models with a linear decoder.
        rank_timeout: with `shard_neurons`, seconds that a process waits for the others.
        strategy: of `lightning.Trainer`; with `shard_neurons` "auto".
        callbacks: more of Lightning's.

    Returns:
        Model, paths and history. With `shard_neurons` the model is whole in the first process alone.

    Raises:
        CheckpointError: `resume` names a file that is missing, damaged, or of another run (the message says
            in what it differs).
        FileExistsError: `out_dir` holds a run and `resume` was not asked for.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint to resume from in the message.
        OSError: a file cannot be written, for instance on a full disk; it names the path.
        ConfigError: `shard_neurons` of a model whose neurons cannot be shared.
        TrainingError: the loss or the weights are no longer finite (the message names the step and the
            checkpoint that is whole), another process is training in `out_dir`, or a process of this run is
            lost.
        ValueError: for data that do not fit the model or are not finite.

    Warns:
        CollapseWarning: R2 under .1 or over 95 % of the neurons silent at the end; says what to change.
    """
    out_dir = Path(out_dir)
    log_every = _count("log_every", log_every)
    devices = _devices(devices)
    validation_samples = _count("validation_samples", validation_samples)
    validate_every, checkpoint_every = (
        None if value is None else _count(name, value)
        for name, value in (("validate_every", validate_every), ("checkpoint_every", checkpoint_every))
    )
    x, validation = training_inputs(model, splits, validation_samples)
    total = config.total_steps(len(x))
    often = max(1, total // 20)
    training = Training(
        model, config, x, validation, out_dir, log_every=log_every, validate_every=validate_every or often,
        checkpoint_every=checkpoint_every or min(often, 1000), backend=backend, progress=progress,
        frames=frames,
    )  # fmt: skip
    replicas = _replicas(model, devices, shard_neurons, strategy)
    if min(config.batch_size, len(x)) % replicas:
        raise ValueError(
            f"devices: expected a divisor of the batch size {config.batch_size}, found {replicas}"
        )
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    training.progress = progress and not own_bar
    if resume is not None and resume is not False and not _checkpoint(training, resume).is_file():
        raise CheckpointError(f"{_checkpoint(training, resume)}: no such file")  # and make no folder
    with alone_in(out_dir), _quiet(), signals.restored(), tempfile.TemporaryDirectory() as mailbox:
        start = _resume_from(training, resume)
        trainer = lightning.Trainer(
            max_steps=total, max_epochs=-1, logger=_logger(logger, out_dir), callbacks=list(callbacks),
            accelerator=accelerator, devices=devices, plugins=[_AtomicIO()],
            strategy=strategy if shard_neurons == 1 else NeuronStrategy(shard_neurons, rank_timeout),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=own_bar, enable_model_summary=False, use_distributed_sampler=False,
            log_every_n_steps=log_every, num_sanity_val_steps=0, default_root_dir=out_dir,
        )  # fmt: skip
        training.mailbox, training.stop.launcher = Path(mailbox) / "outcome.json", trainer.strategy.launcher
        training.stop.listen()
        outcome = _fit(trainer, training, start)
        if outcome.stopped_by == "SIGINT":
            raise KeyboardInterrupt(_interrupted(training))
        _make_whole(model)
        if trainer.is_global_zero:
            model.save_pretrained(out_dir / "model")
    if outcome.collapsed is not None:
        warnings.warn(outcome.collapsed, CollapseWarning, stacklevel=2)
    history = read_history(out_dir) if logger == "csv" else columns(outcome.rows)
    return TrainResult(model, out_dir, outcome.steps, outcome.seconds, history, outcome.stopped_by)


def _fit(trainer: lightning.Trainer, training: Training, start: Path | None) -> Outcome:
    """Runs the steps, here or in the processes that the strategy starts, and says how they ended."""
    assert training.mailbox is not None
    at_start = 0 if training.whole is None else training.whole[1]
    try:
        trainer.fit(training, ckpt_path=start)
    except SystemExit as stop:
        # Lightning's answer to a Ctrl-C in the middle of a step, and to a SIGTERM before its first.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(_interrupted(training)) from stop
        if not isinstance(stop, SIGTERMException):
            raise
    except ProcessRaisedException:
        told = _read_mailbox(training.mailbox)
        if "error" in told:
            raise TrainingError(told["error"]) from None
        raise
    except RuntimeError as error:
        if trainer.world_size == 1 or isinstance(error, TrainingError) or not is_lost(error):
            raise
        if training.stop.launcher is not None:  # those that it started and that hang would stay
            training.stop.launcher.kill(signal.SIGKILL)
        raise TrainingError(
            f"another process of this run is gone or did not answer ({str(error).splitlines()[0]}); "
            f"{_interrupted(training)}"
        ) from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(training.last.parent.parent)) from error
    finally:  # Lightning tells a module of no exception
        training.close()
    if training.outcome is not None:
        return training.outcome
    told = _read_mailbox(training.mailbox)
    if told:
        return Outcome(**told)
    # There was no step to run, or a signal came before the first.
    steps = at_start if training.whole is None else training.whole[1]
    stopped_by = None if steps >= training.total else training.stop.heard or "callback"
    return Outcome(steps, 0.0, stopped_by, training.rows)


def _read_mailbox(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text())) if path.is_file() else {}


def _replicas(model: VAE, devices: int | list[int], shards: int, strategy: str) -> int:
    """How many models the devices make, each shared by `shards` of them."""
    n_devices = devices if isinstance(devices, int) else len(devices)
    shards = _count("shard_neurons", shards)
    if shards == 1:
        return n_devices
    refuse_unshardable(model)
    if strategy != "auto":
        raise ValueError(f"strategy: expected 'auto' beside shard_neurons, found {strategy!r}")
    if n_devices % shards:
        raise ValueError(f"shard_neurons: expected a divisor of {n_devices} devices, found {shards}")
    return n_devices // shards


def _make_whole(model: VAE) -> None:
    """Brings the neurons of all processes together in the first one, where processes shared them."""
    if not isinstance(model, IterativeVAE) or model.group is None:
        return
    first, state = distributed.get_rank(model.group) == 0, whole_state(model)
    if first:
        restore_whole(model, state)


def _devices(value: int | list[int]) -> int | list[int]:
    """How many devices, or the numbers of which."""
    if not isinstance(value, list):
        return _count("devices", value)
    if not value:
        raise ValueError("devices: expected a number of devices, or numbers of some, found an empty list")
    return [checks.integer("devices", number, 0, 2**31 - 1) for number in value]


def _count(name: str, value: int) -> int:
    return checks.integer(name, value, 1, 2**31 - 1)


def _checkpoint(training: Training, resume: Literal[True] | str | PathLike[str]) -> Path:
    return training.last if resume is True else Path(resume)


def _resume_from(training: Training, resume: bool | str | PathLike[str] | None) -> Path | None:
    """The checkpoint to start from, checked to be whole and to be of this run; None for a fresh run."""
    if resume is None or resume is False:
        if training.last.exists():
            raise FileExistsError(
                f"{training.last} is there: resume=True continues that run, another out_dir starts anew"
            )
        return None
    path = _checkpoint(training, resume)
    saved = load_pickled(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("ipvae"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of ipvae training")
    wrong = differences(training.identity(), saved["ipvae"])
    if wrong:
        raise CheckpointError(
            f"{path}: of another run:\n  " + "\n  ".join(wrong) + "\n  resume with what the run began with, "
            "or train anew in another out_dir"
        )
    training.whole = path, int(saved["global_step"])
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
        with explained():  # Lightning would miss it at the first row only
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401
        return TensorBoardLogger(out_dir, name="logs")
    raise ValueError(f"logger: expected 'csv', 'tensorboard', a Lightning logger or None, found {logger!r}")


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
