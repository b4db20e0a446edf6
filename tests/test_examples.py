"""The short scripts of docs/examples run as they stand, in an empty folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def test_ten_lines_from_an_empty_file_to_spikes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pytest.importorskip("lightning", reason="lightning is not installed")
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    script = EXAMPLES / "spikes.py"
    _, _, code = script.read_text().rpartition('"""')
    assert len([line for line in code.splitlines() if line]) == 10
    torch.set_num_threads(1)  # sizes are too small for more; restored by a fixture of all tests
    pyplot.switch_backend("Agg")
    runpy.run_path(str(script), run_name="__main__")
    pyplot.close("all")
    with image.open(tmp_path / "spikes.png") as picture:
        shades = picture.convert("L").histogram()
    assert sum(shades[:200]) > 1000  # dots, not an empty frame
