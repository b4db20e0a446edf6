"""The scripts of docs/tutorials and docs/gallery run as they stand, with smaller numbers."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCRIPTS = sorted([*(DOCS / "tutorials").glob("*.py"), *(DOCS / "gallery").glob("*.py")])
SMALL = {
    "UPDATES": 2, "PATCHES": 500, "IMAGES": 20, "FRAMES": 40, "STEPS": 20, "DRAWS": 500, "STILL": 8,
    "FARTHEST": 5, "LATENTS": 16,
}  # fmt: skip
# What a script prints, whatever its numbers.
SAID = {
    "accelerate": "not run",
    "streaming": "the same spikes: True",
    "own_decoder": r"loss as a module (-?\d+\.\d\d)\d*, fused \1",
    "own_estimator": r"gradients differ by \de-0[5-9]",
}


def _smaller(script: Path) -> ast.Module:
    """The script with the constants of `SMALL` in place of its own."""
    tree = ast.parse(script.read_text(), str(script))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            pairs = zip(_names(node.targets[0]), _values(node.value), strict=False)
            for name, value in pairs:
                if name in SMALL and isinstance(value, ast.Constant):
                    assert value.value > SMALL[name]
                    value.value = SMALL[name]
    return tree


def _names(target: ast.expr) -> list[str]:
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    return [part.id for part in parts if isinstance(part, ast.Name)]


def _values(value: ast.expr) -> list[ast.expr]:
    return value.elts if isinstance(value, ast.Tuple) else [value]


@pytest.mark.filterwarnings("ignore::ipvae.training.outcome.CollapseWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_run(
    script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if script.stem == "streaming":
        pytest.importorskip("pyarrow")
    monkeypatch.delenv("ITERATIVE_VAE", raising=False)
    assert re.search(SAID.get(script.stem, ""), _run(script, capsys))


def test_the_authors_code_is_accelerated(
    shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITERATIVE_VAE", str(shared("IterativeVAE")))
    said = _run(DOCS / "tutorials" / "accelerate.py", capsys)
    losses = [float(loss) for loss in re.findall(r"loss (-?[\d.]+)", said)]
    assert len(losses) == 4
    for theirs, ours in (losses[:2], losses[2:]):
        assert abs(theirs - ours) < 0.05 * abs(theirs)


def _run(script: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the smaller script prints."""
    mpl.use("agg")
    torch.set_num_threads(1)  # small sizes: two threads that others' processes interrupt wait for each other
    exec(compile(_smaller(script), str(script), "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out
