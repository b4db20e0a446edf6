"""``ipvae stream``, and ``ipvae convert``, which takes what it wrote elsewhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..extras import explained
from .app import app, clear_errors
from .loading import machine
from .options import Backend, Device, KernelCommand, Model, Threads

with explained():
    import typer

if TYPE_CHECKING:
    from ..models.iterative import IterativeVAE
    from ..stream import Stream


class Format(str, Enum):
    """What spikes are converted to."""

    NWB = "nwb"
    SONATA = "sonata"


@app.command(cls=KernelCommand)
@clear_errors
def stream(
    model: Model,
    frames: Annotated[
        Path,
        typer.Argument(
            help="A .npy file: frames [T, B, M], or a still input [B, M], read as they are needed."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the spikes and the state.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps from the first on; left out, to the end of the frames.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise; a run that goes on has its own.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
    ] = False,
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
) -> None:
    """Infer without an end: frames in, spikes to disk as they fall, at constant memory.

    Ctrl-C saves the state within a second; --resume goes on to the same spikes and the same files.

    [bold]Example:[/] ipvae stream demo/model video.npy --out spikes

    [bold]Next:[/] ipvae convert spikes --to nwb --out spikes.nwb
    """
    place = machine(threads, backend, device)

    from ..models.iterative import IterativeVAE
    from ..models.registry import load_model
    from ..stream import Stream

    net = load_model(model).to(place).eval()
    if not isinstance(net, IterativeVAE):
        raise ValueError(f"{model} is a {net.cell} model, which infers no moving input")
    source = _mapped(frames, net)
    run = (
        Stream.resume(net, out, backend=backend)
        if resume
        else Stream(net, seed=seed, record=out, backend=backend)
    )
    left = None if steps is None else steps - run.steps
    if source.ndim == 2 and left is None:
        raise ValueError(f"--steps: expected a number for a still input, which {frames} is ({source.shape})")
    if left is not None and left <= 0:
        raise ValueError(f"--steps: {out} already holds {run.steps:,} steps, expected more than that")
    try:
        run.run(source, left, progress=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(run)) from None
    _report(run, out)


@app.command()
@clear_errors
def convert(
    spikes: Annotated[Path, typer.Argument(help="A folder that 'ipvae stream' wrote.")],
    out: Annotated[Path, typer.Option(help="The file to write; one of that name is replaced.")],
    to: Annotated[
        Format,
        typer.Option(help="nwb: counts of each step, for pynwb; sonata: events, for libsonata and others."),
    ] = Format.NWB,
    step_ms: Annotated[float, typer.Option(help="What a step stands for, in milliseconds.")] = 1.0,
) -> None:
    """Convert spikes on disk to a format of neuroscience, a series or population for each sample.

    [bold]Example:[/] ipvae convert spikes --to sonata --out spikes.h5

    [bold]Next:[/] python -c "import pynwb; print(pynwb.NWBHDF5IO('spikes.nwb', 'r').read())"
    """
    from ipvae_kernels import checks

    from ..records import SpikeRecord, to_nwb, to_sonata

    checks.number("--step-ms", step_ms, 0.0, above=True)
    record = SpikeRecord(spikes)
    if to is Format.NWB:
        to_nwb(record, out, step_seconds=1e-3 * step_ms)
    else:
        to_sonata(record, out, step_ms=step_ms)
    typer.echo(
        f"{out}: {record.steps:,} steps of {record.batch:,} samples, {out.stat().st_size / 2**20:.1f} MiB"
    )


def _mapped(path: Path, net: IterativeVAE) -> Any:
    """The frames as a memory map of numbers, refused before any work if they are none of the model's."""
    import numpy as np

    try:
        frames = np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: expected an array of numbers in a .npy file ({error})") from error
    inputs = net.config.n_inputs
    if not isinstance(frames, np.ndarray) or frames.ndim not in (2, 3) or frames.shape[-1] != inputs:
        found = f"shape {list(frames.shape)}" if isinstance(frames, np.ndarray) else "several arrays"
        raise ValueError(
            f"{path}: expected frames [T, B, {inputs}] or a still input [B, {inputs}], found {found}"
        )
    return frames


def _interrupted(run: Stream) -> str:
    """How far a run came and how to go on with it."""
    if run.state is None:  # in its first steps, or while their file was written
        return "interrupted before any step was saved; the same command begins anew"
    return f"interrupted after {run.steps:,} steps, which are saved; the same command with --resume goes on"


def _report(run: Stream, out: Path) -> None:
    """Steps, spikes, their rate, and sizes on disk and of dense counts."""
    from ..records import SpikeRecord

    record = SpikeRecord(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    numbers = run.steps * record.batch * record.n_latents  # a record does not know silent steps at its end
    events, spikes = record.n_events, record.n_spikes
    for name, value in (
        ("steps", f"{run.steps:,}"),
        ("spikes", f"{spikes:,}, {spikes / numbers:.3g} a neuron and step"),
        ("events", f"{events:,}, {events / numbers:.1%} of counts are not 0"),
        ("on disk", f"{size / 2**20:.1f} MiB in {out}"),
        ("dense", f"{4 * numbers / 2**20:.1f} MiB as float32, {numbers / 2**20:.1f} as bytes"),
    ):
        typer.echo(f"  {name:8} {value}")
