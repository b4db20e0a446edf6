"""``ipvae infer``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..extras import explained
from .app import app, clear_errors
from .loading import chosen, is_own, load_data, machine, model_for, part_of
from .options import Backend, Data, DataDir, Device, KernelCommand, Model, Precision, Seed, Split, Threads

with explained():
    import typer

if TYPE_CHECKING:
    from ..models.base import VAE

MAX_RECORD_GIB = 8.0
STEPS = 128


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
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Inference steps; where left out 128, and 1 where an encoder infers."),
    ] = None,
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
    place = machine(threads, backend, device, matmul_precision)
    split = split or (Split.ALL if is_own(data) else Split.TEST)
    from ..evaluation.evaluate import steps_of

    names = tuple(dict.fromkeys(name.strip() for name in record.split(",") if name.strip()))
    splits = load_data(data, data_dir, split)
    net = model_for(model, splits, data).to(place)
    net.matmul_precision = matmul_precision
    x, labels = part_of(splits, split, limit)
    steps = steps_of(net, steps, STEPS)
    typer.echo(f"{chosen(splits, split, x, data)}, {steps:,} steps")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {out.parent}")
    _check_size(net, names, len(x), steps // record_every)

    import numpy as np
    import torch

    from ..checkpoint import atomic_file

    states, parts = [], []
    for start in range(0, len(x), batch_size):
        state, records = net.infer(
            x[start : start + batch_size].to(place), steps, record=names, record_every=record_every,
            seed=seed, sample_offset=start, backend=backend,
        )  # fmt: skip
        states.append(state.log_rate.cpu())
        parts.append({name: values.cpu() for name, values in records.items()})
    sample_axis = {name: 2 if name == "log_rate" and net.n_states > 1 else 1 for name in names}
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


def _check_size(net: VAE, names: tuple[str, ...], samples: int, recorded: int) -> None:
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
