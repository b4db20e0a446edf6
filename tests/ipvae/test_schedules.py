"""`ipvae.training.schedules` against the arrays that the released code fills."""

import math

import numpy as np
import pytest
from ipvae.training import schedules

TOTALS = [1, 2, 7, 20, 199, 200, 1000, 1201]


def ramp(total: int, first: float, portion: float, low: float, high: float) -> np.ndarray:
    """Low for the first share of the steps, `numpy.linspace` over the next, then high."""
    values = np.full(total, high)
    a, b = math.ceil(first * total), math.ceil((first + portion) * total)
    values[:a] = low
    values[a:b] = np.linspace(low, high, b - a)
    return values


@pytest.mark.parametrize("total", TOTALS)
def test_temperature(total: int) -> None:
    found = [schedules.temperature(step, total) for step in range(total)]
    np.testing.assert_array_equal(found, ramp(total, 0.0, 0.5, 1.0, 0.01))


@pytest.mark.parametrize("total", TOTALS)
def test_beta_and_eps(total: int) -> None:
    betas = [schedules.beta(step, total, final=24.0) for step in range(total)]
    np.testing.assert_array_equal(betas, ramp(total, 0.001, 0.1, 1e-4, 24.0))
    epsilons = [schedules.eps(step, total) for step in range(total)]
    np.testing.assert_array_equal(epsilons, ramp(total, 0.001, 0.1, 0.0, 1.0))


def test_a_constant_temperature_needs_no_portion() -> None:
    assert schedules.temperature(0, 10, start=1.0, stop=0.3, portion=0.0) == 0.3


@pytest.mark.parametrize("total", [10, 200, 1000, 12_000])
def test_learning_rate_warms_up_and_follows_half_a_cosine(total: int) -> None:
    peak, low, portion = 0.005, 1e-5, 0.005
    rates = np.array([schedules.learning_rate(step, total, peak=peak) for step in range(total)])
    warm = sum(step / total < portion for step in range(total))
    np.testing.assert_allclose(rates[:warm], peak * np.arange(warm) / total / portion, rtol=1e-12)
    phase = np.arange(total - warm) / (total * (1 - portion))
    np.testing.assert_allclose(rates[warm:], low + (peak - low) * (1 + np.cos(np.pi * phase)) / 2, rtol=1e-12)
    assert rates[warm] == peak
    assert [schedules.warming_up(step, total) for step in range(total)] == [True] * warm + [False] * (
        total - warm
    )


def test_learning_rate_equals_the_released_chain_but_for_its_peak() -> None:
    """Their chained scheduler starts from the last warm-up value; see `schedules.learning_rate`."""
    total, peak, low, portion = 12_000, 0.005, 1e-5, 0.005
    warm = 60
    rate = peak * (warm - 1) / total / portion
    period = total * (1 - portion)
    for epoch, step in enumerate(range(warm, total)):
        if epoch:  # torch's CosineAnnealingLR in its chained form
            rate = (1 + math.cos(math.pi * epoch / period)) / (
                1 + math.cos(math.pi * (epoch - 1) / period)
            ) * (rate - low) + low
        ours = schedules.learning_rate(step, total, peak=peak)
        assert abs(ours / rate - 1) <= 1.0001 / (warm - 1)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert schedules.learning_rate(0, 100, peak=0.1, warmup_portion=0.0) == 0.1
    assert schedules.learning_rate(99, 100, peak=0.1, warmup_portion=1.0) == pytest.approx(0.099)
