"""The hierarchical model: what it contains, gradients, cuts, files, runs, commands, and what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import HIPVAE, ConfigError, HIPVAEConfig, TrainConfig, cli, evaluate, load_model, train
from ipvae.data import load_dataset
from torch import Tensor
from typer.testing import CliRunner

import ipvae_kernels as ik
from ipvae_kernels import PoissonParams

M, K, B, T = 12, 8, 5, 4
ABOVE = (6, 3)


def make(above: tuple[int, ...] = ABOVE, **options: Any) -> HIPVAE:
    fields = {"init_scale": 0.3, "init_upper_scale": 0.3, "t_train": T, "init_share": 0.3}
    return HIPVAE(HIPVAEConfig(n_inputs=M, n_latents=K, upper_latents=above, **{**fields, **options}))


def inputs(moving: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (T, B, M) if moving else (B, M)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("moving", [False, True])
def test_without_a_share_from_above_the_lowest_layer_is_the_iterative_poisson_vae(moving: bool) -> None:
    """The same numbers as the fused loss at the same seed, of layer 0 alone, and the same gradients."""
    model, x = make().double(), inputs(moving, torch.float64)
    with torch.no_grad():
        for layer in model.levels[:-1]:
            layer.share.fill_(-1000.0)
    how = {"estimator": "cubic", "temperature": 0.4, "seed": 3}
    first = model.levels[0]
    params = PoissonParams(model.dictionary, model.log_sigma, first.log_bias, first.log_lr, first.start)
    alone = ik.elbo(x, params, T, beta=1.0, clamp_u=6.0, clamp_du=10.0, backend="eager", **how)
    result = model(x, T, backend="eager", **how)
    torch.testing.assert_close(result.recon, alone.recon, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        model.split(result.state.log_rate)[0], alone.state.log_rate, rtol=1e-9, atol=1e-9
    )
    shared = [model.phi, first.log_bias, first.log_lr, first.start]
    ours = torch.autograd.grad(result.recon.sum(), shared)
    theirs = torch.autograd.grad(alone.recon.sum(), shared)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def written_again(model: HIPVAE, x: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    """Recon and KL of each step, [T, B], of two layers, by the public ops and autograd of the KL."""
    (low, high), precision = model.levels, torch.exp(-2.0 * model.log_sigma)
    share, place = torch.sigmoid(low.share), {"low": 0, "high": 8}
    u, v = (layer.start.expand(B, -1) for layer in (low, high))
    recon, kl = [], []
    for t in range(T):

        def draw(log_rate: Tensor, kind: str, which: str, step: int = t) -> Tensor:
            return ik.poisson_rsample(log_rate, draw=kind, step=step, neuron_offset=place[which], **how)

        def predicted(z: Tensor, u: Tensor = u) -> Tensor:
            raw = (low.offset + z @ low.weight.T).clamp(min=-8.0)
            return u + share * (6.0 - torch.nn.functional.softplus(6.0 - raw) - u)

        z = draw(v, "update", "high")
        prior = predicted(z)
        code = draw(prior, "update", "low")
        drive = ((x - code @ model.dictionary.T) * precision) @ model.dictionary
        clamps = {"clamp_u": 6.0, "clamp_du": 10.0}
        new_u = ik.log_rate_update(prior, prior, drive, low, **clamps)
        told = z.detach().requires_grad_()
        divergence = ik.poisson_kl(new_u.detach(), predicted(told, u.detach()))
        (of_kl,) = torch.autograd.grad(divergence.sum(), told)
        raw = low.offset + z @ low.weight.T
        slope = share * torch.sigmoid(6.0 - raw) * (raw >= -8.0)
        upper_drive = (slope * (new_u.exp() - prior.exp())) @ low.weight
        torch.testing.assert_close(upper_drive.detach(), -of_kl, rtol=1e-8, atol=1e-10)
        new_v = ik.log_rate_update(v, v, upper_drive, high, **clamps)
        error = x - draw(new_u, "loss", "low") @ model.dictionary.T
        constant = model.log_sigma.sum() + 0.5 * M * math.log(2.0 * math.pi)
        recon.append(0.5 * (error.square() * precision).sum(-1) + constant)
        below = ik.poisson_kl(new_u, predicted(draw(new_v, "loss", "high")))
        kl.append(below.sum(-1) + ik.poisson_kl(new_v, v).sum(-1))
        u, v = new_u, new_v
    return torch.stack(recon), torch.stack(kl)


def test_two_layers_written_again() -> None:
    """Values and every gradient; the drive of the upper layer is autograd's derivative of the KL below."""
    model, x = make((6,)).double(), inputs(dtype=torch.float64)
    how = {"estimator": "sigmoid", "temperature": 0.5, "seed": 3, "backend": "eager"}
    result = model(x, beta=1.3, **how)
    recon, kl = written_again(model, x, **how)
    torch.testing.assert_close(result.recon, recon, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(result.kl, kl, rtol=1e-8, atol=1e-8)
    loss = (recon + 1.3 * kl).mean() * 256 / M
    parameters = list(model.parameters())
    ours, theirs = torch.autograd.grad(result.loss, parameters), torch.autograd.grad(loss, parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)
        assert bool((one != 0).any())


def test_gradients_by_finite_differences() -> None:
    model, x = make().double(), inputs(dtype=torch.float64)

    def loss() -> Tensor:
        return model(x, 3, seed=2, estimator="sigmoid", temperature=0.6, backend="eager").loss

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(4)
    along = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    values = []
    with torch.no_grad():
        for h in (1e-6, -2e-6):
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(h * direction)
            values.append(float(loss()))
    found = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True))
    assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_steps_and_batches_may_be_cut(decoder: str) -> None:
    model, x = make(decoder=decoder), inputs()
    names = ("log_rate", "counts", "reconstruction", "recon", "kl", "squared_error", "spikes", "zeros")
    whole = model.infer(x, 5, record=names, seed=3)
    first = model.infer(x, 2, record=names, seed=3)
    rest = model.infer(x, 3, record=names, state=first.state)
    for name in names:
        assert torch.equal(whole.records[name], torch.cat([first.records[name], rest.records[name]])), name
    rows = model.infer(x[3:], 5, record=("kl",), seed=3, sample_offset=3).records["kl"]
    torch.testing.assert_close(rows, whole.records["kl"][:, 3:], rtol=1e-4, atol=1e-4)
    assert whole.records["log_rate"].shape == (5, B, K + sum(ABOVE))
    assert [part.shape[-1] for part in model.layer_rates(whole.state.log_rate)] == [K, *ABOVE]
    assert torch.equal(model.rates(whole.state.log_rate), model.split(whole.state.log_rate)[0].exp())
    assert model.encode(x, 4, seed=1).shape == (B, K)
    assert model.generate(3, seed=1).shape == (3, M)
    # Each layer has noise of its own.
    counts = model.generate(2000, seed=1)
    assert float(counts.var(0).min()) > 0


def test_truncated_gradients_stop_where_they_are_cut() -> None:
    model, x = make(), inputs()
    whole, cut = (model(x, 4, seed=1, truncate=n) for n in (None, 2))
    torch.testing.assert_close(cut.recon, whole.recon, rtol=1e-6, atol=1e-6)
    last = cut.recon[3].sum()
    torch.testing.assert_close(
        torch.autograd.grad(last, model.phi, retain_graph=True)[0],
        torch.autograd.grad(
            model(x, 2, seed=1, state=model.infer(x, 2, seed=1).state).recon[1].sum(), model.phi
        )[0],
        rtol=1e-4,
        atol=1e-4,
    )


def test_digits_train(tmp_path: Path) -> None:
    """R2 from below 0 to .6 and more in 200 updates, more with later steps; the share is learned too."""
    data = load_dataset("digits")
    config = HIPVAEConfig(
        n_inputs=64, input_shape=(1, 8, 8), n_latents=64, upper_latents=(16,), t_train=8, clamp_u=10.0
    )
    model = HIPVAE(config)
    start, shares = evaluate(model, data.test, 8, marks=()), model.shares[0].clone()
    recipe = TrainConfig(max_steps=200, batch_size=100, lr=0.005)
    found = evaluate(train(model, data, recipe, tmp_path, progress=False).model, data.test, 32, marks=())
    assert start.r2[7] < 0.0
    assert found.r2[31] > 0.6
    assert found.nelbo[7] < start.nelbo[7] - 15.0
    assert found.nelbo[31] < found.nelbo[0] - 1.0
    assert not torch.equal(model.shares[0], shares)


def test_files_keep_every_bit_and_resumed_runs_are_whole_ones(tmp_path: Path) -> None:
    import lightning.pytorch as lightning

    class Stop(lightning.Callback):
        def __init__(self, at: int) -> None:
            self.at = at

        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == self.at

    states = []
    data = inputs().repeat(12, 1)
    for name, stops in (("whole", (8,)), ("cut", (3, 8))):
        out = tmp_path / name
        for at in stops:
            model = make()
            train(
                model, data, TrainConfig(max_steps=8, batch_size=20), out, logger=None, progress=False,
                resume=(out / "checkpoints" / "last.ckpt").exists(), callbacks=[Stop(at)],
            )  # fmt: skip
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    model.save_pretrained(tmp_path / "file")
    again, x = load_model(tmp_path / "file"), inputs()
    assert again.config == model.config
    assert torch.equal(again.infer(x, 4, seed=1).state.log_rate, model.infer(x, 4, seed=1).state.log_rate)


def test_commands_serve_it(tmp_path: Path) -> None:
    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    sizes = ["--data", "digits", "--latents", 16, "--t-train", 3, "--max-steps", 4, "--batch-size", 8]
    out = tmp_path / "run"
    layers = ["--model", "hip-vae", "--upper-latents", 8, "--upper-latents", 4]
    assert "3 inference steps" in call("train", *sizes, *layers, "--out", out, "--eval-steps", 4)
    assert load_model(out).config.upper_latents == (8, 4)  # type: ignore[attr-defined]
    assert "R2" in call("eval", out, "--data", "digits", "--steps", 6)
    call("infer", out, "--data", "digits", "--split", "test", "--steps", 4, "--out", tmp_path / "y.npz")
    call("plot", out, "--data", "digits", "--out", tmp_path / "figures")


def test_what_cannot_serve_is_refused() -> None:
    model, x = make(), inputs()
    bad: list[tuple[Any, type[Exception], str]] = [
        (lambda: make(()), ConfigError, "upper_latents: expected positive integers, one at least"),
        (lambda: make((0,)), ConfigError, "upper_latents: expected positive integers"),
        (lambda: make(init_share=1.0), ConfigError, "init_share: expected a number below 1"),
        (lambda: make(init_share=0.0), ConfigError, "init_share: expected"),
        (lambda: make(estimator="best"), ConfigError, "estimator: expected one of"),
        (
            lambda: model.infer(x, 3, state=ik.State(torch.zeros(B, K))),
            ValueError,
            r"state\.log_rate: expected",
        ),
        (lambda: model(x, truncate=0), ValueError, "truncate: expected"),
        (lambda: model(inputs(moving=True), T + 1), ValueError, "x: expected"),
        (lambda: model.rates(torch.zeros(B, K)), ValueError, r"log_rate: expected shape \[\.\.\., 17\]"),
        (lambda: model(x * math.inf), ValueError, "x: expected finite"),
    ]
    for call, error, message in bad:
        with pytest.raises(error, match=message):
            call()


def test_every_layer_has_its_own_noise() -> None:
    """Places of neurons in the noise do not overlap, and are multiples of 4."""
    model = make((6, 5, 3))
    places = [
        set(range(offset, offset + size))
        for offset, size in zip(model._offsets(), model.config.layers, strict=True)
    ]
    assert all(offset % 4 == 0 for offset in model._offsets())
    assert all(not one & other for one, other in itertools.combinations(places, 2))
