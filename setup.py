"""Builds the compiled module through CMake, and makes the README's links absolute; see pyproject.toml."""

import re
from pathlib import Path

from scikit_build_core.errors import FailedLiveProcessError
from setuptools import setup

HERE = Path(__file__).resolve().parent


def readme() -> str:
    """README.md as package indexes show it: links to files of the repository lead there."""
    metadata = (HERE / "pyproject.toml").read_text("utf-8")
    (repository,) = re.findall(r'^Repository = "(.+)"$', metadata, re.MULTILINE)
    relative = r"\]\((?![a-z]+:|#)"
    return re.sub(relative, f"]({repository}/blob/main/", (HERE / "README.md").read_text("utf-8"))


try:
    setup(cmake_source_dir=".", long_description=readme(), long_description_content_type="text/markdown")
except FailedLiveProcessError as error:
    # CMake and the compiler have said what is missing: it should be the last thing seen, not a traceback.
    raise SystemExit(f"{error}: the reason stands above") from None
