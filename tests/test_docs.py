"""The documentation names what is there; its links are tested in test_packaging.py."""

from __future__ import annotations

import re
from pathlib import Path

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
