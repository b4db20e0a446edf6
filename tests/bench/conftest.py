"""A state trained for two updates: enough for everything but a benchmark."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from ipvae_bench.problem import Settings
from ipvae_bench.states import load

mpl.use("Agg")


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small, quick, and with the state in place."""
    folder = tmp_path_factory.mktemp("states")
    load("paper", 2, folder)
    return Settings(threads=1, seconds=0.0, updates=2, state_dir=folder, memory=False)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
