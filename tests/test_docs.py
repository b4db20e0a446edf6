"""The documentation names what is there; its links are tested in test_packaging.py."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_walk_names_functions_that_exist() -> None:
    named = re.findall(r"`(\w+)` in\s+`([\w/.]+)`", (ROOT / "docs" / "design" / "walk.md").read_text())
    assert len(named) > 15
    for function, file in named:
        source = (ROOT / file).read_text()
        assert re.search(rf"(def |class |[ *&]){function}\b *\(", source), f"{file} has no {function}"


def test_files_that_the_design_pages_name_exist() -> None:
    folders = "ipvae_kernels|csrc|bench|tools|tests"
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for path in re.findall(rf"`(?:python )?((?:{folders})/[\w/.-]+\.\w+)", page.read_text()):
            assert "NAME" in path or (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize(
    "package", ["ipvae_kernels", "ipvae_kernels.distributions", "ipvae", "ipvae.data", "ipvae.records"]
)
def test_the_site_describes_every_public_name(package: str) -> None:
    tables = re.findall(
        r"currentmodule:: (\S+)\n.. autosummary::\n(?:   :.*\n)+\n((?:   \S+\n)+)",
        "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md")),
    )
    described = {name for module, names in tables if module == package for name in names.split()}
    public = set(importlib.import_module(package).__all__)
    assert public - {"DATASETS"} <= described, "add it to a table of docs/api"
