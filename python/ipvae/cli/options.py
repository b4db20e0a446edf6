"""The options that commands share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from ..extras import explained

with explained():
    import typer
    from typer.core import TyperCommand


class KernelCommand(TyperCommand):
    """A command whose help names what is listed elsewhere, imported with PyTorch when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help, with {backends}, {models}, {decoders}, {encoders} and {matmul_precisions} filled in."""
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            for choices in (backends, models, decoders, encoders, matmul_precisions):
                if (name := f"{{{choices.__name__}}}") in text:
                    found = choices()
                    listed = [f"{key} ({about})" if about else key for key, about in found.items()]
                    parameter.help = text.replace(name, ", ".join(listed))  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def backends() -> Mapping[str, str]:
    """What ``--backend`` takes."""
    from ipvae_kernels.backend.choice import NAMES

    return dict.fromkeys(NAMES, "")


def models() -> Mapping[str, str]:
    """What ``--model`` takes, and what helps to choose."""
    from ..models.registry import models

    return {name: variant.about for name, (_, variant) in models().items()}


def decoders() -> Mapping[str, str]:
    """What ``--decoder`` takes: what is named, not given."""
    from ..models.config import DECODERS, OWN

    return dict.fromkeys((name for name in DECODERS if name != OWN), "")


def encoders() -> Mapping[str, str]:
    """What ``--encoder`` takes: what is named, not given."""
    from ..models.config import ENCODERS, OWN

    return dict.fromkeys((name for name in ENCODERS if name != OWN), "")


def matmul_precisions() -> Mapping[str, str]:
    """What ``--matmul-precision`` takes."""
    from ipvae_kernels.rollout.config import MATMUL_PRECISIONS

    return dict.fromkeys(MATMUL_PRECISIONS, "")


class Recipe(str, Enum):
    """Where training starts from."""

    SHORT = "short"
    RELEASED = "released"


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
        autocompletion=backends,
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
        autocompletion=matmul_precisions,
        help="Of matrix products on a GPU's tensor cores: {matmul_precisions}; a CPU computes in full.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Inference steps; where left out 1,000, and 1 where an encoder infers."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice where left out.")]
Seed = Annotated[int, typer.Option(help="Of all that is random: the same seed gives the same numbers.")]
