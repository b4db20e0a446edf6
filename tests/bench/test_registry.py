"""Cases and the states they run on."""

import pytest
import torch
from ipvae_bench import states
from ipvae_bench.cases import CASES, GROWTH, SUITES, select
from ipvae_bench.problem import Settings, make


def test_every_case_is_in_a_suite_and_has_a_state() -> None:
    assert set(SUITES["quick"]) | set(SUITES["full"]) == set(CASES)
    for case in CASES.values():
        assert case.state == "uniform" or case.state in states.STATES
        assert case.operations(0.3) > 0
        assert case.bytes() > 0


def test_operations_and_bytes_by_hand() -> None:
    infer, train = CASES["infer-paper"], CASES["train-paper-fini2"]
    products = 2 * 256 * 512 * (1 + 2 * 0.5)
    assert infer.operations(0.5) == 200 * 16 * (products + 150 * 512)
    assert train.operations(0.5) == 200 * 16 * (3 * products + 150 * 512)
    assert infer.bytes() == 4 * (256 * 512 + 200 * 256 + 2 * 16 * 200 + 200 * 512)


def test_select() -> None:
    assert [case.name for case in select("quick")] == list(SUITES["quick"])
    assert {case.axis for case in select("full", ["growth-K", "growth-B"])} == {"K", "B"}
    assert [case.name for case in select("quick", ["infer-paper"])] == ["infer-paper"]
    with pytest.raises(ValueError, match="quick, main, growth, full; found 'x'"):
        select("x")
    with pytest.raises(ValueError, match="'zebra' is in the name of no case"):
        select("full", ["zebra"])


@pytest.mark.parametrize("name", ["paper-k128", "paper-k1024", "wide"])
def test_derived_dictionaries_keep_the_largest_eigenvalue(settings: Settings, name: str) -> None:
    base = states.load("paper", 2, settings.state_dir).model
    state = states.load(name, 2, settings.state_dir)
    spec = states.STATES[name]
    assert state.model.dictionary.shape == (spec.pixels, spec.neurons)
    assert state.x.shape == (states.POOL, spec.pixels)
    weighted = [m.dictionary / m.log_sigma.exp().unsqueeze(1) for m in (base, state.model)]
    largest = [float(torch.linalg.matrix_norm(w.detach(), 2)) for w in weighted]
    assert largest[1] == pytest.approx(largest[0], rel=1e-4)


def test_copies_of_features_are_shifted_differently() -> None:
    for copies in (1, 2, 4, 64):
        offsets = states._offsets(copies)
        assert len(set(offsets)) == len(offsets) == copies
    assert states._offsets(0.25) == [(0, 0)]


@pytest.mark.parametrize("share", [share for share in GROWTH["firing"] if 0.001 < share < 0.3])
def test_the_share_of_spiking_neurons_is_what_was_asked_for(settings: Settings, share: float) -> None:
    problem = make(CASES[f"growth-firing-{share:g}"], settings)
    assert problem.nonzero == pytest.approx(share, rel=0.1)


def test_states_are_reproducible(settings: Settings, tmp_path: object) -> None:
    first, again = (states.load("paper", 2, folder) for folder in (settings.state_dir, tmp_path))  # type: ignore[arg-type]
    torch.testing.assert_close(again.x, first.x, rtol=0, atol=0)
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-6, atol=1e-8)


def test_log_rates_of_the_sampling_cases(settings: Settings) -> None:
    uniform = make(CASES["sample-uniform-hard"], settings)
    assert uniform.log_rate.shape == (1000, 1000)
    assert -8 <= float(uniform.log_rate.min()) < -7.9
    assert 3.9 < float(uniform.log_rate.max()) <= 4
    assert uniform.rate == pytest.approx(float(uniform.log_rate.exp().mean()))
    assert make(CASES["sample-paper-hard"], settings).log_rate.shape == (1000, 1000)
    floor = CASES["sample-floor"]
    assert make(floor, settings).log_rate.shape == (1, 64)
    assert floor.sizes == {"N": 64}
