"""``ipvae train``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from ..extras import explained
from ..fields import ConfigError
from ..models.config import ADDED, DRIVES, ESTIMATORS
from .app import TERMINATED, app, clear_errors, fail
from .loading import load_data, machine
from .options import (
    Backend,
    Data,
    DataDir,
    Device,
    KernelCommand,
    LoggerName,
    Motion,
    Precision,
    Recipe,
    Seed,
    Threads,
    decoders,
    encoders,
    models,
)  # fmt: skip

with explained():
    import typer

if TYPE_CHECKING:
    from ..data import DataSplits
    from ..models.config import VAEConfig
    from ..training.config import TrainConfig
    from ..training.run import TrainResult


@app.command(cls=KernelCommand)
@clear_errors
def train(
    data: Data = "patches",
    data_dir: DataDir = None,
    model: Annotated[
        str, typer.Option("--model", "--cell", autocompletion=lambda: list(models()), help="{models}.")
    ] = "ip-vae",
    decoder: Annotated[
        str | None,
        typer.Option(
            autocompletion=lambda: list(decoders()),
            help="{decoders}. linear is fused and reconstructs best in a run of minutes; the others "
            "have fewer neurons and curved features. Modules of your own: in Python.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            autocompletion=lambda: list(encoders()),
            help="Of p-vae, g-vae, g-relu-vae, sa-p-vae, sa-g-vae: {encoders}.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    recipe: Annotated[
        Recipe,
        typer.Option(help="short: ours, minutes; released: the paper's, for patches and 28x28 images."),
    ] = Recipe.SHORT,
    latents: Annotated[int | None, typer.Option(help="Neurons K.")] = None,
    upper_latents: Annotated[
        list[int] | None,
        typer.Option(help="Of hip-vae: neurons of a layer above; once for each, from below to the top."),
    ] = None,
    t_train: Annotated[int | None, typer.Option(help="Inference steps T unrolled in training.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps; excludes --epochs.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; excludes --max-steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Inputs per optimizer step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the KL: larger is sparser.")] = None,
    kl: Annotated[
        str | None, typer.Option(help="exact, or released (to which the paper's betas belong).")
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            autocompletion=lambda: ESTIMATORS,
            help=f"Of a Poisson model, gradient of counts: {', '.join(ESTIMATORS)}.",
        ),
    ] = None,
    drive: Annotated[
        str | None,
        typer.Option(
            autocompletion=lambda: DRIVES,
            help="Of ip-vae: paper (the residual of counts), expected (the exact natural gradient, by rates) "
            "or sampled (the same, by counts).",
        ),
    ] = None,
    decay: Annotated[
        float | None, typer.Option(help="Of ip-vae: leak of the membranes, 0 in the paper.")
    ] = None,
    clamp_u: Annotated[
        float | None,
        typer.Option(help="Of models of counts: ceiling of the log rates; 6 in runs of more than minutes."),
    ] = None,
    single_draw: Annotated[
        bool | None,
        typer.Option(
            "--single-draw", help="Of iterative models: one draw a step, for its loss and the next."
        ),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of a Gaussian model: identity or relu; --model says it too.")
    ] = None,
    motion: Annotated[
        Motion, typer.Option(help="Train on moving images, a frame per inference step.")
    ] = Motion.NONE,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")
    ] = False,
    logger: Annotated[LoggerName, typer.Option(help="Format of the log in OUT/logs.")] = LoggerName.CSV,
    eval_steps: Annotated[
        int,
        typer.Option(min=0, help="Inference steps of the final test (1 where an encoder infers); 0: none."),
    ] = 1000,
    device: Device = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="How many devices (GPUs, or processes on a CPU) share every batch.")
    ] = 1,
    shard_neurons: Annotated[
        int,
        typer.Option(min=1, help="Of the devices, how many share the neurons of a model: a divisor."),
    ] = 1,
    rank_timeout: Annotated[
        float, typer.Option(min=1.0, help="With --shard-neurons, seconds to wait for another process.")
    ] = 600.0,
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Train a model and leave it in OUT/model.

    Starts from a recipe; every option given overrides it.

    Ctrl-C stops after the step at hand and saves; the same command with --resume continues bit for bit, and
    with another number of devices too.

    [bold]Examples:[/]

    ipvae train --data digits --out digits

    ipvae train --data digits --model ig-relu-vae --decoder mlp --out curved

    ipvae train --data patches --recipe released --max-steps 20000 --out patches

    ipvae train --data patches --latents 65536 --devices 4 --shard-neurons 2 --out wide

    [bold]Next:[/] ipvae eval digits --data digits --readout
    """
    from ..checkpoint import LAST

    place = machine(threads, backend, device, matmul_precision)
    if devices > 1 and place.index is not None:
        raise ValueError(f"--devices: expected 1 beside --device {device}, found {devices}")
    if threads is not None:  # where there are several processes, Lightning shares the cores out otherwise
        os.environ["OMP_NUM_THREADS"] = str(threads)
    last = out / LAST
    if last.exists() and not resume:
        raise FileExistsError(f"{out} holds a run: --resume continues it, another --out starts a new one")
    if resume and not last.exists():
        raise FileNotFoundError(f"--resume: no {last} to continue from; leave it out to start a run")
    splits = load_data(data, data_dir)
    model_config, train_config = _recipe(
        recipe, data, splits, model, activation=activation, decoder=decoder, encoder=encoder
    )
    model_config = _override(
        model_config, n_latents=latents, upper_latents=tuple(upper_latents or ()) or None, t_train=t_train,
        kl=kl, estimator=estimator, drive=drive, decay=decay, clamp_u=clamp_u, single_draw=single_draw,
        seed=seed,
    )  # fmt: skip
    train_config = _override(train_config, batch_size=batch_size, lr=lr, beta_outer=beta, seed=seed)
    if lr is not None and lr < train_config.lr_min:
        train_config = dataclasses.replace(train_config, lr_min=lr)
    if max_steps is not None or epochs is not None:
        train_config = dataclasses.replace(train_config, max_steps=max_steps, epochs=epochs)

    from ..models.registry import build_model
    from ..training.folder import first_process
    from ..training.motion import moving
    from ..training.run import train as run

    if first_process():
        typer.echo(f"{splits.about}\n{_describe(model_config, train_config, len(splits.train))}")
    net = build_model(model_config)
    net.matmul_precision = matmul_precision
    frames = moving(motion.value, splits.shape, train_config.steps or net.t_train)
    try:
        result = run(
            net, splits, train_config, out, resume=resume, logger=logger.value, frames=frames,
            backend=backend, accelerator=place.type, shard_neurons=shard_neurons, rank_timeout=rank_timeout,
            devices=devices if place.index is None else [place.index],
        )  # fmt: skip
    except KeyboardInterrupt as error:
        hint = "the same command with --resume continues" if last.exists() else "nothing was saved yet"
        raise KeyboardInterrupt(f"interrupted; {hint}") from error
    if not result.complete:  # no callback of a user's runs here: it was a SIGTERM
        fail(f"terminated after step {result.steps:,}; the same command with --resume continues", TERMINATED)
    if not first_process():
        return
    result.model.to(place)
    _report_training(result, splits, eval_steps, seed, backend, moving=frames is not None)
    source = f"{data} --data-dir {data_dir}" if data_dir is not None else data
    typer.echo(f"Model in {result.model_dir}; next: ipvae eval {result.model_dir} --data {source}")


def _recipe(
    recipe: Recipe, data: str, splits: DataSplits, name: str, **options: str | None
) -> tuple[VAEConfig, TrainConfig]:
    """The configurations of a recipe, for a model that is named, with the options that were given."""
    from ..models.registry import model_named
    from ..training.recipes import paper_recipe, short_recipe

    cell, fields = model_named(name)
    fields |= {option: value for option, value in options.items() if value is not None}
    activation = fields.pop("activation", "identity")
    if recipe is Recipe.SHORT:
        return short_recipe(splits, cell, activation, **fields)
    if (found := fields.pop("decoder", "linear")) != "linear":
        raise ConfigError(f"decoder: expected 'linear' with --recipe released, found {found!r}")
    return paper_recipe(data, splits.shape, cell, activation)


C = TypeVar("C", "VAEConfig", "TrainConfig")


def _override(config: C, **options: Any) -> C:
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not hasattr(config, name):
            raise ConfigError(f"{name}: {type(config).__name__} has none, found {value!r}")
    return dataclasses.replace(config, **given)


def _describe(model: VAEConfig, train: TrainConfig, n: int) -> str:
    named = ("estimator", "activation", "kl", "encoder", "decoder", *ADDED)
    values = {name: getattr(model, name) for name in named if hasattr(model, name)}
    own = "".join(f"{name} {value}, " for name, value in values.items() if ADDED.get(name) != value)
    t_train = getattr(model, "t_train", None)
    steps = "no inference steps" if t_train is None else f"{t_train} inference steps"
    return (
        f"{model.cell} model, {model.n_latents} neurons, {steps}; "
        f"{train.total_steps(n):,} updates of {train.batch_size} inputs, lr {train.lr:g}, "
        f"beta {train.beta_outer:g}, {own}seed {train.seed}"
    )


def _nelbo(validated: dict[str, Any]) -> str:
    """The last -ELBO, or that the model has none."""
    found = validated.get("val_nelbo")
    return "no ELBO" if found is None else f"-ELBO {found[-1]:.2f} nats"


def _report_training(
    result: TrainResult, splits: DataSplits, eval_steps: int, seed: int, backend: str, *, moving: bool
) -> None:
    """Prints the last validation, and R2 and sparsity of the test set after T steps and at the end."""
    import numpy as np

    from ..evaluation.evaluate import evaluate as run

    typer.echo(f"Trained {result.steps:,} steps, {result.seconds:.0f} s in this session.")
    validated = {
        name: values[np.isfinite(values)]
        for name, values in result.history.items()
        if name.startswith("val_")
    }
    if validated.get("val_r2", np.empty(0)).size:
        typer.echo(
            f"Validation: R2 {validated['val_r2'][-1]:.4f}, silent {100 * validated['val_zeros'][-1]:.1f} %, "
            f"{_nelbo(validated)}"
        )
    if eval_steps and len(splits.test):
        t_train = result.model.t_train
        last = max(eval_steps, t_train) if result.model.iterative else 1
        found = run(
            result.model, splits.test[:1000], last, marks=(), batch_size=200, seed=seed, backend=backend
        )
        still = ", still images" if moving else ""
        for step in sorted({t_train, last}):
            typer.echo(
                f"Test ({found.n_samples:,} samples{still}), step {step:,}: R2 {found.r2[step - 1]:.4f}, "
                f"silent {100 * found.zeros[step - 1]:.1f} %"
            )
