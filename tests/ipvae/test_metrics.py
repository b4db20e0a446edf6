"""`ipvae.evaluation.metrics` against direct formulas, and streams against the whole."""

import numpy as np
import pytest
import torch
from ipvae.evaluation import metrics


@pytest.fixture
def counts() -> torch.Tensor:
    counts = torch.poisson(torch.full((40, 12), 0.4), generator=torch.Generator().manual_seed(0))
    counts[:, 3] = 0
    counts[7] = 0
    return counts


def test_r2_is_of_each_sample_against_its_own_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    expected = [
        1
        - sum((a - b) ** 2 for a, b in zip(row, other, strict=True))
        / sum((a - sum(row) / 9) ** 2 for a in row)
        for row, other in zip(x.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(metrics.r2(x, y), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics.squared_error(x, y), ((x - y) ** 2).sum(1))


def test_r2_of_a_flat_input_is_finite() -> None:
    assert metrics.r2(torch.ones(1, 4), torch.ones(1, 4)).tolist() == [1.0]
    assert np.isfinite(metrics.r2(torch.ones(1, 4), torch.zeros(1, 4)).item())


def test_zeros_fraction(counts: torch.Tensor) -> None:
    expected = [sum(z == 0 for z in row) / 12 for row in counts.tolist()]
    torch.testing.assert_close(metrics.zeros_fraction(counts), torch.tensor(expected))


def sparsity(values: list[float]) -> float:
    n = len(values)
    if not any(values):
        return 1.0
    return (1 - sum(values) ** 2 / sum(v * v for v in values) / n) / (1 - 1 / n)


def test_sparsity_is_the_released_score(counts: torch.Tensor) -> None:
    lifetime, population = metrics.lifetime_sparsity(counts), metrics.population_sparsity(counts)
    np.testing.assert_allclose(lifetime, [sparsity(column) for column in counts.T.tolist()], rtol=1e-12)
    np.testing.assert_allclose(population, [sparsity(row) for row in counts.tolist()], rtol=1e-12)
    assert lifetime[3] == 1.0
    assert population[7] == 1.0


def test_sparsity_of_the_extremes() -> None:
    assert metrics.population_sparsity(torch.ones(1, 8)).item() == 0.0
    assert metrics.population_sparsity(torch.eye(8)).tolist() == [1.0] * 8
    with pytest.raises(ValueError, match="at least 2"):
        metrics.population_sparsity(torch.ones(3, 1))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_sparsity_streams(counts: torch.Tensor, size: int) -> None:
    sums = metrics.SparsitySums()
    for batch in counts.split(size):
        sums.add(batch)
    assert sums.lifetime() == pytest.approx(float(metrics.lifetime_sparsity(counts).mean()), rel=1e-12)
    assert sums.population() == pytest.approx(float(metrics.population_sparsity(counts).mean()), rel=1e-12)


def test_sparsity_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no counts"):
        metrics.SparsitySums().lifetime()
    with pytest.raises(ValueError, match="no counts"):
        metrics.SparsitySums().population()


def test_step_sums_stream_over_steps_and_samples() -> None:
    values = torch.randn(10, 30, generator=torch.Generator().manual_seed(2))
    sums = metrics.StepSums(10)
    for samples in values.split([4, 26], dim=1):
        first = 0
        for steps in samples.split([3, 1, 6]):
            sums.add(first, {"value": steps})
            first += len(steps)
    np.testing.assert_allclose(sums.means()["value"], values.double().mean(1), rtol=1e-12)


def test_step_sums_refuse_steps_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="below 4"):
        metrics.StepSums(4).add(3, {"value": torch.zeros(2, 1)})


def test_steps_to_counts_from_one() -> None:
    curve = np.array([-1.0, 0.5, 0.94, 0.96, 0.99, 1.0])
    assert metrics.steps_to(curve, 0.95) == 4
    assert metrics.steps_to(curve, 0.99) == 5
    assert metrics.steps_to(curve, 1.0) == 6
    assert metrics.steps_to(np.array([2.0]), 0.95) == 1


@pytest.mark.parametrize(
    ("curve", "fraction", "argument"),
    [([], 0.9, "curve"), ([1.0], 0.0, "fraction"), ([1.0], 1.1, "fraction"), ([0.5, -1.0], 0.9, "curve")],
)
def test_steps_to_refuses_what_has_no_answer(curve: list[float], fraction: float, argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        metrics.steps_to(np.array(curve), fraction)
