"""What the tests of `ipvae` share."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from ipvae import figures
from ipvae.plots import canvas

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are too small for threads to be anything but a hindrance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures, of few pixels and pictures: half the time, where only their being there counts."""
    monkeypatch.setattr(canvas, "DPI", 30)
    monkeypatch.setattr(figures, "SHOWN", 2)
