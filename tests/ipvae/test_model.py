"""`ipvae.model`: what the modules hand to the kernels and get back."""

from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, ConfigError, IterativeVAE, ModelConfig, build_model
from ipvae.evaluation import evaluate, latents_at
from torch import Tensor

import ipvae_kernels

KINDS = {
    "poisson": {"kind": "poisson"},
    "gaussian": {"kind": "gaussian"},
    "relu": {"kind": "gaussian", "activation": "relu"},
}


def small(**options: Any) -> IterativeVAE:
    return build_model(
        ModelConfig(**{"n_inputs": 12, "n_latents": 7, "t_train": 5, "init_scale": 0.3, **options})
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> IterativeVAE:
    return small(**KINDS[request.param])


def test_state_dict_has_the_released_names_and_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in small().state_dict().items()}
    shared = {
        "layer.phi.weight": (12, 7), "layer.dec_log_sigma": (1, 12), "layer.log_bias": (1, 7),
        "layer.log_lr.0": (1,), "layer.u_init.0": (1, 7),
        "layer.temp": (), "layer.beta_inner": (), "layer.eps": (),
    }  # fmt: skip
    assert shapes == shared | {"layer.n_exp": (5,)}
    gaussian = shared | {"layer.log_lr.1": (1,), "layer.u_init.1": (1, 7)}
    shapes = {name: tuple(tensor.shape) for name, tensor in small(kind="gaussian").state_dict().items()}
    assert shapes == gaussian
    relu = small(**KINDS["relu"]).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in relu.items()} == gaussian | {
        "layer.activation.log_gain": (1, 7)
    }


def test_initial_values_are_the_released_ones() -> None:
    layer = small(n_latents=400, init_log_rate=(-6.0, -4.0)).layer
    start = layer.u_init[0].detach()
    assert -6 <= float(start.min()) < -5.9
    assert -4.1 < float(start.max()) <= -4
    assert layer.phi.weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert layer.log_bias.unique().tolist() == [-3.0]
    assert (layer.log_lr[0].item(), layer.dec_log_sigma.abs().max().item(), float(layer.temp)) == (
        0.0,
        0.0,
        1.0,
    )
    gaussian = small(kind="gaussian")
    assert not any(start.any() for start in gaussian.layer.u_init)


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first = small(seed=3)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    second = small(seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.dictionary, second.dictionary)
    assert not torch.equal(first.dictionary, small(seed=4).dictionary)


def test_forward_is_the_loss_of_the_kernels(x: Tensor) -> None:
    model = small(kl="released", estimator="linear", n_inner=2, beta_inner=0.5, clamp_u=6.0, n_arrivals=3)
    model.set_annealing(temperature=0.4, eps=0.5)
    layer = model.layer
    params = ipvae_kernels.PoissonParams(
        layer.phi.weight, 3.45 * torch.tanh(layer.dec_log_sigma[0] / 3.45), layer.log_bias[0],
        layer.log_lr[0].squeeze(), layer.u_init[0][0],
    )  # fmt: skip
    expected = ipvae_kernels.elbo(
        x, params, 5, beta=2.0, estimator="linear", temperature=0.4, n_arrivals=3, seed=8, kl="released",
        n_inner=2, beta_inner=0.5, clamp_u=4.0, clamp_du=6.0, truncate=2,
    )  # fmt: skip
    found = model(x, beta=2.0, seed=8, truncate=2)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.kl, expected.kl)


def test_every_parameter_gets_a_gradient(model: IterativeVAE, x: Tensor) -> None:
    model(x, beta=1.0, temperature=1.0, seed=0).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_a_fixed_prior_is_not_learned(x: Tensor) -> None:
    model = small(fit_prior=False)
    model(x, seed=0).loss.backward()
    assert model.layer.u_init[0].grad is None
    assert model.layer.phi.weight.grad is not None


def test_images_are_flattened_and_other_shapes_refused(x: Tensor) -> None:
    model = small(input_shape=(3, 2, 2))
    flat = model.infer(x, 3, seed=0).state.log_rate
    assert torch.equal(model.infer(x.view(6, 3, 2, 2), 3, seed=0).state.log_rate, flat)
    moving = x.expand(3, 6, 12)
    assert torch.equal(model.infer(moving.reshape(3, 6, 3, 2, 2), 3, seed=0).state.log_rate, flat)
    for wrong in (x[0], x[:, :5], x.view(6, 2, 2, 3), torch.zeros(3, 2, 2)):
        with pytest.raises(ValueError, match="x: expected shape"):
            model.infer(wrong, 3)


def test_clamps_follow_eps() -> None:
    model = small(clamp_u=10.0)
    assert model.clamps == {"clamp_u": 10.0, "clamp_du": 10.0}
    model.set_annealing(eps=0.0)
    assert model.clamps == {"clamp_u": 2.0, "clamp_du": 2.0}
    gaussian = small(kind="gaussian")
    gaussian.set_annealing(eps=0.5)
    assert gaussian.clamps == {"clamp_u": (4.0, 1.5), "clamp_du": (4.0, 2.0)}


def test_annealing_travels_in_the_state_dict() -> None:
    model, other = small(n_arrivals="released"), small(n_arrivals="released")
    assert isinstance(model, IPVAE)
    assert model.n_arrivals == 10
    model.set_annealing(temperature=0.25, eps=0.75)
    model.set_n_arrivals(4)
    other.load_state_dict(model.state_dict())
    assert (other.temperature, other.eps, other.n_arrivals) == (0.25, 0.75, 4)
    assert other.layer.n_exp.tolist() == [4] * 5


def test_a_rectified_gain_scales_the_dictionary(x: Tensor) -> None:
    """gain relu(z) in the decoder, and gain 1[z > 0] in its transpose, are a scaled column in both."""
    model = small(**KINDS["relu"])
    with torch.no_grad():
        model.layer.activation.log_gain.copy_(torch.linspace(-1, 1, 7))
    folded = small(**KINDS["relu"])
    with torch.no_grad():
        folded.layer.phi.weight.copy_(model.layer.phi.weight * model.layer.activation.log_gain.exp())
    assert torch.equal(model.infer(x, 4, seed=0).state.log_rate, folded.infer(x, 4, seed=0).state.log_rate)


def test_inference_needs_no_gradient_and_continues_where_it_stopped(model: IterativeVAE, x: Tensor) -> None:
    whole = model.infer(x, 9, record=("kl", "zeros"), seed=5)
    half = model.infer(x, 4, record=("kl",), seed=5)
    rest = model.infer(x, 5, record=("kl",), state=half.state)
    assert torch.equal(rest.state.log_rate, whole.state.log_rate)
    assert torch.equal(torch.cat([half.records["kl"], rest.records["kl"]]), whole.records["kl"])
    assert not whole.state.log_rate.requires_grad


def test_encode_averages_the_last_steps(
    model: IterativeVAE, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = model.infer(x, 9, record=("log_rate", "counts"), seed=5).records
    rates, counts = model.rates(records["log_rate"]), records["counts"]
    torch.testing.assert_close(model.encode(x, 9, seed=5), rates[-1])
    torch.testing.assert_close(model.encode(x, 9, last=9, seed=5), rates.mean(0))
    torch.testing.assert_close(model.encode(x, 9, last=4, counts=True, seed=5), counts[-4:].mean(0))
    monkeypatch.setattr("ipvae.model.RECORD_ENTRIES", 2 * 6 * 7)
    torch.testing.assert_close(model.encode(x, 9, last=7, seed=5), rates[-7:].mean(0))
    moving = torch.randn(9, 6, 12)
    expected = model.rates(model.infer(moving, 9, record=("log_rate",), seed=5).records["log_rate"])
    torch.testing.assert_close(model.encode(moving, 9, last=5, seed=5), expected[-5:].mean(0))


def test_reconstruct_decodes_what_encode_gives(model: IterativeVAE, x: Tensor) -> None:
    latents = model.encode(x, 6, last=2, seed=5)
    torch.testing.assert_close(model.reconstruct(x, 6, last=2, seed=5), latents @ model.dictionary.T)


@pytest.mark.parametrize("last", [0, 7])
def test_encode_refuses_to_average_over_steps_that_are_not_there(x: Tensor, last: int) -> None:
    with pytest.raises(ValueError, match="last: expected 1 to steps=6"):
        small().encode(x, 6, last=last)


def test_generate_draws_from_the_prior_of_the_first_step() -> None:
    model = small(init_log_rate=(0.5, 0.5), input_shape=(3, 4))
    images = model.generate(4000, seed=3)
    assert images.shape == (4000, 3, 4)
    mean = torch.full((7,), 0.5).exp() @ model.dictionary.T
    torch.testing.assert_close(images.flatten(1).mean(0), mean, rtol=0.0, atol=0.15)
    assert torch.equal(images, model.generate(4000, seed=3))
    noisy = model.generate(4000, seed=3, pixel_noise=True) - images
    assert float(noisy.std()) == pytest.approx(1.0, rel=0.02)
    assert model.generate(0).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="n: expected at least 0"):
        model.generate(-1)


def test_generate_of_gaussian_models() -> None:
    model = small(**KINDS["relu"])
    mean = model.generate(4000, seed=3).mean(0)
    expected = torch.full((7,), (2 * torch.pi) ** -0.5) @ model.dictionary.T
    torch.testing.assert_close(mean, expected, rtol=0.0, atol=0.05)


def test_classes_refuse_the_other_kind() -> None:
    with pytest.raises(ConfigError, match="kind: IPVAE needs 'poisson'"):
        IPVAE(ModelConfig(n_inputs=4, kind="gaussian"))
    with pytest.raises(ConfigError, match="kind: IGVAE needs 'gaussian'"):
        IGVAE(ModelConfig(n_inputs=4))


def test_double_precision_is_kept(x: Tensor) -> None:
    model = small().double()
    assert model.infer(x.double(), 3, seed=0, backend="eager").state.log_rate.dtype == torch.float64
    assert model(x.double(), seed=0, backend="eager").loss.dtype == torch.float64


def test_zero_steps_and_an_empty_estimator_are_not_the_defaults(x: Tensor) -> None:
    model = small()
    for call in (model, model.infer, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=r"^steps: expected"):
            call(x, 0)
    with pytest.raises(ValueError, match="estimator: expected one of"):
        model(x, estimator="")


def test_the_check_for_finite_values_can_be_turned_off(model: IterativeVAE, x: Tensor) -> None:
    x[0, 0] = torch.nan
    for call in (model, model.infer, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match="finite"):
            call(x, 3)
        call(x, 3, check=False)
    with pytest.raises(ValueError, match="finite"):
        evaluate(model, x, 3)
    assert evaluate(model, x, 3, check=False).steps == 3
    with pytest.raises(ValueError, match="finite"):
        latents_at(model, x, [2])
    assert latents_at(model, x, [2], check=False)[2].shape == (6, 7)
