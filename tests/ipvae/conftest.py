"""What the tests of `ipvae` share."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from ipvae import figures
from ipvae.plots import canvas
from joblib.externals.loky import reusable_executor

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are too small for threads to be anything but a hindrance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_workers() -> Iterator[None]:
    """Joblib's workers end with the test: its threads would hold their locks in the forks of later ones."""
    yield
    if (executor := reusable_executor._executor) is not None:
        executor.shutdown(wait=True, kill_workers=True)


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures, of few pixels and pictures: half the time, where only their being there counts."""
    monkeypatch.setattr(canvas, "DPI", 30)
    monkeypatch.setattr(figures, "SHOWN", 2)
