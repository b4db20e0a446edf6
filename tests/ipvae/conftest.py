"""What the tests of `ipvae` share."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are too small for threads to be anything but a hindrance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
