"""The command line: ``ipvae demo | train | eval | infer | plot | info``, and what other packages add to it.

PyTorch and Lightning are imported when a command runs, so that ``ipvae --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

from .extras import DISTRIBUTION, explained
from .models.config import ESTIMATORS

with explained():
    import typer
    from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .data import DataSplits
    from .models.base import IterativeVAE
    from .models.config import ModelConfig
    from .training.config import TrainConfig
    from .training.module import Frames
    from .training.run import TrainResult

P = ParamSpec("P")
R = TypeVar("R")

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
SPIKES_SHOWN = 200
MAX_RECORD_GIB = 8.0
ENTRY_POINTS = "ipvae.commands"


class Commands(TyperGroup):
    """The commands below, and those that installed packages offer as entry points of `ENTRY_POINTS`.

    They are looked up by name; what is behind one is imported when it is asked for.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Own commands in the order of this file, then the others."""
        return [*super().list_commands(ctx), *sorted(_offered().names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _offered().names:
            return own
        return typer.main.get_command(_offered()[cmd_name].load())


@functools.cache
def _offered() -> metadata.EntryPoints:
    return metadata.entry_points(group=ENTRY_POINTS)


app = typer.Typer(
    name="ipvae", cls=Commands, no_args_is_help=True, rich_markup_mode="rich",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


class KernelCommand(TyperCommand):
    """A command whose help names backends and formats of products, imported with PyTorch when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with {backends} and {matmul_precisions} filled in."""
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for name, choices in (("{backends}", _backends), ("{matmul_precisions}", _matmul_precisions)):
                if name in text:
                    parameter.help = text.replace(name, ", ".join(choices()))  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _backends() -> Sequence[str]:
    from ipvae_kernels.backend.choice import NAMES

    return NAMES


def _matmul_precisions() -> Sequence[str]:
    from ipvae_kernels.rollout.config import MATMUL_PRECISIONS

    return MATMUL_PRECISIONS


class Recipe(str, Enum):
    """Where training starts from."""

    SHORT = "short"
    RELEASED = "released"


class KindName(str, Enum):
    """Kind of model."""

    POISSON = "poisson"
    GAUSSIAN = "gaussian"


class Motion(str, Enum):
    """How training inputs move."""

    NONE = "none"
    JITTER = "jitter"
    ROTATION = "rotation"


class LoggerName(str, Enum):
    """Format of the log."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"


class Split(str, Enum):
    """Part of a data set."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    ALL = "all"


Data = Annotated[
    str,
    typer.Option(
        help="patches, digits (neither needs a download), mnist, fashion-mnist, idx (IDX files in "
        "--data-dir), or a path: of a folder of IDX files, of a folder of photographs, or of a .npy, .npz, "
        ".mat, .h5, .iml or IDX file."
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Where the files of mnist or fashion-mnist lie or go; the folder of idx. Others take none."
    ),
]
Model = Annotated[
    Path, typer.Argument(help="A model: its folder, that of its run, or a checkpoint of the authors' code.")
]
Backend = Annotated[
    str,
    typer.Option(
        autocompletion=_backends,
        help="Which implementation computes: {backends}; 'ipvae info' tells which serve here.",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="auto (a GPU where PyTorch finds one), cpu, cuda, or cuda:N for the GPU numbered N."),
]
Precision = Annotated[
    str,
    typer.Option(
        autocompletion=_matmul_precisions,
        help="Of matrix products on a GPU's tensor cores: {matmul_precisions}; a CPU computes in full.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice where left out.")]
Seed = Annotated[int, typer.Option(help="Of all that is random: the same seed gives the same numbers.")]


def clear_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Ends a command in one line on stderr and exit code 2 where the user can help it, 130 on Ctrl-C.

    On SIGTERM it is 143, see `main`.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings(), explained():
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            _fail(str(error) or "interrupted", INTERRUPTED)
        except (ValueError, OSError, ImportError) as error:
            _fail(str(error), USER_ERROR)
        except RuntimeError as error:
            # CheckpointError, DownloadError, TrainingError, BackendError; any other one is a bug.
            if type(error).__module__.partition(".")[0] not in ("ipvae", "ipvae_kernels"):
                raise
            _fail(str(error), USER_ERROR)

    return wrapper


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows a warning of ours as one line that tells what to change, without file and line."""
    previous = warnings.formatwarning

    def plain(message: Any, category: type[Warning], *rest: Any, **options: Any) -> str:
        if category.__module__.partition(".")[0] not in ("ipvae", "ipvae_kernels"):
            return previous(message, category, *rest, **options)
        return f"warning: {message}\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = previous


def _fail(message: str, code: int) -> NoReturn:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = "; ".join(lines).replace(":;", ":")
    typer.echo(f"error: {text}" if code == USER_ERROR else text, err=True)
    raise typer.Exit(code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _ipvae(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """The iterative Poisson VAE: spiking inference of natural images and digits, fast.

    Start with [bold]ipvae demo[/]: it trains a model in minutes, draws what it learned and times it.
    """


@app.command()
@clear_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier demo's is replaced.")] = Path(
        "demo"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps; the recipe's where left out.")
    ] = None,
    seed: Seed = 0,
    eval_steps: Annotated[int, typer.Option(min=1, help="Inference steps of the evaluation.")] = 1000,
    latents: Annotated[int | None, typer.Option(min=1, help="Neurons; the recipe's where left out.")] = None,
    timing: Annotated[bool, typer.Option(help="Time training and inference against plain PyTorch.")] = True,
    threads: Threads = None,
) -> None:
    """Train on natural images, see what was learned, and time it: a few minutes on two CPU cores.

    Leaves a model, a checkpoint, metrics.json and five figures. Needs no download.

    [bold]Example:[/] ipvae demo --out demo

    [bold]Next:[/] ipvae eval demo/model --data patches
    """
    _machine(threads)
    from .experiments.demo import run

    run(
        out, steps=steps, seed=seed, n_latents=latents, eval_steps=eval_steps,
        timing_seconds=15.0 if timing else 0.0,
    )  # fmt: skip


@app.command(cls=KernelCommand)
@clear_errors
def train(
    data: Data = "patches",
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run"),
    recipe: Annotated[
        Recipe,
        typer.Option(help="short: ours, minutes; released: the paper's, for patches and 28x28 images."),
    ] = Recipe.SHORT,
    latents: Annotated[int | None, typer.Option(help="Neurons K.")] = None,
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
        typer.Option(autocompletion=lambda: ESTIMATORS, help=f"Gradient of counts: {', '.join(ESTIMATORS)}."),
    ] = None,
    kind: Annotated[KindName, typer.Option(help="poisson: iP-VAE; gaussian: iG-VAE.")] = KindName.POISSON,
    activation: Annotated[str, typer.Option(help="Of a gaussian model: identity or relu.")] = "identity",
    motion: Annotated[
        Motion, typer.Option(help="Train on moving images, a frame per inference step.")
    ] = Motion.NONE,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")
    ] = False,
    logger: Annotated[LoggerName, typer.Option(help="Format of the log in OUT/logs.")] = LoggerName.CSV,
    eval_steps: Annotated[
        int, typer.Option(min=0, help="Inference steps of the final test; 0: no test.")
    ] = 1000,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Train a model and leave it in OUT/model.

    Starts from a recipe; every option given overrides it.

    Ctrl-C stops after the step at hand and saves; the same command with --resume continues bit for bit.

    [bold]Examples:[/]

    ipvae train --data digits --out digits

    ipvae train --data patches --recipe released --max-steps 20000 --out patches

    [bold]Next:[/] ipvae eval digits --data digits --readout
    """
    from .checkpoint import LAST

    place = _machine(threads, backend, device, matmul_precision)
    last = out / LAST
    if last.exists() and not resume:
        raise FileExistsError(f"{out} holds a run: --resume continues it, another --out starts a new one")
    if resume and not last.exists():
        raise FileNotFoundError(f"--resume: no {last} to continue from; leave it out to start a run")
    splits = _load_data(data, data_dir)
    model_config, train_config = _recipe(recipe, data, splits, kind, activation)
    model_config = _override(
        model_config, n_latents=latents, t_train=t_train, kl=kl, estimator=estimator, seed=seed
    )
    train_config = _override(train_config, batch_size=batch_size, lr=lr, beta_outer=beta, seed=seed)
    if lr is not None and lr < train_config.lr_min:
        train_config = dataclasses.replace(train_config, lr_min=lr)
    if max_steps is not None or epochs is not None:
        train_config = dataclasses.replace(train_config, max_steps=max_steps, epochs=epochs)
    typer.echo(f"{splits.about}\n{_describe(model_config, train_config, len(splits.train))}")

    from .models.registry import build_model
    from .training.run import train as run

    model = build_model(model_config)
    model.matmul_precision = matmul_precision
    frames = _frames(motion, splits, train_config.steps or model_config.t_train)
    try:
        result = run(
            model, splits, train_config, out, resume=resume, logger=logger.value, frames=frames,
            backend=backend, accelerator=place.type, devices=1 if place.index is None else [place.index],
        )  # fmt: skip
    except KeyboardInterrupt as error:
        hint = "the same command with --resume continues" if last.exists() else "nothing was saved yet"
        raise KeyboardInterrupt(f"interrupted; {hint}") from error
    if not result.complete:  # no callback of a user's runs here: it was a SIGTERM
        _fail(f"terminated after step {result.steps:,}; the same command with --resume continues", TERMINATED)
    result.model.to(place)
    _report_training(result, splits, eval_steps, seed, backend, moving=frames is not None)
    source = f"{data} --data-dir {data_dir}" if data_dir is not None else data
    typer.echo(f"Model in {result.model_dir}; next: ipvae eval {result.model_dir} --data {source}")


@app.command("eval", cls=KernelCommand)
@clear_errors
def evaluate(
    model: Model,
    data: Data = "patches",
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.TEST,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps.")] = 1000,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples at a time; the result does not depend on it.")
    ] = 200,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate the first so many samples.")] = None,
    readout: Annotated[
        bool, typer.Option("--readout", help="Logistic regression from latents to labels.")
    ] = False,
    readout_limit: Annotated[
        int | None,
        typer.Option(min=1, help="Fit it to the first so many training samples; all where left out."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all curves and measures here.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Measure a model as the paper does: hard spike counts, a thousand steps, held-out data.

    Prints R2, squared error, silent neurons, spikes, KL and -ELBO as inference goes on.

    [bold]Examples:[/]

    ipvae eval demo/model --data patches

    ipvae eval digits --data digits --readout --json digits.json

    [bold]Next:[/] ipvae infer digits --data digits --record counts --out spikes.npz
    """
    place = _machine(threads, backend, device, matmul_precision)
    splits = _load_data(data, data_dir, split)
    net = _load_model(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, labels = _part(splits, split, limit)
    fit = _readout_data(splits, split.value, data, readout_limit) if readout else None

    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    from .evaluation.evaluate import evaluate as run

    marks = _marks(steps)
    if fit is not None:
        typer.echo(
            f"The readout infers {len(fit[0]):,} training samples as well; --readout-limit shortens that."
        )
    with tqdm(total=len(x), desc="inference", unit="sample") as bar:
        result = run(
            net, x, steps, batch_size=batch_size, marks=marks, labels=None if fit is None else labels,
            train=fit, seed=seed, backend=backend, progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    _print_evaluation(result, marks, f"{model} on {_chosen(splits, split, x, data)}")
    if json_file is not None:
        _write_json(
            json_file, {"model": str(model), "data": splits.about, "split": split.value, **result.to_dict()}
        )
        typer.echo(f"All curves in {json_file}")


@app.command(cls=KernelCommand)
@clear_errors
def infer(
    model: Model,
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    data: Data = "patches",
    data_dir: DataDir = None,
    split: Annotated[
        Split | None,
        typer.Option(
            help="Which part of the data; where left out, all of a file or folder of your own, in its order, "
            "and the test set of the others."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps.")] = 128,
    record: Annotated[
        str,
        typer.Option(
            help="Comma-separated: log_rate, counts, reconstruction, recon, kl, squared_error, spikes, zeros."
        ),
    ] = "counts",
    record_every: Annotated[int, typer.Option(min=1, help="Record every so manyth step.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many samples; all where left out.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples at a time; the result does not depend on it.")
    ] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Run inference and write what the neurons did to an .npz file.

    The file holds each record as an array (recorded steps, samples, ...) and the numbers of these "steps".

    With them lie the inputs "x", their "labels" if any, and the final state "log_rate_final".

    [bold]Example:[/] ipvae infer demo/model --data patches --record counts,squared_error --out spikes.npz

    [bold]Next:[/] python -c "import numpy as np; print(np.load('spikes.npz')['counts'].shape)"
    """
    place = _machine(threads, backend, device, matmul_precision)
    split = split or (Split.ALL if _own(data) else Split.TEST)
    names = tuple(dict.fromkeys(name.strip() for name in record.split(",") if name.strip()))
    splits = _load_data(data, data_dir, split)
    net = _load_model(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, labels = _part(splits, split, limit)
    typer.echo(f"{_chosen(splits, split, x, data)}, {steps:,} steps")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {out.parent}")
    _check_size(net, names, len(x), steps // record_every)

    import numpy as np
    import torch

    from .checkpoint import atomic_file

    states, parts = [], []
    for start in range(0, len(x), batch_size):
        state, records = net.infer(
            x[start : start + batch_size].to(place), steps, record=names, record_every=record_every,
            seed=seed, sample_offset=start, backend=backend,
        )  # fmt: skip
        states.append(state.log_rate.cpu())
        parts.append({name: values.cpu() for name, values in records.items()})
    sample_axis = {name: 2 if name == "log_rate" and net.kind == "gaussian" else 1 for name in names}
    arrays = {name: torch.cat([p[name] for p in parts], sample_axis[name]).numpy() for name in names}
    arrays |= {"log_rate_final": torch.cat(states, -2).numpy(), "x": x.numpy()}
    arrays["steps"] = np.arange(record_every, steps + 1, record_every)
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with atomic_file(out) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    for name, array in arrays.items():
        typer.echo(f"  {name:15} {array.dtype} {list(array.shape)}")
    typer.echo(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


@app.command(cls=KernelCommand)
@clear_errors
def plot(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the figures; those of the same names are replaced.")],
    data: Data = "patches",
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.TEST,
    steps: Annotated[int, typer.Option(min=1, help="Inference steps.")] = 1000,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many samples.")] = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    backend: Backend = "auto",
    matmul_precision: Precision = "float32",
    threads: Threads = None,
) -> None:
    """Draw what a model learned and does: features, convergence, spikes, reconstructions, training curves.

    Training curves need the log of the run, which lies beside the model where 'ipvae train' left it.

    [bold]Example:[/] ipvae plot demo/model --data patches --out figures

    [bold]Next:[/] ipvae eval demo/model --data patches
    """
    place = _machine(threads, backend, device, matmul_precision)
    splits = _load_data(data, data_dir, split)
    net = _load_model(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, _ = _part(splits, split, limit)

    from tqdm.auto import tqdm

    from .evaluation.evaluate import evaluate as run
    from .figures import draw
    from .training.history import read_history

    folder = model if model.is_dir() else model.parent
    histories = (read_history(run_dir) for run_dir in (folder, folder.parent))
    with tqdm(total=len(x), desc="inference", unit="sample") as bar:
        result = run(
            net, x, steps, batch_size=200, marks=(), seed=seed, backend=backend,
            progress=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    about = _chosen(splits, split, x, data)
    history = next(filter(None, histories), {})
    for path in draw(net, x, result.r2, result.zeros, history, out, about=about, seed=seed, backend=backend):
        typer.echo(str(path))


@app.command()
@clear_errors
def info(
    test: Annotated[
        bool, typer.Option("--test", help="Compare every schedule on this machine with eager PyTorch.")
    ] = False,
) -> None:
    """What is installed, which backends serve and why others do not. Paste it into bug reports.

    [bold]Example:[/] ipvae info
    """
    from .extras import report

    typer.echo(report())
    if test:
        from ipvae_kernels import selftest

        if not selftest.report():
            raise typer.Exit(1)


def main() -> None:
    """Entry point of the ``ipvae`` command."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt:  # while modules load or Typer parses
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def _terminate(number: int, frame: object) -> NoReturn:
    """Ends like an exception does, so that no half-written file stays; training saves instead."""
    raise SystemExit(TERMINATED)


def _machine(
    threads: int | None, backend: str = "auto", device: str = "cpu", matmul_precision: str = "float32"
) -> torch.device:
    """Sets the number of threads; refuses what cannot serve before any work is done."""
    import torch

    import ipvae_kernels
    from ipvae_kernels import checks

    with ipvae_kernels.use_backend(backend):
        pass
    checks.choice("--matmul-precision", matmul_precision, _matmul_precisions())
    if threads is not None:
        torch.set_num_threads(threads)
    return _device(device)


def _device(name: str) -> torch.device:
    """The device an option names.

    Raises:
        ValueError: for another name, or a GPU that PyTorch does not find.
    """
    import torch

    kind, _, number = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (name != "cuda" and not number.isdecimal()):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        here = f"{found} CUDA GPU{'' if found == 1 else 's'}" if found else "no CUDA GPU"
        raise ValueError(f"--device: expected a device that is there, found {name!r}; PyTorch finds {here}")
    return torch.device(name)


def _own(data: str) -> bool:
    """Whether `data` is a path of the user's, not the name of a set with a test set of its own."""
    from .data import DATASETS

    return os.fspath(data) not in DATASETS


def _load_data(data: str, data_dir: Path | None, split: Split | None = None) -> DataSplits:
    from .data import load_dataset, load_whole

    load = load_whole if split is Split.ALL else load_dataset
    return load(data, data_dir=data_dir)


def _load_model(path: Path, splits: DataSplits, data: str) -> IterativeVAE:
    """A model's folder, a run's, or a checkpoint of the authors' code, checked against the data's size."""
    from .models.registry import load_model

    net = load_model(path)
    if net.config.n_inputs != splits.train.shape[1]:
        sizes = ["x".join(map(str, shape)) for shape in (net.config.shape, splits.shape)]
        raise ValueError(
            f"{path} takes inputs of {net.config.n_inputs} numbers ({sizes[0]}), the data {data} have "
            f"{splits.train.shape[1]} ({sizes[1]}); which --data was it trained on?"
        )
    return net


def _part(splits: DataSplits, split: Split, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """The first inputs of a split and their labels; `load_whole` leaves all of them in the training split."""
    name = "train" if split is Split.ALL else split.value
    x: Tensor = getattr(splits, name)
    if len(x) == 0:
        raise ValueError(f"--split: {splits.name} has no {name} samples")
    labels = splits.labels.get(name)
    return x[:limit], None if labels is None else labels[:limit]


def _chosen(splits: DataSplits, split: Split, x: Tensor, data: str) -> str:
    """Which samples, in words; says what was left out."""
    whole = len(splits.train if split is Split.ALL else getattr(splits, split.value))
    share = f"{len(x):,}" if len(x) == whole else f"the first {len(x):,} of {whole:,}"
    if split is Split.ALL:
        return f"{share} samples of {data}"
    total = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    held = f" ({whole:,} of its {total:,}; --split all takes them all)" if _own(data) else ""
    return f"{share} {split.value} samples of {data}{held}"


def _readout_data(splits: DataSplits, split: str, data: str, limit: int | None) -> tuple[Tensor, Tensor]:
    if split not in splits.labels or "train" not in splits.labels or len(splits.train) == 0:
        raise ValueError(f"--readout: {data} has no labels for the {split} and the training samples")
    return splits.train[:limit], splits.labels["train"][:limit]


def _recipe(
    recipe: Recipe, data: str, splits: DataSplits, kind: KindName, activation: str
) -> tuple[ModelConfig, TrainConfig]:
    from .training.recipes import paper_recipe, short_recipe

    if recipe is Recipe.SHORT:
        return short_recipe(splits, kind.value, activation)  # type: ignore[arg-type]
    return paper_recipe(data, splits.shape, kind.value, activation)  # type: ignore[arg-type]


C = TypeVar("C", "ModelConfig", "TrainConfig")


def _override(config: C, **options: Any) -> C:
    return dataclasses.replace(config, **{name: v for name, v in options.items() if v is not None})


def _frames(motion: Motion, splits: DataSplits, steps: int) -> Frames | None:
    """Makes `steps` frames of each input, as `train` asks for them; None for still ones."""
    if motion is Motion.NONE:
        return None
    from .data import JitterFeeder, RotationFeeder

    shape = splits.shape  # a checkpoint knows `frames` by the plain values that it holds

    def frames(x: Tensor, seed: int) -> Tensor:
        images = x.reshape(-1, *shape)
        if motion is Motion.JITTER:
            return JitterFeeder(images, seed=seed).frames(0, steps)
        return RotationFeeder(images).frames(0, steps)

    return frames


def _describe(model: ModelConfig, train: TrainConfig, n: int) -> str:
    extra = (
        f"estimator {model.estimator}, " if model.kind == "poisson" else f"activation {model.activation}, "
    )
    return (
        f"{model.kind} model, {model.n_latents} neurons, {model.t_train} inference steps; "
        f"{train.total_steps(n):,} updates of {train.batch_size} inputs, lr {train.lr:g}, "
        f"beta {train.beta_outer:g} ({model.kl} KL), {extra}seed {train.seed}"
    )


def _report_training(
    result: TrainResult, splits: DataSplits, eval_steps: int, seed: int, backend: str, *, moving: bool
) -> None:
    """Prints the last validation, and R2 and sparsity of the test set after T steps and at the end."""
    import numpy as np

    from .evaluation.evaluate import evaluate as run

    typer.echo(f"Trained {result.steps:,} steps, {result.seconds:.0f} s in this session.")
    validated = {
        name: values[np.isfinite(values)]
        for name, values in result.history.items()
        if name.startswith("val_")
    }
    if validated.get("val_r2", np.empty(0)).size:
        typer.echo(
            f"Validation: R2 {validated['val_r2'][-1]:.4f}, silent {100 * validated['val_zeros'][-1]:.1f} %, "
            f"-ELBO {validated['val_nelbo'][-1]:.2f} nats"
        )
    if eval_steps and len(splits.test):
        t_train = result.model.config.t_train
        last = max(eval_steps, t_train)
        found = run(
            result.model, splits.test[:1000], last, marks=(), batch_size=200, seed=seed, backend=backend
        )
        still = ", still images" if moving else ""
        for step in sorted({t_train, last}):
            typer.echo(
                f"Test ({found.n_samples:,} samples{still}), step {step:,}: R2 {found.r2[step - 1]:.4f}, "
                f"silent {100 * found.zeros[step - 1]:.1f} %"
            )


def _marks(steps: int) -> list[int]:
    """1, 16, 64, 256, ... and the last step."""
    powers = [4**i for i in range(2, 16)]
    return sorted({mark for mark in (1, *powers) if mark < steps} | {steps})


def _print_evaluation(result: Any, marks: list[int], title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold")
    names = ["step", "R2", "squared error", "silent", "spikes", "KL", "-ELBO"]
    for name in [*names, "accuracy"] if result.readout else names:
        table.add_column(name, justify="right")
    for mark in marks:
        i = mark - 1
        row = [
            f"{mark:,}", f"{result.r2[i]:.4f}", f"{result.squared_error[i]:.3f}",
            f"{100 * result.zeros[i]:.1f} %", f"{result.spikes[i]:.1f}", f"{result.kl[i]:.4f}",
            f"{result.nelbo[i]:.2f}",
        ]  # fmt: skip
        if result.readout:
            row.append(f"{100 * result.readout[mark].accuracy:.2f} %")
        table.add_row(*row)
    console = Console()
    console.print(table)
    if result.r2[-1] > 0:
        console.print(
            f"R2 is at 95 % of its last value from step {result.steps_to(0.95):,}, at 99 % from step "
            f"{result.steps_to(0.99):,}.",
            highlight=False,
        )
    if result.r2.max() > result.r2[-1] + 0.005:
        best = int(result.r2.argmax())
        console.print(f"R2 was highest at step {best + 1:,}: {result.r2[best]:.4f}.", highlight=False)
    speed = result.summary()["sample_steps_per_second"]
    console.print(f"{speed:,.0f} sample-steps per second.", highlight=False)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    import json

    from .checkpoint import atomic_file

    with atomic_file(path) as file:
        file.write(json.dumps(values, indent=1).encode() + b"\n")


def _check_size(net: IterativeVAE, names: tuple[str, ...], samples: int, recorded: int) -> None:
    """Refuses records that would not fit into memory, before hours are spent on them."""
    wide = {
        "log_rate": net.config.n_latents * net.n_states,
        "counts": net.config.n_latents,
        "reconstruction": net.config.n_inputs,
    }
    gib = 4 * samples * recorded * sum(wide.get(name, 1) for name in names) / 2**30
    if gib > MAX_RECORD_GIB:
        raise ValueError(
            f"--record: {gib:.1f} GiB, more than {MAX_RECORD_GIB:g}; "
            "lower --limit or --steps, or raise --record-every"
        )
