"""The locally competitive algorithm, and the solvers that it and other dictionaries are compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import (
    IPVAE,
    LCA,
    ConfigError,
    IPVAEConfig,
    LCAConfig,
    TrainConfig,
    cli,
    evaluate,
    load_model,
    train,
)
from ipvae.cli import evaluate as cli_evaluate
from ipvae.data import load_dataset
from ipvae.evaluation.sparse_coding import SOLVERS, sparse_codes
from torch import Tensor
from typer.testing import CliRunner

M, K, B = 12, 20, 6
NAMES = ("log_rate", "counts", "reconstruction", "recon", "squared_error", "spikes", "zeros")


def make(**options: Any) -> LCA:
    return LCA(LCAConfig(n_inputs=M, n_latents=K, **{"tau": 8.0, "t_train": 50, **options}))


def inputs(n: int = B, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, M, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("solver", ["fista", "lasso"])
def test_a_soft_threshold_ends_at_the_minimum_that_solvers_find(solver: str) -> None:
    if solver == "fista":
        pytest.importorskip("pylops")
    model, x = make(penalty=0.3).double(), inputs(dtype=torch.float64)
    codes = model.encode(x, steps=4000)
    found = sparse_codes(model, x, solver, penalty=0.3, max_iter=5000)
    energy = float(model.energy(x, codes).mean())
    assert found.penalised is not None
    assert energy == pytest.approx(found.penalised, rel=1e-5)
    np.testing.assert_allclose(found.codes, codes.numpy(), atol=2e-3)
    assert found.zeros == pytest.approx(float((codes == 0).double().mean()), abs=0.02)
    assert energy < float(model.energy(x, torch.zeros(B, K).double()).mean()) - 1.0


def test_a_hard_threshold_ends_where_nothing_moves() -> None:
    """Active neurons carry what is left of the input along them, silent ones at most the penalty."""
    model, x = make(penalty=0.4, threshold="hard").double(), inputs(dtype=torch.float64)
    state = model.infer(x, 6000).state.log_rate
    codes, phi = model.rates(state), model.dictionary
    residual = (x - codes @ phi.T) @ phi
    assert float(residual[codes != 0].abs().max()) < 1e-4
    assert float(residual[codes == 0].abs().max()) <= 0.4
    assert float(codes[codes != 0].abs().min()) > 0.4
    torch.testing.assert_close(model.dictionary.norm(dim=0), torch.ones(K).double())


def test_the_gradient_of_the_dictionary_by_finite_differences() -> None:
    """At codes held constant, which is what the rule says."""
    model, x = make(penalty=0.3).double(), inputs(dtype=torch.float64)
    result = model(x)
    (gradient,) = torch.autograd.grad(result.loss, model.phi)
    codes = model.rates(result.state.log_rate)
    along = torch.randn(M, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    energies = []
    with torch.no_grad():
        for h in (1e-6, -2e-6):
            model.phi.add_(h * along)
            energies.append(float(model.energy(x, codes).mean()) * 256 / M)
    expected = (energies[0] - energies[1]) / 2e-6
    assert float((gradient * along).sum()) == pytest.approx(expected, rel=1e-6)
    assert float(result.loss) == pytest.approx(float(model.energy(x, codes).mean()) * 256 / M, rel=1e-6)
    assert bool(result.kl.isnan().all())


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("threshold", ["soft", "hard"])
def test_steps_and_batches_may_be_cut(threshold: str, moving: bool) -> None:
    model, x = make(threshold=threshold), inputs()
    x = torch.stack([x * (1 + 0.1 * t) for t in range(7)]) if moving else x
    whole = model.infer(x, 7, record=NAMES)
    first = model.infer(x[:3] if moving else x, 3, record=NAMES)
    rest = model.infer(x[3:] if moving else x, 4, record=NAMES, state=first.state)
    for name in NAMES:
        assert torch.equal(whole.records[name], torch.cat([first.records[name], rest.records[name]])), name
    assert whole.state.step == rest.state.step == 7
    rows = model.infer(x[..., 2:4, :], 7, record=("counts",)).records["counts"]
    torch.testing.assert_close(rows, whole.records["counts"][:, 2:4], rtol=1e-5, atol=1e-6)
    every = model.infer(x, 7, record=("kl", "recon"), record_every=3).records
    assert torch.equal(every["recon"], whole.records["recon"][2::3])
    assert bool(every["kl"].isnan().all())


@pytest.mark.parametrize("threshold", ["soft", "hard"])
def test_digits_train_and_files_keep_every_bit(threshold: Any, tmp_path: Path) -> None:
    """The energy falls by a tenth and more in 100 updates from a random dictionary."""
    data = load_dataset("digits")
    x = torch.as_tensor(data.test)
    config = LCAConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=96, threshold=threshold)
    model = LCA(config)

    def energy(net: Any) -> float:
        return float(net.energy(x, net.encode(x, steps=100)).mean())

    start = energy(model)
    result = train(model, data, TrainConfig(max_steps=100, batch_size=100), tmp_path / "run", progress=False)
    assert energy(result.model) < 0.9 * start
    found = evaluate(result.model, x, 100, marks=())
    assert found.r2[-1] > 0.8
    assert found.zeros[-1] > 0.6
    assert found.summary()["nelbo"] is None
    assert found.to_dict()["kl"] is None
    json.dumps(found.to_dict(), allow_nan=False)
    again = load_model(tmp_path / "run")
    assert again.config == config
    assert torch.equal(again.infer(x, 9).state.log_rate, result.model.infer(x, 9).state.log_rate)


def test_resumed_runs_are_whole_ones(tmp_path: Path) -> None:
    import lightning.pytorch as lightning

    class Stop(lightning.Callback):
        def __init__(self, at: int) -> None:
            self.at = at

        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == self.at

    states = []
    for name, stops in (("whole", (8,)), ("cut", (3, 8))):
        out = tmp_path / name
        for at in stops:
            model = make(t_train=10)
            train(
                model, inputs(60), TrainConfig(max_steps=8, batch_size=20), out, logger=None, progress=False,
                resume=(out / "checkpoints" / "last.ckpt").exists(), callbacks=[Stop(at)],
            )  # fmt: skip
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_matching_pursuit_takes_so_many_neurons() -> None:
    model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, init_scale=0.3))
    x = inputs()
    one, five = (sparse_codes(model, x, "omp", n_nonzero=n) for n in (1, 5))
    assert [int((row != 0).sum()) for row in five.codes] == [5] * B
    assert five.r2 > one.r2 + 0.2
    assert one.penalised is None
    # The first neuron is that of the largest correlation, at its least-squares weight.
    phi = model.dictionary.detach()
    along = x @ (phi / phi.norm(dim=0))
    best = along.abs().argmax(-1)
    assert np.array_equal(one.codes.nonzero()[1], best.numpy())
    weights = along.gather(1, best[:, None])[:, 0] / phi.norm(dim=0)[best]
    np.testing.assert_allclose(one.codes[np.arange(B), best], weights.numpy(), rtol=1e-4)


def test_commands_serve_it(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    sizes = [
        "--data",
        "digits",
        "--latents",
        "80",
        "--t-train",
        "20",
        "--max-steps",
        "4",
        "--batch-size",
        "8",
    ]
    out = tmp_path / "run"
    trained = call("train", *sizes, "--model", "lca-hard", "--out", out, "--eval-steps", 30)
    assert "no ELBO" in trained
    file = tmp_path / "found.json"
    solvers = ["--solver", "lasso", "--solver", "omp", "--nonzero", 5, "--limit", 20]
    shown = call("eval", out, "--data", "digits", "--steps", 30, *solvers, "--json", file)
    assert "The same dictionary by lasso: R2" in shown
    assert "energy" in shown
    found = json.loads(file.read_text())
    assert found["nelbo"] is None
    assert found["solvers"]["omp"]["n_nonzero"] == 5
    assert found["solvers"]["lasso"]["penalty"] == pytest.approx(load_model(out).config.penalty)  # type: ignore[attr-defined]
    call("infer", out, "--data", "digits", "--split", "test", "--steps", 4, "--out", tmp_path / "y.npz")
    call("plot", out, "--data", "digits", "--out", tmp_path / "figures")
    assert set(cli_evaluate.SOLVERS) == set(SOLVERS)


def test_what_cannot_serve_is_refused() -> None:
    model, x = make(), inputs()
    curved = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K, decoder="mlp"))
    for call, error, message in (
        (lambda: make(decoder="mlp"), ConfigError, "decoder: expected 'linear' for an LCA, found 'mlp'"),
        (lambda: make(penalty=0.0), ConfigError, "penalty: expected"),
        (lambda: make(threshold="firm"), ConfigError, "threshold: expected one of"),
        (lambda: make(tau=0.5), ConfigError, "tau: expected"),
        (lambda: model(x, estimator="cubic"), ValueError, "estimator: expected None for an LCA"),
        (lambda: model(x, truncate=3), ValueError, "truncate: expected None for an LCA"),
        (lambda: model.infer(x, 0), ValueError, "steps: expected at least 1"),
        (lambda: model.infer(x[None].expand(3, -1, -1), 4), ValueError, "x: expected"),
        (lambda: model.infer(x * math.nan), ValueError, "x: expected finite"),
        (lambda: model.generate(3), ValueError, "prior: an LCA has no law of latents"),
        (lambda: sparse_codes(model, x, "ista"), ValueError, "solver: expected one of"),
        (lambda: sparse_codes(model, x, "lasso"), TypeError, "penalty: expected"),
        (lambda: sparse_codes(model, x, "lasso", penalty=-1.0), ValueError, "penalty: expected"),
        (lambda: sparse_codes(model, x, "omp"), TypeError, "n_nonzero: expected"),
        (lambda: sparse_codes(model, x, "omp", n_nonzero=M + 1), ValueError, "n_nonzero: expected"),
        (
            lambda: sparse_codes(model, x, "omp", n_nonzero=3, penalty=0.1),
            ValueError,
            "penalty: expected None",
        ),
        (lambda: sparse_codes(curved, x, "omp", n_nonzero=3), ValueError, "dictionary: expected a linear"),
    ):
        with pytest.raises(error, match=message):
            call()
