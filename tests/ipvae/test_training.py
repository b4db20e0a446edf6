"""`ipvae.training.module`: the recipe, and that a resumed run is the run that was not interrupted."""

import dataclasses
import functools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from ipvae import IPVAE, CheckpointError, IterativeVAE, TrainConfig, load_model, train
from ipvae.models.registry import FAMILIES
from ipvae.training import schedules
from ipvae.training.batches import Batches, mix
from ipvae.training.folder import alone_in
from ipvae.training.history import read_history
from ipvae.training.module import Training
from ipvae.training.outcome import TrainingError
from ipvae.training.run import TrainResult
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer, TQDMProgressBar
from torch import Tensor

CONFIG = TrainConfig(lr=0.02, max_steps=20, batch_size=8, beta_outer=2.0, seed=5)


@dataclasses.dataclass
class Splits:
    train: Tensor
    validation: Tensor | None


@pytest.fixture(scope="module")
def x() -> Tensor:
    """50 samples: 6 batches of 8 an epoch, so that 20 steps end within the fourth."""
    return torch.randn(50, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(x: Tensor, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that nothing cut."""
    return run(fresh(), x, tmp_path_factory.mktemp("whole"))


def fresh(**options: Any) -> IterativeVAE:
    own: dict[str, Any] = {"estimator": "cubic", "init_log_rate": (-6.0, -4.0)}
    family = FAMILIES[options.pop("cell", "poisson")]
    sizes = {"n_inputs": 10, "n_latents": 12, "t_train": 4, "init_scale": 0.1}
    return family(family.config_class(**{**sizes, **(own if family is IPVAE else {}), **options}))


def run(
    model: IterativeVAE, data: Any, out: Path, config: TrainConfig = CONFIG, **options: Any
) -> TrainResult:
    settings = {"progress": False, "accelerator": "cpu", "logger": None}
    return train(model, data, config, out, **{**settings, **options})


def same(a: TrainResult, b: TrainResult) -> None:
    """Weights, buffers and optimizer are equal bit for bit."""
    first, second = a.model.state_dict(), b.model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [torch.load(r.checkpoint, weights_only=True)["optimizer_states"][0]["state"] for r in (a, b)]
    for index, state in states[0].items():
        assert all(torch.equal(state[name], states[1][index][name]) for name in state)


class Stop(Exception):
    """Stands for a power cut."""


class Cut(lightning.Callback):
    """Raises or signals when training reaches a step."""

    def __init__(self, step: int, what: type[BaseException] | signal.Signals) -> None:
        self.step, self.what = step, what

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if isinstance(self.what, signal.Signals):
                os.kill(os.getpid(), self.what)
            else:
                raise self.what


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (10, {}),
        (6, {}),  # the end of an epoch
        (1, {}),
        (19, {"n_arrivals": "released", "estimator": "sigmoid", "kl": "released"}),
        (12, {"cell": "gaussian", "activation": "relu"}),
    ],
    ids=["within an epoch", "epoch end", "first step", "last step, released", "gaussian, epoch end"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    step: int, options: dict[str, Any], x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipvae.training.module.N_EXP_EVERY", 3)
    whole = run(fresh(**options), x, tmp_path / "whole", checkpoint_every=7)
    with pytest.raises(Stop):
        run(fresh(**options), x, tmp_path / "cut", checkpoint_every=step, callbacks=[Cut(step, Stop)])
    torch.manual_seed(123)  # no generator state is needed
    same(run(fresh(**options), x, tmp_path / "cut", resume=True), whole)


def test_ctrl_c_saves_the_step_at_hand(x: Tensor, whole: TrainResult, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"resume=True continues from .*last\.ckpt"):
        run(fresh(), x, tmp_path / "cut", checkpoint_every=100, callbacks=[Cut(9, signal.SIGINT)])
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 10
    assert not (tmp_path / "cut/model").exists()
    same(run(fresh(), x, tmp_path / "cut", resume=True), whole)


class At(lightning.Callback):
    """Does something in one of Lightning's hooks when training is at a step."""

    def __init__(self, hook: str, step: int, do: Callable[[lightning.Trainer], None]) -> None:
        def act(trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                do(trainer)

        setattr(self, hook, act)


def stop(trainer: lightning.Trainer) -> None:
    trainer.should_stop = True


def saved_step(folder: Path) -> int:
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return int(saved["global_step"])


@pytest.mark.parametrize(
    ("callback", "steps", "by"),
    [
        (At("on_train_batch_end", 9, stop), 9, "callback"),
        (At("on_train_batch_start", 9, stop), 10, "callback"),
        (At("on_train_epoch_end", 12, stop), 12, "callback"),
        (EarlyStopping("loss", patience=1, min_delta=1e9), 12, "callback"),
        (Cut(9, signal.SIGTERM), 10, "SIGTERM"),
    ],
    ids=["within an epoch", "within a step", "epoch end", "early stopping", "SIGTERM"],
)
def test_a_stop_is_saved_and_returned(
    callback: lightning.Callback, steps: int, by: str, x: Tensor, whole: TrainResult, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    result = run(fresh(), x, tmp_path / "cut", checkpoint_every=100, callbacks=[callback])
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (result.steps, result.stopped_by, result.complete) == (steps, by, False)
    assert saved_step(tmp_path / "cut") == steps
    saved = load_model(result.model_dir).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in result.model.state_dict().items())
    resumed = run(fresh(), x, tmp_path / "cut", resume=True)
    assert resumed.complete
    same(resumed, whole)


def test_a_timer_stops_a_run(x: Tensor, tmp_path: Path) -> None:
    result = run(fresh(), x, tmp_path, callbacks=[Timer(duration={"milliseconds": 1})])
    assert result.stopped_by == "callback"
    assert result.steps < 20
    assert saved_step(tmp_path) == result.steps


def test_callbacks_find_the_columns_of_the_log(x: Tensor, tmp_path: Path) -> None:
    """Also what is due only after the end of the first epoch, where both look for the first time."""
    best = ModelCheckpoint(tmp_path / "best", monitor="val_r2", mode="max", save_top_k=-1)
    patient = EarlyStopping("kl", patience=100)
    seen: dict[str, float] = {}

    def look(trainer: lightning.Trainer) -> None:
        seen.update({name: float(value) for name, value in trainer.callback_metrics.items()})

    result = run(
        fresh(), Splits(x, x[:9]), tmp_path, log_every=5, validate_every=10,
        callbacks=[At("on_train_batch_end", 20, look), best, patient],
    )  # fmt: skip
    last = {name: values[-1] for name, values in result.history.items() if name != "step"}
    assert {"loss", "recon", "kl", "grad_norm", "lr", "beta", "val_r2", "val_nelbo"} <= set(last)
    assert seen == pytest.approx(last, rel=1e-6)
    assert patient.best_score <= last["kl"]
    assert float(best.best_model_score) == pytest.approx(np.nanmax(result.history["val_r2"]))
    first = sorted((tmp_path / "best").iterdir())[0]
    same(run(fresh(), x, tmp_path / "again", resume=first), result)


def test_a_progress_bar_of_the_users_replaces_ours(
    x: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(fresh(), x, tmp_path, progress=True, log_every=5, callbacks=[TQDMProgressBar()])
    shown = capfd.readouterr()
    assert "20/20" not in shown.err
    assert "loss=" in shown.out + shown.err


def drift(x: Tensor, seed: int) -> Tensor:
    """Moving input in which each row moves in its own way."""
    generator = torch.Generator().manual_seed(seed % 2**31)
    return x + torch.randn(4, *x.shape, generator=generator)


def test_two_devices_are_one_run(x: Tensor, tmp_path: Path) -> None:
    """Launched as in a notebook: the rows have the noise and the motion that they have on one device."""
    one = run(fresh(), x, tmp_path / "one", log_every=5, frames=drift)
    two = run(fresh(), x, tmp_path / "two", log_every=5, frames=drift, devices=2, strategy="ddp_fork")
    assert (two.steps, two.complete, saved_step(tmp_path / "two")) == (20, True, 20)
    assert two.seconds > 0
    for name, expected in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)
    assert two.history["step"].tolist() == [5, 10, 15, 20]
    np.testing.assert_allclose(two.history["loss"], one.history["loss"], rtol=1e-5)


def test_a_model_that_blows_up_with_a_finite_loss_is_reported(
    x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2 of the validation below -100 after it had been above 0; a bad start is none, it may recover."""
    real, found = Training._evaluate, iter([-500.0, 0.3, -99.0, 0.4, -101.0])

    def measured(self: Training, inputs: Tensor) -> Any:
        return dataclasses.replace(real(self, inputs), r2=np.array([next(found)]))

    monkeypatch.setattr(Training, "_evaluate", measured)
    with pytest.raises(
        TrainingError, match=r"R2 of the validation fell from 0\.40 to -101 after step 15 of 20"
    ):
        train(fresh(), Splits(x, x[:10]), CONFIG, tmp_path, validate_every=3, progress=False)


def test_two_devices_stop_at_the_same_step(x: Tensor, tmp_path: Path) -> None:
    """One of them gets the signal; a run that diverges is a TrainingError here as well."""

    def terminate_one(trainer: lightning.Trainer) -> None:
        if trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    two: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork"}
    cut = At("on_train_batch_start", 9, terminate_one)
    result = run(fresh(), x, tmp_path / "cut", callbacks=[cut], **two)
    assert (result.steps, result.complete, saved_step(tmp_path / "cut")) == (10, False, 10)
    with pytest.raises(TrainingError, match="training diverged: loss inf"):
        run(fresh(), 1e25 * x, tmp_path / "lost", **two)


def test_an_interrupt_within_a_step_leaves_the_last_checkpoint(
    x: Tensor, whole: TrainResult, tmp_path: Path
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="resume=True continues"):
        run(fresh(), x, tmp_path / "cut", checkpoint_every=4, callbacks=[Cut(10, KeyboardInterrupt)])
    assert signal.getsignal(signal.SIGINT) is handler
    same(run(fresh(), x, tmp_path / "cut", resume=tmp_path / "cut/checkpoints/last.ckpt"), whole)


def test_an_interrupt_before_the_first_checkpoint_says_so(x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint"):
        run(fresh(), x, tmp_path, checkpoint_every=10, callbacks=[Cut(2, KeyboardInterrupt)])


def test_training_is_the_recipe_written_out(x: Tensor, tmp_path: Path) -> None:
    """Adamax by hand, without Lightning: schedules, clipping wider in the warm-up, seeds and order."""
    config = dataclasses.replace(CONFIG, warmup_portion=0.2, grad_clip=50.0)
    trained = run(fresh(), x, tmp_path, config).model
    model = fresh()
    parameters = list(model.parameters())
    average = [torch.zeros_like(p) for p in parameters]
    largest = [torch.zeros_like(p) for p in parameters]
    clipped = 0
    for step in range(20):
        if step % 6 == 0:
            batches = iter(Batches(x, 8, 5, lambda step=step: step))
        model.set_annealing(temperature=schedules.temperature(step, 20), eps=schedules.eps(step, 20))
        beta = schedules.beta(step, 20, final=2.0)
        loss = model(next(batches), beta=beta, seed=mix(5, 0, step)).loss
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        bound = 150.0 if step < 4 else 50.0
        clipped += norm > bound
        lr = (
            0.02 * step / 4
            if step < 4
            else 1e-5 + (0.02 - 1e-5) * (1 + math.cos(math.pi * (step - 4) / 16)) / 2
        )
        for p, g, m, v in zip(parameters, gradients, average, largest, strict=True):
            g = g * min(1.0, bound / (norm + 1e-6)) + 3e-4 * p.detach()
            m.mul_(0.9).add_(0.1 * g)
            torch.maximum(0.999 * v, g.abs() + 1e-8, out=v)
            p.data -= lr / (1 - 0.9 ** (step + 1)) * m / v
    assert 0 < clipped < 20
    for (name, expected), found in zip(model.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=2e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((200, 4), 0.5), generator=generator) @ torch.randn(
        4, 10, generator=generator
    )
    config = TrainConfig(lr=0.02, max_steps=150, batch_size=50, beta_outer=1.0)
    result = run(fresh(), x, tmp_path, config, log_every=10)
    loss = result.history["loss"]
    assert loss[-1] < 0.7 * loss[0]


def test_the_result_says_where_things_are(x: Tensor, tmp_path: Path) -> None:
    model = fresh()
    result = run(model, Splits(x, x[:20]), tmp_path, logger="csv", log_every=5, validate_every=10)
    assert result.model is model
    assert (result.steps, result.out_dir) == (20, tmp_path)
    assert result.seconds > 0
    loaded = load_model(result.model_dir)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    history = result.history
    assert history["step"].tolist() == [5, 10, 15, 20]
    assert np.isfinite(history["loss"]).all()
    assert np.isnan(history["val_r2"]).tolist() == [True, False, True, False]
    np.testing.assert_allclose(
        history["lr"], [schedules.learning_rate(s, 20, peak=0.02) for s in (4, 9, 14, 19)]
    )
    assert (tmp_path / "logs/version_0/metrics.csv").is_file()


def test_logs_of_sessions_are_one_history(x: Tensor, tmp_path: Path) -> None:
    options: dict[str, Any] = {"logger": "csv", "log_every": 2}
    with pytest.raises(Stop):
        run(fresh(), x, tmp_path, checkpoint_every=7, callbacks=[Cut(13, Stop)], **options)
    resumed = run(fresh(), x, tmp_path, resume=True, **options).history
    assert resumed["step"].tolist() == list(range(2, 21, 2))
    whole = run(fresh(), x, tmp_path / "whole", **options).history
    np.testing.assert_array_equal(resumed["loss"], whole["loss"])
    assert read_history(tmp_path / "nothing") == {}


def test_validation_leaves_training_alone(x: Tensor, whole: TrainResult, tmp_path: Path) -> None:
    same(run(fresh(), Splits(x, x[:9]), tmp_path, validate_every=3), whole)


def test_an_empty_validation_split_is_none(x: Tensor, tmp_path: Path) -> None:
    result = run(fresh(), Splits(x, x[:0]), tmp_path, log_every=10)
    assert "val_r2" not in result.history


def test_moving_input_is_made_per_batch(x: Tensor, tmp_path: Path) -> None:
    seeds: list[int] = []

    def frames(batch: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return torch.stack([batch.roll(t, dims=-1) for t in range(4)])

    run(fresh(), Splits(x, x[:5]), tmp_path, frames=frames, validate_every=20)
    assert len(seeds) == 21
    assert len(set(seeds)) == 21


def test_a_run_is_not_overwritten(x: Tensor, tmp_path: Path) -> None:
    run(fresh(), x, tmp_path)
    with pytest.raises(FileExistsError, match="resume=True continues that run"):
        run(fresh(), x, tmp_path)


def test_resuming_a_finished_run_changes_nothing(x: Tensor, tmp_path: Path) -> None:
    first = run(fresh(), x, tmp_path)
    again = run(fresh(), x, tmp_path, resume=True)
    same(again, first)


def test_resume_needs_the_same_run(x: Tensor, tmp_path: Path) -> None:
    run(fresh(), x, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        run(fresh(t_train=5), x[:40], tmp_path, dataclasses.replace(CONFIG, lr=0.01), resume=True)
    message = str(caught.value)
    assert "model.t_train: expected 5, found 4" in message
    assert "train.lr: expected 0.01, found 0.02" in message
    assert "data: expected training inputs [40, 10], found [50, 10]" in message


def test_resume_needs_the_same_values(x: Tensor, tmp_path: Path) -> None:
    run(fresh(), x, tmp_path)
    other = x.clone()
    other[-1, -1] += 1.0
    with pytest.raises(CheckpointError, match="the same shape but other values") as caught:
        run(fresh(), other, tmp_path, resume=True)
    assert "another out_dir" in str(caught.value)
    run(fresh(), x.clone(), tmp_path, resume=True)


class Slide:
    """Moving input with a setting."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._calls = 0

    def __call__(self, batch: Tensor, seed: int) -> Tensor:
        self._calls += 1
        return torch.stack([batch.roll(self.pixels * t, dims=-1) for t in range(4)])


def sliding(pixels: int) -> Callable[[Tensor, int], Tensor]:
    """The same with the setting in a closure."""
    calls: list[int] = []

    def frames(batch: Tensor, seed: int) -> Tensor:
        calls.append(seed)
        return Slide(pixels)(batch, seed)

    return frames


def slide(pixels: int, batch: Tensor, seed: int) -> Tensor:
    return Slide(pixels)(batch, seed)


@pytest.mark.parametrize(
    "make",
    [Slide, sliding, lambda pixels: functools.partial(slide, pixels)],
    ids=["object", "closure", "partial"],
)
def test_resume_needs_the_same_motion(
    make: Callable[[int], Callable[[Tensor, int], Tensor]], x: Tensor, tmp_path: Path
) -> None:
    short = dataclasses.replace(CONFIG, max_steps=2)
    run(fresh(), x, tmp_path, short, frames=make(1))
    for frames in (None, make(2), drift):
        with pytest.raises(CheckpointError, match=r"motion \(frames\): expected .*, found ") as caught:
            run(fresh(), x, tmp_path, short, frames=frames, resume=True)
        assert "data:" not in str(caught.value)
    run(fresh(), x, tmp_path, short, frames=make(1), resume=True)


def test_a_finished_run_can_be_extended(x: Tensor, tmp_path: Path) -> None:
    """From its last step on it follows the schedule of the longer run; it can be cut and resumed like any."""
    longer = dataclasses.replace(CONFIG, max_steps=30)
    run(fresh(), x, tmp_path / "run")
    run(fresh(), x, tmp_path / "cut")
    result = run(fresh(), x, tmp_path / "run", longer, resume=True, log_every=1)
    assert (result.steps, saved_step(tmp_path / "run")) == (30, 30)
    assert result.history["step"].tolist() == list(range(21, 31))
    lr = [schedules.learning_rate(step, 30, peak=0.02) for step in range(20, 30)]
    np.testing.assert_allclose(result.history["lr"], lr)
    run(fresh(), x, tmp_path / "cut", longer, resume=True, callbacks=[At("on_train_batch_end", 25, stop)])
    same(run(fresh(), x, tmp_path / "cut", longer, resume=True), result)
    with pytest.raises(CheckpointError, match="steps: expected at least 30 as before, found 20: max_steps"):
        run(fresh(), x, tmp_path / "run", resume=True)


def test_one_run_at_a_time_in_a_folder(x: Tensor, tmp_path: Path) -> None:
    """A second one is told who is there; the lock goes with its process, even by kill -9."""
    ours, theirs = multiprocessing.Pipe()

    def stay() -> None:
        with alone_in(tmp_path):
            theirs.send(os.getpid())
            threading.Event().wait()

    other = multiprocessing.get_context("fork").Process(target=stay)
    other.start()
    pid = ours.recv()
    with pytest.raises(TrainingError, match=f"process {pid} on .* is training in this folder"):
        run(fresh(), x, tmp_path)
    other.kill()
    other.join()
    run(fresh(), x, tmp_path)
    run(fresh(), x, tmp_path, resume=True)


def test_threads_do_not_share_a_folder(x: Tensor, tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            run(fresh(), x, tmp_path)
        except TrainingError as error:
            refused.append(error)

    def start(_: lightning.Trainer) -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    run(fresh(), x, tmp_path, callbacks=[At("on_train_batch_end", 3, start)])
    assert f"process {os.getpid()}" in str(refused[0])


def test_a_full_disk_is_named(x: Tensor, tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the writes fail in the same places."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "checkpoints" / "last.ckpt"

    def fill(_: lightning.Trainer) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))

    try:
        with pytest.raises(OSError, match=r"\[Errno 27\] File too large: '.*'") as caught:
            run(fresh(), x, tmp_path, checkpoint_every=4, callbacks=[At("on_train_batch_end", 6, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert saved_step(tmp_path) == 4
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def test_no_entry_under_logs_fails_a_finished_run(x: Tensor, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for name, text in {
        "version_0": b"step,loss\n1,2.0\n2,rubbish\n,3\n4,\xff\x00\n5,7.0\n6",
        "version_1": b"loss\n\x00\xff\xfe,,,\n",
        "version_2": b"",
        "version_x": b"step\n1\n",
        "version_1_old": b"step\n1\n",
    }.items():
        (logs / name).mkdir(parents=True)
        (logs / name / "metrics.csv").write_bytes(text)
    (logs / "version_3").write_text("a file")
    (logs / "version_4" / "metrics.csv").mkdir(parents=True)
    (logs / "version_9").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match=r"version_0/metrics\.csv: the history leaves out 3 damaged row"):
        history = read_history(tmp_path)
    assert history["step"].tolist() == [1, 5, 6]
    assert history["loss"][:2].tolist() == [2, 7]
    with pytest.warns(UserWarning, match="damaged"):
        result = run(fresh(), x, tmp_path, logger="csv", log_every=5)
    assert result.history["step"].tolist() == [1, 5, 10, 15, 20]


def test_a_damaged_or_foreign_checkpoint_is_refused(x: Tensor, tmp_path: Path) -> None:
    path = run(fresh(), x, tmp_path).checkpoint
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: damaged"):
        run(fresh(), x, tmp_path, resume=True)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of ipvae training"):
        run(fresh(), x, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="no such file"):
        run(fresh(), x, tmp_path, resume=tmp_path / "nothing.ckpt")


def test_divergence_is_an_error_and_spares_the_checkpoint(x: Tensor, tmp_path: Path) -> None:
    class Poison(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                module.model.layer.log_bias.data[0, 0] = float("nan")

    with pytest.raises(
        TrainingError, match=r"training diverged: layer\.log_bias is not finite after step 6 of 20"
    ):
        run(fresh(), x, tmp_path, checkpoint_every=3, callbacks=[Poison()])
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


@pytest.mark.parametrize(
    ("scale", "options", "config"),
    [
        (1.0, {"estimator": "cubic"}, {"lr": 1e30}),
        (1.0, {"estimator": "fini2"}, {"lr": 1e4}),
        (1.0, {"estimator": "gumbel"}, {"lr": 1e30}),
        (1.0, {"estimator": "sigmoid", "n_arrivals": "released"}, {"lr": 1e30}),
        (1.0, {"cell": "gaussian"}, {"lr": 1e30}),
        (1e25, {}, {}),
        (1e25, {"cell": "gaussian", "activation": "relu"}, {}),
    ],
    ids=["cubic", "fini2", "gumbel", "released cut", "gaussian", "huge inputs", "huge inputs, relu"],
)
def test_every_divergence_is_a_training_error(
    scale: float, options: dict[str, Any], config: dict[str, float], x: Tensor, tmp_path: Path
) -> None:
    """By itself, not by poisoned weights; what it calls whole is there and finite."""
    recipe = dataclasses.replace(CONFIG, **{"warmup_portion": 0.0, "grad_clip": None, **config})
    with pytest.raises(TrainingError, match=r"training diverged: .* step \d+ of 20; ") as caught:
        run(fresh(**options), Splits(scale * x, scale * x[:9]), tmp_path, recipe, checkpoint_every=1)
    if (tmp_path / "checkpoints/last.ckpt").exists():
        assert f"last.ckpt of step {saved_step(tmp_path)} is older and whole" in str(caught.value)
        saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
        assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())
    else:
        assert "no checkpoint was saved" in str(caught.value)


def test_too_large_initial_rates_are_a_training_error(x: Tensor, tmp_path: Path) -> None:
    model = fresh()
    model.layer.log_bias.data.fill_(89.0)
    with pytest.raises(TrainingError, match="gradient norm nan at step 1 of 20; scale the inputs or choose"):
        run(model, x, tmp_path)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (torch.zeros(0, 10), {}, "splits: expected training inputs"),
        (torch.zeros(8, 9), {}, "x: expected shape"),
        (torch.full((8, 10), math.nan), {}, "splits: expected finite training inputs"),
        (torch.zeros(8, 10), {"logger": "paper"}, "logger: expected 'csv'"),
        (torch.zeros(8, 10), {"devices": 3}, "devices: expected a divisor"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    data: Tensor, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(fresh(), data, tmp_path, **options)


def test_training_says_nothing_on_its_own(
    x: Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(fresh(), Splits(x, x[:9]), tmp_path)
    assert capfd.readouterr() == ("", "")
    run(fresh(), x, tmp_path / "bar", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "20/20" in shown.err


def test_batches_are_a_function_of_seed_and_step(x: Tensor) -> None:
    epoch = list(Batches(x, 8, 0, lambda: 6))
    assert len(epoch) == len(Batches(x, 8, 0, lambda: 0)) == 6
    rows = torch.cat(epoch)
    assert len({tuple(row) for row in rows.tolist()}) == 48
    rest = list(Batches(x, 8, 0, lambda: 10))
    assert all(torch.equal(a, b) for a, b in zip(rest, epoch[4:], strict=True))
    assert not torch.equal(next(iter(Batches(x, 8, 0, lambda: 0))), epoch[0])
    assert not torch.equal(next(iter(Batches(x, 8, 1, lambda: 6))), epoch[0])
    halves = [next(iter(Batches(x, 8, 0, lambda: 6, rank, 2))) for rank in range(2)]
    assert torch.equal(torch.cat(halves), epoch[0])
    assert len(next(iter(Batches(x[:5], 8, 0, lambda: 0)))) == 5


def test_mixed_seeds_differ() -> None:
    seeds = {mix(seed, purpose, index) for seed in (-1, 0, 1) for purpose in range(3) for index in range(100)}
    assert len(seeds) == 900
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
