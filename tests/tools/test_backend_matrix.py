"""The page of backends says what the code says."""

from __future__ import annotations

import backend_matrix


def test_the_page_of_backends_is_current() -> None:
    command = "python tools/backend_matrix.py --write"
    assert backend_matrix.page() == backend_matrix.PAGE.read_text(), f"write it anew: {command}"


def test_a_refusal_is_found_and_given_once() -> None:
    calls = backend_matrix.calls()
    with backend_matrix.as_if_there():
        assert backend_matrix.refusal(calls["`elbo`"], "cuda") is None
        found = backend_matrix.refusal(calls["`elbo` in float64"], "cuda")
    assert found == "it computes in torch.float32, the tensors are torch.float64"
