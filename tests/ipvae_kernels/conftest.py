"""Fixtures of the ops' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipvae_kernels.backend import compiled


def _instruction_sets() -> list[str]:
    return compiled.load().instruction_sets() if compiled.reason() is None else []


@pytest.fixture(params=_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    module = compiled.load()
    before = module.instruction_set()
    module.set_instruction_set(request.param)
    yield request.param
    module.set_instruction_set(before)
