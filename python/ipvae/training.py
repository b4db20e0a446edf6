"""Training with the released recipe, on Lightning.

Everything that changes over a run is a pure function of the optimizer step: schedules (`ipvae.schedules`),
the seed of the noise (`mix`) and the order of the data. A checkpoint therefore holds weights, optimizer and a
step number, no generator state, and a resumed run equals an uninterrupted one bit for bit.
"""

from __future__ import annotations

import bisect
import csv
import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import re
import signal
import socket
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from ipvae_kernels import ElboResult, checks

from . import schedules
from .checkpoint import LAST, CheckpointError, atomic_file, load_pickled
from .config import ModelConfig, TrainConfig
from .data.batches import epoch_order
from .evaluation import Evaluation, evaluate
from .extras import explained
from .inputs import KINDS, Source, gather, refuse_pixels
from .model import IPVAE, IterativeVAE

with explained():
    import filelock
    import lightning.pytorch as lightning
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.callbacks import Checkpoint, ProgressBar
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
    from lightning.pytorch.utilities import rank_zero_only
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

# The released code renews its cut of the arrivals every 200 updates, at this quantile of the largest rate.
N_EXP_EVERY, N_EXP_TAIL = 200, 1e-3
LOCK = ".lock"
# Of several processes each hears a Ctrl-C from the terminal and from its parent: within so many seconds they
# are one.
ECHO_SECONDS = 1.0
DIGEST_BYTES = 2**24
# What of a configuration may differ on resume: how long the run is.
_LENGTH = {("train", "max_steps"), ("train", "epochs")}
# What counts as collapsed at the end of a run, and how many inputs tell where nothing validates.
COLLAPSED_R2, COLLAPSED_SILENCE, OUTCOME_SAMPLES = 0.1, 0.95, 200

_NOISE, _N_EXP, _FRAMES = range(3)


# A batch [B, M] and a seed -> moving input [T, B, M].
Frames = Callable[[Tensor, int], Tensor]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


class CollapseWarning(UserWarning):
    """A model that was trained explains next to nothing or is silent; the message says what to change."""


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
        stopped_by: what ended the run before its last step, "SIGTERM" or "callback" (one that set Lightning's
            ``should_stop``, such as its EarlyStopping or Timer); None: nothing, the run is complete.
    """

    model: IterativeVAE
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
        """Folder for `IterativeVAE.from_pretrained`."""
        return self.out_dir / "model"

    @property
    def checkpoint(self) -> Path:
        """File to resume from."""
        return self.out_dir / LAST


def mix(seed: int, purpose: int, index: int) -> int:
    """A 64-bit seed, a pure and well-mixed function of a seed, what it is for, and a step or epoch."""
    digest = hashlib.blake2b(struct.pack("<qqq", seed, purpose, index), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def collapse(r2: float, zeros: float, model: ModelConfig, config: TrainConfig) -> str | None:
    """What is wrong with the outcome of a run and what to change; None where nothing is.

    Args:
        r2: at the last inference step.
        zeros: share of silent neurons there, in [0, 1].
        model: of the run.
        config: of the run.
    """
    if r2 >= COLLAPSED_R2 and zeros <= COLLAPSED_SILENCE:
        return None
    awake, plain = ModelConfig(n_inputs=1).init_log_rate, TrainConfig(max_steps=1)
    advice = []
    if config.beta_outer > plain.beta_outer:
        beta = f"beta_outer {config.beta_outer:g}; default {plain.beta_outer:g}"
        advice.append(f"a smaller weight of the KL ({beta})")
    if model.kind == "poisson" and model.init_log_rate[1] < awake[0]:
        advice.append(f"neurons that start awake (init_log_rate {model.init_log_rate}; default {awake})")
    if r2 < COLLAPSED_R2 and config.lr != plain.lr:
        advice.append(f"another learning rate (lr {config.lr:g}; default {plain.lr:g})")
    advice += ["more updates (max_steps or epochs)", "inputs in [0, 1] or of variance near 1"]
    return (
        f"the model collapsed: R2 {r2:.3f}, {100 * zeros:.1f} % of the neurons silent at the last inference "
        f"step (expected at least {COLLAPSED_R2:g} and at most {100 * COLLAPSED_SILENCE:g} %). "
        f"Try {'; '.join(advice)}"
    )


def arrivals_quantile(rate: float, tail: float = N_EXP_TAIL) -> int:
    """The smallest n >= 1 with P(Poisson(rate) <= n) >= 1 - tail, the released number of arrivals.

    This n is a number of arrivals, so counts go up to n; the same quantile serves `gumbel_upper_bound` of
    `ipvae_kernels.poisson.eager` as a support size, where they go up to n - 1.

    Raises:
        ValueError: for a rate that is not positive and finite.
    """
    if not 0.0 < rate < math.inf:
        raise ValueError(f"rate: expected a positive, finite number, found {rate}")
    x = torch.tensor(rate, dtype=torch.float64, device="cpu")
    highest = math.ceil(rate + 12.0 * math.sqrt(rate) + 24.0)
    return max(
        bisect.bisect_left(
            range(highest), 1.0 - tail, key=lambda n: float(torch.special.gammaincc(x.new_tensor(n + 1.0), x))
        ),
        1,
    )


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
        self._rows = _share(self.batch_size, rank, world)

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


def _share(n: int, rank: int, world: int) -> slice:
    """The rows of a batch of n that belong to one of several devices."""
    share = n // world
    return slice(rank * share, (rank + 1) * share)


@dataclass(frozen=True)
class _Outcome:
    """How a fit ended; plain values, since another process may have run it."""

    steps: int
    seconds: float
    stopped_by: str | None
    rows: list[dict[str, float]]
    collapsed: str | None = None


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
        self.last = out_dir / LAST
        self.log_every, self.validate_every, self.checkpoint_every = (
            log_every,
            validate_every,
            checkpoint_every,
        )
        self.backend = backend
        self.progress = progress
        self.frames = frames
        self.digest = _digest(x)
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self.first_step = 0
        self.stop: str | None = None
        self.whole: tuple[Path, int] | None = None
        self.outcome: _Outcome | None = None
        self.mailbox: Path | None = None
        self.launcher: Any = None
        self._caller = os.getpid()
        self._stop_heard = 0.0
        self._latest: tuple[Tensor, ...] = ()
        self._bar: tqdm[Any] | None = None

    @property
    def steps(self) -> int:
        """Inference steps per optimizer step."""
        return self.config.steps or self.model.config.t_train

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adamax over all parameters, weight decay included, as released."""
        c = self.config
        return torch.optim.Adamax(
            self._trained_parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay
        )

    def _trained_parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def train_dataloader(self) -> Batches:
        """Batches on this module's device; whole ones where `frames` makes moving input of them."""
        trainer = self.trainer
        share = (trainer.global_rank, trainer.world_size) if self.frames is None else (0, 1)
        return Batches(
            self.x.to(self.device), self.config.batch_size, self.config.seed,
            lambda: trainer.global_step, *share,
        )  # fmt: skip

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One optimizer step, and the row and the validation that are due after it.

        Reads nothing back from an accelerator except where a row is logged.
        """
        c, step = self.config, self.global_step
        if self.frames is not None:  # of the whole batch, so that motion does not depend on the devices
            rows = _share(len(batch), self.global_rank, self.trainer.world_size)
            batch = self.frames(batch, mix(c.seed, _FRAMES, step))[:, rows]
        coefficients = self._anneal(step)
        self._renew_n_arrivals(batch, step)
        optimizer = cast(Any, self.optimizers())
        optimizer.param_groups[0]["lr"] = coefficients["lr"]
        result = self._elbo(batch, coefficients["beta"])
        optimizer.zero_grad()
        self.manual_backward(result.loss)
        self._latest = (result.loss, result.recon, result.kl, self._clip(step))
        due = (step + 1) % self.log_every == 0 or step + 1 == self.total
        if due or batch.device.type == "cpu":
            self._check(terms := self._terms())
        # The first step makes Adamax's counters, on torch's default device unless told otherwise.
        with nullcontext() if optimizer.state else torch.device("cpu"):
            optimizer.step()
        if due:
            self._log_row(terms | coefficients)
        if self.validation is not None and ((step + 1) % self.validate_every == 0 or step + 1 == self.total):
            self._validate()

    def _terms(self) -> dict[str, float]:
        """Loss and gradient norm of the latest step, of all devices together."""
        loss, recon, kl, norm = self._latest
        values = torch.stack([loss.detach(), recon.detach().mean(), kl.detach().mean(), norm])
        values = cast(Tensor, self.trainer.strategy.reduce(values, reduce_op="mean"))
        return dict(zip(("loss", "recon", "kl", "grad_norm"), values.tolist(), strict=True))

    def _elbo(self, batch: Tensor, beta: float) -> ElboResult:
        c, step = self.config, self.global_step
        try:
            result = self.model(
                batch, self.steps, beta=beta, truncate=c.truncate, seed=mix(c.seed, _NOISE, step),
                sample_offset=self.global_rank * batch.shape[-2], backend=self.backend, check=False,
            )  # fmt: skip
        except ValueError as error:
            # The gumbel estimator sums over counts up to a bound that it takes from the largest rate.
            if str(error).startswith("upper_bound"):
                raise self._diverged(f"{error} at step {step + 1} of {self.total}") from error
            raise
        return cast(ElboResult, result)

    def _check(self, terms: Mapping[str, float]) -> None:
        """Stops a run that diverged, before its weights are lost."""
        if not (math.isfinite(terms["loss"]) and math.isfinite(terms["grad_norm"])):
            found = f"loss {terms['loss']:g}, gradient norm {terms['grad_norm']:g}"
            raise self._diverged(f"{found} at step {self.global_step + 1} of {self.total}")

    def _diverged(self, what: str) -> TrainingError:
        updated = self.global_step > 0
        advice = "lower lr or grad_clip" if updated else "scale the inputs or choose other initial values"
        whole = "no checkpoint was saved"
        if self.whole is not None:
            whole = f"{self.whole[0]} of step {self.whole[1]} is older and whole"
        message = f"training diverged: {what}; {advice}; {whole}"
        self._tell(error=message)
        return TrainingError(message)

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
            sample_offset=self.global_rank * batch.shape[-2], backend=self.backend, check=False,
        ).records["log_rate"]  # fmt: skip
        largest = float(self.trainer.strategy.reduce(path.max().exp(), reduce_op="max"))
        if not 0.0 < largest < math.inf:
            raise self._diverged(f"largest rate {largest:g} at step {step + 1} of {self.total}")
        model.set_n_arrivals(arrivals_quantile(largest))

    def _clip(self, step: int) -> Tensor:
        """Clips the gradient's norm, at three times the bound during warm-up; returns the norm before."""
        bound = self.config.grad_clip if self.config.grad_clip is not None else math.inf
        if schedules.warming_up(step, self.total, portion=self.config.warmup_portion):
            bound *= 3.0
        return torch.nn.utils.clip_grad_norm_(self._trained_parameters(), bound)

    def on_train_start(self) -> None:
        """Starts the clock and the progress bar, and hears signals instead of Lightning's handlers."""
        self.listen()
        self.started, self.first_step = time.perf_counter(), self.global_step
        if self.progress and self.global_rank == 0:
            self._bar = tqdm(
                total=self.total, initial=self.global_step, desc="training", unit="step", mininterval=0.5,
                dynamic_ncols=True, smoothing=0.1,
            )  # fmt: skip

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Saves and stops where the step, a signal or a callback asks for it."""
        step = self.global_step
        if self._asked_to_stop():
            self.trainer.should_stop = True
        if step % self.checkpoint_every == 0 or step == self.total or self.trainer.should_stop:
            self._save()
        if self._bar is not None and (step % self.log_every == 0 or step == self.total):
            self._bar.update(step - self._bar.n)

    def on_train_epoch_end(self) -> None:
        """Measures what a callback monitors and no row held yet, lest the first epoch end without it."""
        wanted = {name for c in cast(Any, self.trainer).callbacks if (name := getattr(c, "monitor", None))}
        missing = wanted - set(self.trainer.callback_metrics)
        if missing & {"loss", "recon", "kl", "grad_norm"}:
            self._publish(self._terms())
        if self.validation is not None and any(name.startswith("val_") for name in missing):
            self._validate()

    def on_train_end(self) -> None:
        """Saves what no step has saved, and says how the run ended and what became of the model."""
        if self.whole is None or self.whole[1] != self.global_step:
            self._save()
        stopped_by = None if self.global_step >= self.total else self.stop or "callback"
        seconds = time.perf_counter() - self.started
        collapsed = None
        if stopped_by is None and self.trainer.is_global_zero:
            collapsed = collapse(*self._r2_and_silence(), self.model.config, self.config)
        self.outcome = _Outcome(self.global_step, seconds, stopped_by, self.rows, collapsed)
        if self.trainer.local_rank == 0:
            self._tell(**dataclasses.asdict(self.outcome))

    def _save(self) -> None:
        self.trainer.save_checkpoint(self.last)
        self.whole = self.last, self.global_step

    def _tell(self, **what: Any) -> None:
        """Leaves word for the process that called `train`, where that is another one."""
        if self.mailbox is not None and os.getpid() != self._caller:
            with atomic_file(self.mailbox) as file:
                file.write(json.dumps(what).encode())

    def listen(self) -> None:
        """Lets the first Ctrl-C or SIGTERM wait for the end of the step at hand.

        A second one acts at once. Only a process's main thread can set this up.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.stop is None
        if first:
            self.stop, self._stop_heard = signal.Signals(number).name, time.monotonic()
        if self.launcher is not None:
            self.launcher.kill(number)
        alone = self.launcher is None and os.getpid() == self._caller
        if not first and (alone or time.monotonic() - self._stop_heard > ECHO_SECONDS):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _asked_to_stop(self) -> bool:
        """Whether a signal came, to any of the devices' processes: all must stop at the same step."""
        stop = self.stop is not None
        if self.trainer.world_size > 1:
            stop = self.trainer.strategy.reduce_boolean_decision(stop, all=False)
        return stop

    def close(self) -> None:
        """Closes the progress bar, however the run ended."""
        if self._bar is not None:
            self._bar.close()

    def _log_row(self, row: dict[str, float]) -> None:
        if isinstance(self.model, IPVAE) and self.model.n_arrivals is not None:
            row["n_arrivals"] = float(self.model.n_arrivals)
        row["steps_per_second"] = (self.global_step - self.first_step) / (time.perf_counter() - self.started)
        self._write(row)
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)

    def _evaluate(self, x: Tensor) -> Evaluation:
        if self.frames is not None:
            x = self.frames(x, mix(self.config.seed, _FRAMES, -1))
        return evaluate(self.model, x, self.steps, marks=(), backend=self.backend, check=False)

    def _r2_and_silence(self) -> tuple[float, float]:
        """R2 and silence at the end: of the last validation if it was then, else of some inputs."""
        last = self.rows[-1] if self.rows else {}
        if last.get("step") == self.global_step and "val_r2" in last:
            return last["val_r2"], last["val_zeros"]
        x = self.x if self.validation is None else self.validation
        found = self._evaluate(x[:OUTCOME_SAMPLES])
        return float(found.r2[-1]), float(found.zeros[-1])

    def _validate(self) -> None:
        assert self.validation is not None
        result = self._evaluate(self.validation)
        names = ("r2", "squared_error", "zeros", "nelbo")
        row = {f"val_{name}": float(getattr(result, name)[-1]) for name in names}
        if not math.isfinite(row["val_nelbo"]):
            found = f"-ELBO {row['val_nelbo']:g} of the validation"
            raise self._diverged(f"{found} after step {self.global_step} of {self.total}")
        self._write(row)

    def _write(self, row: dict[str, float]) -> None:
        """A row of the log; what was measured after the same number of steps shares a row of the history."""
        if self.rows and self.rows[-1]["step"] == self.global_step:
            self.rows[-1].update(row)
        else:
            self.rows.append({"step": float(self.global_step), **row})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.global_step)
        self._publish(row)

    def _publish(self, row: Mapping[str, float]) -> None:
        """Gives callbacks that monitor something, and a user's own progress bar, the numbers of the log."""
        tensors = {name: torch.tensor(value, device="cpu") for name, value in row.items()}
        self.trainer.callback_metrics.update(tensors)
        shown = {name: row[name] for name in ("loss", "val_r2") if name in row}
        self.trainer.progress_bar_metrics.update(shown)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a resume must agree with, and refuses to replace good weights by broken ones."""
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                step = self.global_step
                raise self._diverged(f"{name} is not finite after step {step} of {self.total}")
        checkpoint["ipvae"] = self.identity()

    def identity(self) -> dict[str, Any]:
        """What must be equal between a run and its continuation: configurations, data and motion.

        Of the number of steps a continuation may have more.
        """
        return {
            "model": _plain(self.model.config.to_dict()),
            "train": _plain(self.config.to_dict()),
            "steps": self.total,
            "data": list(self.x.shape),
            "digest": self.digest,
            "motion": None if self.frames is None else _describe(self.frames),
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
    devices: int | list[int] = 1,
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
    on one device.

    Args:
        model: of either kind.
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
        strategy: of `lightning.Trainer`.
        callbacks: more of Lightning's.

    Returns:
        Model, paths and history.

    Raises:
        CheckpointError: `resume` names a file that is missing, damaged, or of another run (the message says
            in what it differs).
        FileExistsError: `out_dir` holds a run and `resume` was not asked for.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint to resume from in the message.
        OSError: a file cannot be written, for instance on a full disk; it names the path.
        TrainingError: the loss or the weights are no longer finite (the message names the step and the
            checkpoint that is whole), or another process is training in `out_dir`.
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
    x, validation = _inputs(model, splits, validation_samples)
    total = config.total_steps(len(x))
    often = max(1, total // 20)
    training = Training(
        model, config, x, validation, out_dir, log_every=log_every, validate_every=validate_every or often,
        checkpoint_every=checkpoint_every or min(often, 1000), backend=backend, progress=progress,
        frames=frames,
    )  # fmt: skip
    n_devices = devices if isinstance(devices, int) else len(devices)
    if min(config.batch_size, len(x)) % n_devices:
        raise ValueError(
            f"devices: expected a divisor of the batch size {config.batch_size}, found {n_devices}"
        )
    own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    training.progress = progress and not own_bar
    if resume is not None and resume is not False and not _checkpoint(training, resume).is_file():
        raise CheckpointError(f"{_checkpoint(training, resume)}: no such file")  # and make no folder
    with alone_in(out_dir), _quiet(), _signals_restored(), tempfile.TemporaryDirectory() as mailbox:
        start = _resume_from(training, resume)
        trainer = lightning.Trainer(
            max_steps=total, max_epochs=-1, logger=_logger(logger, out_dir), callbacks=list(callbacks),
            accelerator=accelerator, devices=devices, strategy=strategy, plugins=[_AtomicIO()],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=own_bar, enable_model_summary=False, use_distributed_sampler=False,
            log_every_n_steps=log_every, num_sanity_val_steps=0, default_root_dir=out_dir,
        )  # fmt: skip
        training.mailbox, training.launcher = Path(mailbox) / "outcome.json", trainer.strategy.launcher
        training.listen()
        outcome = _fit(trainer, training, start)
        if outcome.stopped_by == "SIGINT":
            raise KeyboardInterrupt(_interrupted(training))
        if trainer.is_global_zero:
            model.save_pretrained(out_dir / "model")
    if outcome.collapsed is not None:
        warnings.warn(outcome.collapsed, CollapseWarning, stacklevel=2)
    history = read_history(out_dir) if logger == "csv" else _columns(outcome.rows)
    return TrainResult(model, out_dir, outcome.steps, outcome.seconds, history, outcome.stopped_by)


def _fit(trainer: lightning.Trainer, training: Training, start: Path | None) -> _Outcome:
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
        return _Outcome(**told)
    # There was no step to run, or a signal came before the first.
    steps = at_start if training.whole is None else training.whole[1]
    stopped_by = None if steps >= training.total else training.stop or "callback"
    return _Outcome(steps, 0.0, stopped_by, training.rows)


def _read_mailbox(path: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(path.read_text())) if path.is_file() else {}


def _devices(value: int | list[int]) -> int | list[int]:
    """How many devices, or the numbers of which."""
    if not isinstance(value, list):
        return _count("devices", value)
    if not value:
        raise ValueError("devices: expected a number of devices, or numbers of some, found an empty list")
    return [checks.integer("devices", number, 0, 2**31 - 1) for number in value]


def _count(name: str, value: int) -> int:
    return checks.integer(name, value, 1, 2**31 - 1)


def read_history(out_dir: str | PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """The CSV logs of all sessions of a run as one; where sessions overlap, the later one holds.

    Args:
        out_dir: of the run.

    Returns:
        "step" and every logged measure, [rows] each, NaN where a row has no value; empty without logs.
    """
    rows: list[dict[str, float]] = []
    for path in _sessions(Path(out_dir) / "logs"):
        session = _read_session(path)
        if session:
            rows = [row for row in rows if row["step"] < session[0]["step"]]
        for row in session:
            if rows and rows[-1]["step"] == row["step"]:
                rows[-1].update(row)
            else:
                rows.append(row)
    return _columns(rows)


def _sessions(logs: Path) -> list[Path]:
    """The CSV files of a run's sessions, oldest first; other entries of the folder are nobody's business."""
    files = logs.glob("version_*/metrics.csv")
    numbered = [(path.parent.name.removeprefix("version_"), path) for path in files if path.is_file()]
    return [path for n, path in sorted((int(n), path) for n, path in numbered if re.fullmatch("[0-9]+", n))]


def _read_session(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV log. What cannot be read is left out with a warning: no damaged log fails a run."""
    rows, damaged = [], 0
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for cells in csv.DictReader(line.replace("\0", "?") for line in file):
                try:
                    row = {name: float(cell) for name, cell in cells.items() if cell}
                    row["step"] = float(int(row["step"]))
                except (KeyError, TypeError, ValueError, OverflowError):
                    damaged += 1
                else:
                    rows.append(row)
    except (OSError, csv.Error) as error:
        warnings.warn(f"{path}: the history leaves out what cannot be read ({error})", stacklevel=3)
    if damaged:
        warnings.warn(f"{path}: the history leaves out {damaged} damaged row(s)", stacklevel=3)
    return rows


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
    if not torch.isfinite(x).all():
        raise ValueError("splits: expected finite training inputs, found NaN or infinite ones")
    if validation is None or (hasattr(validation, "__len__") and len(validation) == 0):
        return x, None
    held_out = model.flatten(gather("splits.validation", validation, like)[0])
    refuse_pixels("splits.validation", held_out)
    return x, held_out[:validation_samples]


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
    wrong = _differences(training.identity(), saved["ipvae"])
    if wrong:
        raise CheckpointError(
            f"{path}: of another run:\n  " + "\n  ".join(wrong) + "\n  resume with what the run began with, "
            "or train anew in another out_dir"
        )
    training.whole = path, int(saved["global_step"])
    return path


def _differences(own: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What keeps a checkpoint's run from going on as `own`, a line each."""
    wrong = [
        f"{part}.{name}: expected {own_part.get(name)!r}, found {found_part.get(name)!r}"
        for part in ("model", "train")
        for own_part, found_part in [(own[part], found.get(part) or {})]
        for name in own_part | found_part
        if own_part.get(name) != found_part.get(name) and (part, name) not in _LENGTH
    ]
    if own["steps"] < (steps := int(found.get("steps", 0))):
        wrong.append(
            f"steps: expected at least {steps} as before, found {own['steps']}: max_steps or epochs may grow "
            "but not shrink"
        )
    if own["data"] != found.get("data"):
        wrong.append(f"data: expected training inputs {own['data']}, found {found.get('data')}")
    elif own["digest"] != found.get("digest"):
        wrong.append("data: the training inputs have the same shape but other values than those of the run")
    if own["motion"] != found.get("motion"):
        wrong.append(f"motion (frames): expected {own['motion']}, found {found.get('motion')}")
    return wrong


def _digest(values: Tensor | NDArray[Any]) -> str:
    """BLAKE2b over type, shape and bytes, read in pieces; the same on every device."""
    tensor = (torch.from_numpy(values) if isinstance(values, np.ndarray) else values).detach()
    digest = hashlib.blake2b(f"{tensor.dtype} {list(tensor.shape)}".encode(), digest_size=16)
    rows = tensor if tensor.ndim else tensor[None]
    piece = max(1, DIGEST_BYTES // max(1, rows[:1].numel() * rows.element_size()))
    for first in range(0, len(rows), piece):
        part = rows[first : first + piece].cpu().contiguous()
        digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe(value: Any, depth: int = 4) -> str:
    """What a callable or a value in it is, in words that are the same in every session.

    Plain values and tensors that it holds count, to some depth; what a program may change in passing (lists,
    open files, private attributes) does not, nor does the text of a function.
    """
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return _digest(value)
    if inspect.isclass(value):
        return value.__qualname__
    name, held = type(value).__qualname__, dict[Any, Any]()
    if isinstance(value, tuple):
        name, held = "", dict(enumerate(value))
    elif isinstance(value, functools.partial):
        name, held = "partial", {"func": value.func, **dict(enumerate(value.args)), **value.keywords}
    elif inspect.ismethod(value):
        name, held = value.__qualname__, {"self": value.__self__}
    elif inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        name, held = value.__qualname__, {**inspect.getclosurevars(value).nonlocals, **defaults}
    elif callable(value) or dataclasses.is_dataclass(value):
        held = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith("_")}
    if depth == 0 or not held:
        return name
    return f"{name}({', '.join(f'{k}={_describe(v, depth - 1)}' for k, v in held.items())})"


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
def _signals_restored() -> Iterator[None]:
    """Puts the handlers that `Training.listen` replaces back in their place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def alone_in(out_dir: Path, lock: str = LOCK) -> Iterator[None]:
    """Keeps a second run out of a folder.

    The lock is the operating system's, so it goes with its process, however that ends.

    Args:
        out_dir: of the run; created.
        lock: name of the file; those with different ones do not keep each other out.

    Raises:
        TrainingError: another process, or another call in this one, has the lock.
    """
    if getattr(rank_zero_only, "rank", 0):  # of one run with the process of rank 0
        yield
        return
    out_dir.mkdir(parents=True, exist_ok=True)
    owner = out_dir / f"{lock}.owner"
    held = filelock.FileLock(out_dir / lock, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        try:
            who = owner.read_text()
        except OSError:
            who = "another process"
        raise TrainingError(
            f"{out_dir}: {who} is training in this folder; wait for its end, or give another one"
        ) from None
    try:
        with suppress(OSError):  # it only helps a message
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            owner.unlink()
        held.release()
