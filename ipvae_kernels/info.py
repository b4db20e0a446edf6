"""What this installation is and can do: ``python -m ipvae_kernels``."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from .backend import compiled
from .backend.choice import backends
from .philox import RNG_VERSION


def info() -> dict[str, str]:
    """Versions, backends (available, or why not), and how the compiled module runs here; name -> text."""
    facts = {
        "ipvae-kernels": _version("ipvae-kernels"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "random numbers": f"version {RNG_VERSION}",
    }
    facts |= {f"backend {name}": state for name, state in backends().items()}
    if compiled.reason() is None:
        module = compiled.load()
        facts["CPU kernels"] = (
            f"{module.instruction_set()} of {', '.join(module.instruction_sets())}; "
            f"{torch.get_num_threads()} threads; built with {module.compiler}"
        )
        facts["CUDA kernels"] = module.cuda or "not built"
    return facts


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def report() -> str:
    """:func:`info` as lines of text."""
    return lines(info())


def lines(facts: dict[str, str]) -> str:
    """Facts as lines of text, their names in a column."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {text}" for name, text in facts.items())
