"""`ipvae.evaluation.evaluate` against records of the whole, however it is cut."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import Evaluation, IterativeVAE, evaluate
from ipvae.evaluation import metrics as measures
from ipvae.evaluation.evaluate import latents_at
from ipvae.evaluation.readout import linear_readout
from ipvae.models.registry import FAMILIES
from torch import Tensor

STEPS = 12


@pytest.fixture(params=["poisson", "gaussian"])
def model(request: pytest.FixtureRequest) -> IterativeVAE:
    family = FAMILIES[request.param]
    return family(family.config_class(n_inputs=10, n_latents=8, init_scale=0.2, seed=1))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(11, 10, generator=torch.Generator().manual_seed(1))


def by_hand(model: IterativeVAE, x: Tensor, seed: int) -> dict[str, Any]:
    record = ("counts", "reconstruction", "kl", "recon")
    records = model.infer(x, STEPS, record=record, seed=seed).records
    counts, kl, recon = records["counts"], records["kl"], records["recon"]
    return {
        "r2": measures.r2(x, records["reconstruction"]).mean(-1),
        "squared_error": (x - records["reconstruction"]).square().sum(-1).mean(-1),
        "zeros": (counts == 0).float().mean((1, 2)),
        "spikes": counts.sum(-1).mean(-1),
        "kl": kl.mean(-1),
        "recon": recon.mean(-1),
        "nelbo": (kl + recon).mean(-1),
        "counts": counts,
    }


@pytest.mark.parametrize("moving", [False, True])
def test_curves_are_the_means_of_what_infer_records(model: IterativeVAE, x: Tensor, moving: bool) -> None:
    if moving:
        x = torch.randn(STEPS, 11, 10, generator=torch.Generator().manual_seed(2))
    expected = by_hand(model, x, seed=4)
    found = evaluate(model, x, STEPS, seed=4)
    for name in ("r2", "squared_error", "zeros", "spikes", "kl", "recon", "nelbo"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=2e-5, atol=1e-6, err_msg=name)
    last = expected["counts"][-1]
    assert found.lifetime == {STEPS: pytest.approx(measures.lifetime_sparsity(last).mean().item())}
    assert found.population == {STEPS: pytest.approx(measures.population_sparsity(last).mean().item())}
    assert (found.steps, found.n_samples) == (STEPS, 11)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(("batch_size", "block"), [(4, 2**22), (11, 25), (3, 3)])
def test_cutting_samples_and_time_changes_nothing(
    model: IterativeVAE, x: Tensor, moving: bool, batch_size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moving:
        x = torch.randn(STEPS, 11, 10, generator=torch.Generator().manual_seed(2))
    whole = evaluate(model, x, STEPS, marks=(1, 5, STEPS))
    monkeypatch.setattr("ipvae.evaluation.evaluate.BLOCK", block)
    cut = evaluate(model, x, STEPS, batch_size=batch_size, marks=(1, 5, STEPS))
    for name in ("r2", "zeros", "spikes", "kl", "nelbo"):
        expected = getattr(whole, name)
        typical = np.abs(expected).mean()  # a mean of signed latents may come out near 0 at some step
        close = {"rtol": 1e-5, "atol": 1e-6 * typical}
        np.testing.assert_allclose(getattr(cut, name), expected, **close, err_msg=name)
    assert cut.lifetime == {mark: pytest.approx(value, rel=1e-5) for mark, value in whole.lifetime.items()}
    assert set(cut.population) == {1, 5, STEPS}


def test_counts_are_never_recorded_between_marks(
    model: IterativeVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, bool]] = []
    infer = IterativeVAE.infer

    def spy(self: IterativeVAE, x: Tensor, steps: int, **options: Any) -> Any:
        calls.append((steps, "counts" in options["record"]))
        return infer(self, x, steps, **options)

    monkeypatch.setattr(IterativeVAE, "infer", spy)
    evaluate(model, x, STEPS, marks=(6,))
    assert calls == [(5, False), (1, True), (6, False)]


def test_latents_are_those_of_a_single_run(model: IterativeVAE, x: Tensor) -> None:
    records = model.infer(x, STEPS, record=("log_rate",), seed=3).records["log_rate"]
    found = latents_at(model, x, (2, 7, STEPS), batch_size=4, seed=3)
    for mark, latents in found.items():
        torch.testing.assert_close(latents, model.rates(records[mark - 1]), rtol=1e-5, atol=1e-6)


def test_a_readout_is_fitted_to_other_samples(model: IterativeVAE) -> None:
    generator = torch.Generator().manual_seed(5)
    centres = 3 * torch.randn(3, 10, generator=generator)
    labels = torch.randint(3, (90,), generator=generator)
    x = centres[labels] + 0.1 * torch.randn(90, 10, generator=generator)
    found = evaluate(model, x[60:], STEPS, labels=labels[60:], train=(x[:60], labels[:60]), seed=2)
    latents = [
        latents_at(model, part, [STEPS], seed=seed)[STEPS] for part, seed in ((x[:60], 3), (x[60:], 2))
    ]
    assert found.readout[STEPS] == linear_readout(latents[0], labels[:60], latents[1], labels[60:])
    assert found.readout[STEPS].train_accuracy > 0.9
    assert found.summary()["accuracy"] == found.readout[STEPS].accuracy


def test_a_readout_says_whether_it_converged() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=generator), torch.randint(2, (50,), generator=generator)
    assert linear_readout(x, y, x, y).converged
    assert not linear_readout(x, y, x, y, max_iter=1).converged


def test_progress_counts_samples(model: IterativeVAE, x: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(model, x, 2, batch_size=4, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_the_result_is_plain_in_json(model: IterativeVAE, x: Tensor) -> None:
    found = evaluate(model, x, STEPS)
    values = json.loads(json.dumps(found.to_dict()))
    assert values["r2"] == found.r2.tolist()
    assert json.loads(json.dumps(found.summary()))["nelbo"] == found.nelbo[-1]


def evaluation(r2: list[float]) -> Evaluation:
    curve = np.array(r2)
    return Evaluation(curve, curve, curve, curve, curve, curve, curve, n_samples=1, seconds=1.0)


def test_steps_to_a_share_of_the_last_r2() -> None:
    assert evaluation([0.1, 0.9, 0.98, 1.0]).summary()["steps_to_95"] == 3
    assert evaluation([0.1, -0.2]).steps_to(0.95) is None


def test_one_sample_has_no_lifetime_sparsity(model: IterativeVAE, x: Tensor) -> None:
    found = evaluate(model, x[:1], 3)
    assert found.lifetime == {}
    assert np.isfinite(found.r2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "x: expected samples, steps and batch_size"),
        ({"batch_size": 0}, "x: expected samples, steps and batch_size"),
        ({"marks": (0,)}, "marks: expected steps from 1 to 4"),
        ({"marks": (5,)}, "marks: expected steps from 1 to 4"),
        ({"labels": torch.zeros(11)}, "labels: give labels and train together"),
        (
            {"labels": torch.zeros(3), "train": (torch.zeros(2, 10), torch.zeros(2))},
            "labels: expected 11, found 3",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    model: IterativeVAE, x: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(model, x, **{"steps": 4, **options})


def test_no_samples_are_refused(model: IterativeVAE) -> None:
    with pytest.raises(ValueError, match="found 0, 4"):
        evaluate(model, torch.zeros(0, 10), 4)
