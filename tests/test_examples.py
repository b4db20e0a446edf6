"""The short scripts of docs/examples run as they stand, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


def test_ten_lines_from_an_empty_file_to_spikes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    pytest.importorskip("lightning", reason="lightning is not installed")
    script = EXAMPLES / "spikes.py"
    _, _, code = script.read_text().rpartition('"""')
    assert len(code.split("\n\n", 1)[1].splitlines()) <= 11  # ten, and an empty one
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with image.open(tmp_path / "spikes.png") as picture:
        shades = picture.convert("L").histogram()
    assert sum(shades[:200]) > 1000  # dots, not an empty frame
