"""Amortised models: gradients, laws, files, runs, commands, and agreement with the authors' code."""

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import (
    GVAE,
    PVAE,
    CheckpointError,
    ConfigError,
    GVAEConfig,
    IPVAEConfig,
    PVAEConfig,
    Stream,
    TrainConfig,
    TrainingError,
    cli,
    evaluate,
    load_model,
    train,
)
from ipvae.data import load_dataset
from ipvae.models.amortised import AmortisedVAE
from torch import Tensor, nn
from typer.testing import CliRunner

SHAPE, M, K = (1, 5, 6), 30, 7
KINDS = ["linear", "mlp", "conv"]


def make(
    encoder: str = "linear", decoder: str = "linear", family: type[AmortisedVAE] = PVAE, **options: Any
) -> AmortisedVAE:
    widths = {
        f"{part}_width": 6 for part, kind in (("encoder", encoder), ("decoder", decoder)) if kind in KINDS[1:]
    }
    modules = {
        name: options.pop(f"own_{name}") for name in ("encoder", "decoder") if f"own_{name}" in options
    }
    fields = {
        "n_inputs": M, "n_latents": K, "input_shape": SHAPE, "encoder": encoder, "decoder": decoder, **widths
    }  # fmt: skip
    return family(family.config_class(**{**fields, **options}), **modules)


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("family", "own"),
    [
        (PVAE, {"estimator": "cubic", "temperature": 0.6}),
        (PVAE, {"estimator": "sigmoid", "temperature": 0.6}),
        (PVAE, {"estimator": "gumbel", "temperature": 0.6}),
        (GVAE, {}),
    ],
    ids=["cubic", "sigmoid", "gumbel", "gaussian"],
)
@pytest.mark.parametrize(("encoder", "decoder"), [("linear", "linear"), ("mlp", "conv"), ("conv", "mlp")])
def test_gradients_are_those_of_finite_differences(
    encoder: str, decoder: str, family: type[AmortisedVAE], own: dict[str, Any]
) -> None:
    model = make(encoder, decoder, family, init_scale=0.2, seed=1).double()
    x = images(3, torch.float64)

    def loss(backend: str) -> Tensor:
        value: Tensor = model(x, beta=1.5, seed=2, backend=backend, **own).loss
        return value

    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss("autograd"), parameters)
    if own.get("estimator") != "gumbel":  # which autograd serves alone
        for one, other in zip(gradients, torch.autograd.grad(loss("eager"), parameters), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    generator = torch.Generator().manual_seed(4)
    along = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    values = []
    with torch.no_grad():
        for h in (1e-6, -2e-6):
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(h * direction)
            values.append(float(loss("autograd")))
    expected = (values[0] - values[1]) / 2e-6
    found = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True))
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_divergences_are_those_of_torch() -> None:
    x = images(5, torch.float64)
    model = make("mlp", init_scale=0.4).double()
    u, prior = model.posterior(x), model.prior.expand(5, K)
    laws = [torch.distributions.Poisson(v.exp()) for v in (u, prior)]
    expected = torch.distributions.kl_divergence(*laws)
    torch.testing.assert_close(model.kl(u, model.prior), expected, rtol=1e-10, atol=1e-12)
    gaussian = make("mlp", family=GVAE, init_scale=0.4).double()
    state, own = gaussian.posterior(x), gaussian.prior
    normals = [torch.distributions.Normal(v[0], v[1].exp()) for v in (state, own[:, None].expand(-1, 5, -1))]
    expected = torch.distributions.kl_divergence(*normals)
    torch.testing.assert_close(gaussian.kl(state, own), expected, rtol=1e-10, atol=1e-12)


def test_the_posterior_is_the_prior_where_the_encoder_adds_nothing() -> None:
    for family in (PVAE, GVAE):
        model = make("linear", family=family, init_scale=0.0)
        shown = model.posterior(images())
        # The soft ceilings, 10 and 5, lower log rates of -2 to 0 by .007 at most.
        torch.testing.assert_close(shown[..., 0, :], model.prior, rtol=0.0, atol=0.008)
        assert float(model.kl(shown, model.prior).detach().max()) < 1e-4


@pytest.mark.parametrize("family", [PVAE, GVAE])
def test_records_are_those_of_one_step(family: type[AmortisedVAE]) -> None:
    model, x = make("mlp", "mlp", family, init_scale=0.3), images(4)
    names = ("log_rate", "counts", "reconstruction", "recon", "kl", "squared_error", "spikes", "zeros")
    state, found = model.infer(x, record=names, seed=3)
    z, mean = found["counts"][0], model.decode(found["counts"])[0]
    torch.testing.assert_close(found["reconstruction"][0], mean)
    torch.testing.assert_close(found["squared_error"][0], (x.flatten(1) - mean).square().sum(1))
    normal = torch.distributions.Normal(mean, model.log_sigma.exp())
    torch.testing.assert_close(found["recon"][0], -normal.log_prob(x.flatten(1)).sum(1))
    torch.testing.assert_close(found["kl"][0], model.kl(state.log_rate, model.prior).sum(1))
    torch.testing.assert_close(found["zeros"][0], (z == 0).float().mean(1))
    assert found["log_rate"].shape == ((1, 2, 4, K) if family is GVAE else (1, 4, K))
    loss = model(x, seed=3, **({"estimator": "hard"} if family is PVAE else {}))
    torch.testing.assert_close(loss.recon, found["recon"])
    torch.testing.assert_close(loss.kl, found["kl"])
    parts = [
        model.infer(x[i : i + 2], record=("counts",), seed=3, sample_offset=i).records["counts"]
        for i in (0, 2)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), found["counts"])
    assert model.encode(x, counts=True, seed=3).equal(z)


@pytest.mark.parametrize(
    ("family", "encoder", "decoder", "options"),
    [
        (PVAE, "linear", "linear", {}),
        (PVAE, "mlp", "linear", {"estimator": "cubic"}),
        (PVAE, "conv", "mlp", {}),
        (GVAE, "linear", "linear", {}),
        (GVAE, "mlp", "linear", {"activation": "relu"}),
    ],
)
def test_it_learns_digits(
    family: type[AmortisedVAE], encoder: str, decoder: str, options: dict[str, Any], tmp_path: Path
) -> None:
    data = load_dataset("digits")
    sizes = {"n_inputs": 64, "input_shape": (1, 8, 8), "n_latents": 64}
    model = make(encoder, decoder, family, **{**sizes, **options})
    start = evaluate(model, data.test, marks=())
    config = TrainConfig(
        lr=0.01, max_steps=60 if encoder == "conv" else 150, batch_size=100, beta_outer=0.5
    )  # fmt: skip
    train(model, data.train, config, tmp_path, logger=None, progress=False)
    found = evaluate(model, data.test, marks=())
    # R2 starts at -.68 or below and ends between .45 and .64; the mean image has .47.
    assert found.steps == 1
    assert found.r2[-1] > max(start.r2[-1] + 0.5, 0.4)
    assert found.nelbo[-1] < start.nelbo[-1] - 40.0


@pytest.mark.parametrize("family", [PVAE, GVAE])
@pytest.mark.parametrize("encoder", KINDS)
def test_files_keep_every_bit(encoder: str, family: type[AmortisedVAE], tmp_path: Path) -> None:
    model = make(encoder, "mlp" if encoder == "conv" else "linear", family)
    model.save_pretrained(tmp_path)
    for again in (family.from_pretrained(tmp_path), load_model(tmp_path)):
        assert again.config == model.config
        assert all(torch.equal(again.state_dict()[name], v) for name, v in model.state_dict().items())
    with pytest.raises(CheckpointError, match=f"expected .*, found a {model.cell} model"):
        (GVAE if family is PVAE else PVAE).from_pretrained(tmp_path)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    data = torch.rand(50, M, generator=torch.Generator().manual_seed(1))
    for encoder, family in (("conv", PVAE), ("mlp", GVAE)):
        own = {"estimator": "sigmoid"} if family is PVAE else {}
        states = []
        for name, stops in (("whole", (9,)), ("cut", (4, 9))):
            # The schedule is that of nine steps in both: one stops after four.
            for stop in stops:
                model = make(encoder, "linear", family, **own)
                config = TrainConfig(max_steps=9, batch_size=20, lr=0.01)
                run_until(model, data, config, tmp_path / family.__name__ / name, stop)
            states.append(model.state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def run_until(model: AmortisedVAE, data: Tensor, config: TrainConfig, out: Path, stop: int) -> None:
    import lightning.pytorch as lightning

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == stop

    again = (out / "checkpoints" / "last.ckpt").exists()
    train(model, data, config, out, logger=None, progress=False, resume=again, callbacks=[Stop()])


def test_own_encoders_serve_and_are_refused_with_the_reason(tmp_path: Path) -> None:
    def encoder(outputs: int = K) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(M, outputs))

    model = make("module", own_encoder=encoder())
    assert model(images(), seed=1).loss.isfinite()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="made with your own encoder"):
        load_model(tmp_path)
    assert torch.equal(load_model(tmp_path, encoder=encoder()).posterior(images()), model.posterior(images()))
    assert make("module", family=GVAE, own_encoder=encoder(2 * K)).posterior(images()).shape == (2, 4, K)
    for module, message in (
        (encoder(K + 1), r"encoder: expected a module that returns \[B, 7\], found \[B, 8\]"),
        (nn.Sequential(encoder(), nn.BatchNorm1d(K)), "encoder: 1 normalises by statistics of the batch"),
    ):
        with pytest.raises(ValueError, match=message):
            make("module", own_encoder=module)
    with pytest.raises(ConfigError, match=r"config\.encoder: expected 'module' beside a module, found 'mlp'"):
        make("mlp", own_encoder=encoder())


def test_what_an_encoder_has_not_is_refused() -> None:
    model, x = make(), images()
    for call, message in (
        (lambda: model.infer(x, 5), "steps: expected None or 1, an encoder infers in one, found 5"),
        (lambda: evaluate(model, x, 5), "steps: expected 1 of a p-vae, whose encoder infers in one, found 5"),
        (lambda: model.infer(x, state=model.infer(x).state), "state: expected None for a p-vae"),
        (lambda: model(x, truncate=2), "truncate: expected None for a p-vae"),
        (lambda: model(x[None].expand(3, -1, -1, -1, -1)), "x: expected still inputs"),
        (lambda: model(torch.rand(2, 6, 5)), r"x: expected shape \[\.\.\., 30\]"),
        (lambda: make(family=GVAE)(x, estimator="cubic"), "estimator: expected None for a g-vae"),
    ):
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match="model: expected one that infers moving input by steps, found p-vae"):
        Stream(model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="PVAE needs an PVAEConfig, found IPVAEConfig"):
        PVAE(IPVAEConfig(n_inputs=4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cell: expected 'p-vae' for PVAEConfig, found 'g-vae'"):
        PVAEConfig.from_dict(GVAEConfig(n_inputs=4).to_dict())


def test_a_run_that_diverges_is_reported(tmp_path: Path) -> None:
    config = TrainConfig(lr=1e30, lr_min=0.0, max_steps=30, batch_size=20, warmup_portion=0.0, grad_clip=None)
    with pytest.raises(TrainingError, match=r"training diverged: .* at step"):
        train(make("mlp", "mlp"), torch.rand(60, M), config, tmp_path, logger=None, progress=False)


@pytest.mark.usefixtures("coarse_figures")
def test_commands_serve_it(tmp_path: Path) -> None:
    def call(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    run, digits = tmp_path / "run", ("--data", "digits")
    small = ("--latents", 16, "--max-steps", 5, "--batch-size", 50)
    told = call(
        "train",
        *digits,
        "--model",
        "g-relu-vae",
        "--encoder",
        "mlp",
        "--decoder",
        "conv",
        *small,
        "--out",
        run,
    )
    assert "g-vae model, 16 neurons, no inference steps" in told
    assert "activation relu, encoder mlp, decoder conv" in told
    told = call("eval", run, *digits, "--limit", 50, "--readout", "--readout-limit", 50)
    assert "An encoder infers in one step" in told
    assert "accuracy" in told
    call("infer", run, *digits, "--limit", 5, "--record", "counts,log_rate", "--out", tmp_path / "z.npz")
    with np.load(tmp_path / "z.npz") as found:
        assert (found["counts"].shape, found["log_rate"].shape) == ((1, 5, 16), (1, 2, 5, 16))
    call("plot", run, *digits, "--limit", 20, "--out", tmp_path / "figures")
    assert (tmp_path / "figures" / "features.png").is_file()
    refused = CliRunner().invoke(cli.app, ["train", "--data", "digits", "--encoder", "mlp", "--out", "x"])
    assert "encoder: IPVAEConfig has none, found 'mlp'" in refused.stderr


@pytest.fixture
def theirs(shared: Callable[[str], Path]) -> Any:
    """The authors' PoissonVAE, beside this checkout or where ``IPVAE_REFERENCE_POISSONVAE`` says."""
    folder = os.environ.get("IPVAE_REFERENCE_POISSONVAE") or shared("PoissonVAE")
    from ipvae_bench.contestants import authors

    own = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ("main", "base")
    }
    with authors.importable(Path(folder), authors.AMORTISED):
        yield importlib.import_module("main.vae"), importlib.import_module("main.config_vae")
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("main", "base", "figures", "analysis")
    ]:
        del sys.modules[name]
    sys.modules.update(own)


def projections(gradient: Tensor) -> list[Tensor]:
    """Onto directions that do not depend on the draw: each tells of many numbers at once."""
    flat, generator = gradient.flatten(), torch.Generator().manual_seed(6)
    directions = torch.rand(3, flat.numel(), generator=generator)
    return list(directions @ flat)


def test_it_agrees_with_the_authors_at_equal_weights(theirs: Any) -> None:
    """Means over 400 draws of loss and gradients, both linear, sigmoid at .5: 5 standard errors + 1 %."""
    vae, configs = theirs
    k = 24
    config = configs.ConfigPoisVAE(
        dataset="MNIST", n_latents=k, fit_prior=True, prior_clamp=-1.0, save=False, init_scale=0.05
    )
    other = vae.PoissonVAE(config)
    other.update_t(0.5)
    fields = {"n_inputs": 784, "input_shape": (1, 28, 28), "n_latents": k, "estimator": "sigmoid"}
    model = PVAE(PVAEConfig(**fields, fit_sigma=False, init_log_sigma=-0.5 * math.log(2.0)))  # type: ignore[arg-type]
    with torch.no_grad():
        model.phi.copy_(other.fc_dec.weight)  # type: ignore[union-attr]
        model.encoder[1].weight.copy_(other.fc_enc.weight)  # type: ignore[index]
        model.free_prior.copy_(other.log_rate)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    pairs = [
        (model.phi, other.fc_dec.weight), (model.encoder[1].weight, other.fc_enc.weight),  # type: ignore[index]
        (model.free_prior, other.log_rate),
    ]  # fmt: skip
    constant = 784 * (0.5 * math.log(2.0 * math.pi) - 0.5 * math.log(2.0))
    samples: list[list[Tensor]] = [[], []]
    for seed in range(400):
        ours = model(x, beta=2.0, temperature=0.5, seed=seed)
        loss = (ours.recon + 2.0 * ours.kl).mean() - constant
        _, log_dr, _, y = other(x)
        reference = (other.loss_recon(y, x) + 2.0 * other.loss_kl(log_dr).sum(1)).mean()
        for kept, value, side in ((samples[0], loss, 0), (samples[1], reference, 1)):
            gradients = torch.autograd.grad(value, [pair[side] for pair in pairs])
            kept.append(torch.stack([value.detach(), *(p for g in gradients for p in projections(g))]))
    one, two = (torch.stack(kept).double() for kept in samples)
    error = ((one.var(0) + two.var(0)) / len(one)).sqrt()
    difference = (one.mean(0) - two.mean(0)).abs()
    assert bool((difference < 5.0 * error + 0.01 * two.mean(0).abs()).all()), (
        one.mean(0),
        two.mean(0),
        error,
    )
