"""`ipvae.experiments.baseline`: plain PyTorch has the kernels' law, and equals them without chance."""

import math

import pytest
import torch
from ipvae import IPVAE, IPVAEConfig
from ipvae.experiments import baseline
from torch import Tensor

import ipvae_kernels

STEPS = 4
RELAXED = ("sigmoid", "linear", "cubic", "quintic", "cosine")


def model(**options: object) -> IPVAE:
    settings = {
        "n_inputs": 6,
        "n_latents": 5,
        "t_train": STEPS,
        "init_scale": 0.6,
        "init_log_rate": (-1.0, 0.5),
    }
    made = IPVAE(IPVAEConfig(**{**settings, **options}))  # type: ignore[arg-type]
    with torch.no_grad():
        made.layer.log_lr[0].fill_(-1.0)
        made.layer.dec_log_sigma.copy_(torch.linspace(-0.3, 0.3, 6))
    return made


def inputs(n: int) -> Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(1)).expand(n, 6).contiguous()


def same_law(a: Tensor, b: Tensor) -> None:
    """The means over samples [T, B] of two independent runs agree within five standard errors."""
    n = a.shape[1]
    error = ((a.var(1) + b.var(1)) / n).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() < 5.0 * error + 1e-6).all()


@pytest.mark.parametrize("kl", ["exact", "released"])
@pytest.mark.parametrize("estimator", [*RELAXED, "fini2", "fini3", "hard"])
def test_the_loss_has_the_kernels_law(estimator: str, kl: str) -> None:
    net, x = model(kl=kl, estimator=estimator, n_arrivals=12), inputs(10_000)
    ours = net(x, beta=2.0, temperature=0.3, seed=3, backend="autograd")
    plain = baseline.loss(net, x, STEPS, 2.0, estimator, 0.3, 12)
    same_law(plain.recon, ours.recon)
    same_law(plain.kl, ours.kl)
    torch.testing.assert_close(plain.loss, (plain.recon + 2.0 * plain.kl).mean() * 256 / 6)


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        *((estimator, {}) for estimator in ("sigmoid", "cubic", "fini2", "fini3")),
        ("fini2", {"drive": "sampled", "decay": 0.2}),
        ("fini2", {"drive": "expected"}),
    ],
)
def test_the_gradient_has_the_kernels_law(estimator: str, rule: dict[str, object]) -> None:
    net, x = model(estimator=estimator, n_arrivals=12, **rule), inputs(4_000)
    gradients = []
    for plain in (True, False):
        rows = []
        for seed in range(12):
            net.zero_grad()
            if plain:
                baseline.loss(net, x, STEPS, 2.0, estimator, 0.5, 12).loss.backward()
            else:
                net(x, beta=2.0, temperature=0.5, seed=seed).loss.backward()
            rows.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        gradients.append(torch.stack(rows))
    a, b = gradients
    error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
    # 12 runs each: six standard errors of Student's t, over some 50 parameters.
    assert ((a.mean(0) - b.mean(0)).abs() < 6.0 * error + 1e-6).all()


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_without_chance_the_numbers_are_equal(eps: float) -> None:
    """Neurons that never fire leave nothing random: a zero dictionary, rates of e^-8 and less."""
    net, x = model(init_log_rate=(-8.0, -8.0), init_scale=0.0, init_log_bias=0.5), inputs(3)
    net.set_annealing(eps=eps)
    result = ipvae_kernels.infer(
        x,
        net.params,
        STEPS,
        record=("recon", "kl"),
        seed=0,
        backend="autograd",
        **net._rollout_options(None, None),
    )
    plain = baseline.infer(net, x, STEPS)
    torch.testing.assert_close(plain.recon, result.records["recon"])
    torch.testing.assert_close(plain.kl, result.records["kl"], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(plain.log_rate, result.state.log_rate)


def test_inference_has_the_kernels_law_and_no_gradient() -> None:
    net, x = model(), inputs(10_000)
    result = net.infer(x, 30, record=("recon", "kl"), seed=0, backend="autograd")
    plain = baseline.infer(net, x, 30)
    same_law(plain.recon, result.records["recon"])
    same_law(plain.kl, result.records["kl"])
    same_law(plain.log_rate.T, result.state.log_rate.T)
    assert not plain.loss.requires_grad


def test_the_cut_of_the_arrivals_is_the_released_one() -> None:
    net, x = model(), inputs(50)
    table = baseline.released_arrivals(net, x, STEPS)
    rates = net.infer(x, STEPS, record=("log_rate",), seed=0).records["log_rate"].exp()
    assert table == [ipvae_kernels.arrivals_quantile(float(rate.max())) for rate in rates]
    assert baseline.released_quantile(torch.tensor([0.1, 3.0])) == 10
    for cut in (table, None):
        assert math.isfinite(baseline.loss(net, x, STEPS, 1.0, "sigmoid", 0.1, cut).loss.item())


def test_what_it_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="n_inner=2"):
        baseline.infer(model(n_inner=2), inputs(1), 1)
    with pytest.raises(ValueError, match="gumbel"):
        baseline.loss(model(), inputs(1), 1, 1.0, "gumbel", 0.1, None)
