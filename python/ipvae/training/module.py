"""The released recipe as a Lightning module, `Training`.

Everything that changes over a run is a pure function of the optimizer step: schedules
(`ipvae.training.schedules`), the seed of the noise (`mix`) and the order of the data. A checkpoint therefore
holds weights, optimizer and a step number, no generator state, and a resumed run equals an uninterrupted one
bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ipvae_kernels import ElboResult, arrivals_quantile

from ..checkpoint import LAST, atomic_file
from ..evaluation.evaluate import Evaluation, evaluate
from ..extras import explained
from ..models.base import VAE
from ..models.iterative import IterativeVAE
from ..models.poisson import IPVAE
from ..models.sharding import gradient_norm
from . import schedules
from .batches import FRAMES, N_EXP, NOISE, Batches, mix, share
from .config import TrainConfig
from .identity import describe, digest, plain
from .outcome import Outcome, TrainingError, collapse
from .sharded import place_of, split_neurons
from .signals import StopRequest

with explained():
    import lightning.pytorch as lightning
    from tqdm.auto import tqdm  # type: ignore[import-untyped]


# The released code renews its cut of the arrivals every 200 updates.
N_EXP_EVERY = 200
# A model that reconstructed and now is off by ten times the inputs' deviation has blown up, though its loss
# is finite: MNIST with drive="expected" and a clamp of 10 went from .92 to -10^7 and never came back.
BLOWN_UP = -100.0
# How many inputs tell the outcome of a run where nothing validates.
OUTCOME_SAMPLES = 200
# A batch [B, M] and a seed -> moving input [T, B, M].
Frames = Callable[[Tensor, int], Tensor]


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
        model: VAE,
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
        self.digest = digest(x)
        self.rows: list[dict[str, float]] = []
        self.started = 0.0
        self.first_step = 0
        self.stop = StopRequest()
        self.whole: tuple[Path, int] | None = None
        self.outcome: Outcome | None = None
        self.mailbox: Path | None = None
        self._latest: tuple[Tensor, ...] = ()
        self._bar: tqdm[Any] | None = None

    @property
    def steps(self) -> int:
        """Inference steps per optimizer step."""
        return self.config.steps or self.model.t_train

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
        return Batches(
            self.x.to(self.device), self.config.batch_size, self.config.seed,
            lambda: trainer.global_step, *(place_of(trainer) if self.frames is None else (0, 1)),
        )  # fmt: skip

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One optimizer step, and the row and the validation that are due after it.

        Reads nothing back from an accelerator except where a row is logged.
        """
        c, step = self.config, self.global_step
        if self.frames is not None:  # of the whole batch, so that motion does not depend on the devices
            rows = share(len(batch), *place_of(self.trainer))
            batch = self.frames(batch, mix(c.seed, FRAMES, step))[:, rows]
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
                batch, self.steps, beta=beta, truncate=c.truncate, seed=mix(c.seed, NOISE, step),
                sample_offset=self._offset(batch), backend=self.backend, check=False,
            )  # fmt: skip
        except ValueError as error:
            # The gumbel estimator sums over counts up to a bound that it takes from the largest rate.
            if str(error).startswith("upper_bound"):
                raise self._diverged(f"{error} at step {step + 1} of {self.total}") from error
            raise
        return cast(ElboResult, result)

    def _offset(self, batch: Tensor) -> int:
        """Index of the first row of this process's share among those of all."""
        return place_of(self.trainer)[0] * batch.shape[-2]

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
            batch, self.steps, record=("log_rate",), seed=mix(self.config.seed, N_EXP, step),
            sample_offset=self._offset(batch), backend=self.backend, check=False,
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
        if isinstance(self.model, IterativeVAE) and self.model.group is not None:
            norm = gradient_norm(self.model)
            torch.nn.utils.clip_grads_with_norm_(self._trained_parameters(), bound, norm)
            return norm
        return torch.nn.utils.clip_grad_norm_(self._trained_parameters(), bound)

    def configure_model(self) -> None:
        """Where processes share the run: it is one, and each keeps its neurons."""
        split_neurons(self)

    def on_train_start(self) -> None:
        """Starts the clock and the progress bar, and hears signals instead of Lightning's handlers."""
        self.stop.listen()
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
        stopped_by = None if self.global_step >= self.total else self.stop.heard or "callback"
        seconds = time.perf_counter() - self.started
        collapsed = None
        if stopped_by is None and place_of(self.trainer)[0] == 0:
            collapsed = collapse(*self._r2_and_silence(), self.model.config, self.config)
        self.outcome = Outcome(self.global_step, seconds, stopped_by, self.rows, collapsed)
        if self.trainer.local_rank == 0:
            self._tell(**dataclasses.asdict(self.outcome))

    def _save(self) -> None:
        self.trainer.save_checkpoint(self.last)
        self.whole = self.last, self.global_step

    def _tell(self, **what: Any) -> None:
        """Leaves word for the process that called `train`, where that is another one."""
        if self.mailbox is not None and self.stop.elsewhere:
            with atomic_file(self.mailbox) as file:
                file.write(json.dumps(what).encode())

    def _asked_to_stop(self) -> bool:
        """Whether a signal came, to any of the devices' processes: all must stop at the same step."""
        return self._anywhere(self.stop.heard is not None)

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so in any process of the run."""
        if self.trainer.world_size > 1:
            here = self.trainer.strategy.reduce_boolean_decision(here, all=False)
        return here

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
            x = self.frames(x, mix(self.config.seed, FRAMES, -1))
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
        nelbo = ("nelbo",) if self.model.has_free_energy else ()
        names = ("r2", "squared_error", "zeros", *nelbo)
        row = {f"val_{name}": float(getattr(result, name)[-1]) for name in names}
        of = "nelbo" if nelbo else "squared_error"
        if not math.isfinite(row[f"val_{of}"]):
            what = "-ELBO" if nelbo else "squared error"
            found = f"{what} {row[f'val_{of}']:g} of the validation"
            raise self._diverged(f"{found} after step {self.global_step} of {self.total}")
        best = max((before.get("val_r2", -math.inf) for before in self.rows), default=-math.inf)
        if best >= 0.0 and row["val_r2"] < BLOWN_UP:
            found = f"R2 of the validation fell from {best:.2f} to {row['val_r2']:.3g}"
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
        parameters = self.model.named_parameters()
        broken = [name for name, parameter in parameters if not torch.isfinite(parameter).all()]
        if self._anywhere(bool(broken)):
            names = ", ".join(broken) or "the part of another process"
            raise self._diverged(f"{names} is not finite after step {self.global_step} of {self.total}")
        checkpoint["ipvae"] = self.identity()

    def identity(self) -> dict[str, Any]:
        """What must be equal between a run and its continuation: configurations, data and motion.

        Of the number of steps a continuation may have more.
        """
        return {
            "model": plain(self.model.config.to_dict()),
            "train": plain(self.config.to_dict()),
            "steps": self.total,
            "data": list(self.x.shape),
            "digest": self.digest,
            "motion": None if self.frames is None else describe(self.frames),
        }
