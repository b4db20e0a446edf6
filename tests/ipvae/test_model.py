"""`ipvae.models.iterative`: what the modules hand to the kernels and get back."""

import copy
import pickle
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ipvae import IGVAE, IPVAE, ConfigError, IGVAEConfig, IPVAEConfig, IterativeVAE
from ipvae.evaluation.evaluate import evaluate, latents_at
from ipvae.models.iterative import opened
from ipvae.models.registry import FAMILIES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ipvae_kernels

KINDS = {
    "poisson": {"cell": "poisson"},
    "gaussian": {"cell": "gaussian"},
    "relu": {"cell": "gaussian", "activation": "relu"},
}


def small(**options: Any) -> IterativeVAE:
    family = FAMILIES[options.pop("cell", "poisson")]
    return family(
        family.config_class(**{"n_inputs": 12, "n_latents": 7, "t_train": 5, "init_scale": 0.3, **options})
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
    shapes = {name: tuple(tensor.shape) for name, tensor in small(cell="gaussian").state_dict().items()}
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
    gaussian = small(cell="gaussian")
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
    gaussian = small(cell="gaussian")
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


CONSTANTS = {"temp": 0.25, "eps": 0.5, "beta_inner": 0.75, "n_exp": 3.0}


def annealed() -> IterativeVAE:
    model = small(
        estimator="sigmoid", n_arrivals="released", n_inner=2, init_log_rate=(1.0, 1.5), clamp_u=10.0
    )
    assert (model.temperature, model.eps, model.n_arrivals) == (1.0, 1.0, 10)  # everything was read once
    return model


def constants(model: IterativeVAE) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: torch.full_like(state[f"layer.{name}"], value) for name, value in CONSTANTS.items()}


def filled(model: IterativeVAE) -> IterativeVAE:
    for name, value in CONSTANTS.items():
        getattr(model.layer, name).fill_(value)
    return model


def filled_without_a_trace(model: IterativeVAE) -> IterativeVAE:
    for name, value in CONSTANTS.items():
        getattr(model.layer, name).data.fill_(value)
    return model


def replaced(model: IterativeVAE) -> IterativeVAE:
    for name, tensor in constants(model).items():
        setattr(model.layer, name, tensor)
    return model


def loaded_into_the_layer(model: IterativeVAE) -> IterativeVAE:
    model.layer.load_state_dict(model.layer.state_dict() | constants(model))
    return model


def averaged(model: IterativeVAE) -> IterativeVAE:
    average = torch.optim.swa_utils.AveragedModel(model)
    average.module.temperature  # noqa: B018 - the copy knows the old number
    average.update_parameters(filled(model))
    return cast(IterativeVAE, average.module)


def called_with_other_buffers(model: IterativeVAE) -> Callable[..., Any]:
    other = {f"layer.{name}": tensor for name, tensor in constants(model).items()}
    return lambda *args, **options: torch.func.functional_call(model, other, args, options)


def pickled(model: IterativeVAE) -> IterativeVAE:
    return cast(IterativeVAE, pickle.loads(pickle.dumps(filled(model))))


WAYS = [
    filled, filled_without_a_trace, replaced, loaded_into_the_layer, averaged, called_with_other_buffers,
    pickled,
]  # fmt: skip


@pytest.mark.parametrize("write", WAYS, ids=lambda write: write.__name__)
def test_the_buffers_alone_hold_temperature_clamps_leak_and_cut(
    write: Callable[[IterativeVAE], Callable[..., Any]], x: Tensor
) -> None:
    layer = annealed().layer
    params = ipvae_kernels.PoissonParams(
        layer.phi.weight, torch.zeros(12), layer.log_bias[0], layer.log_lr[0].squeeze(), layer.u_init[0][0]
    )
    expected = ipvae_kernels.elbo(
        x, params, 5, seed=8, estimator="sigmoid", temperature=0.25, n_arrivals=3, n_inner=2, beta_inner=0.75,
        clamp_u=6.0, clamp_du=6.0,
    )  # fmt: skip
    model = annealed()
    found = write(model)(x, seed=8)
    assert torch.equal(found.loss, expected.loss)
    if write is called_with_other_buffers:
        assert (model.temperature, model.eps, model.n_arrivals) == (1.0, 1.0, 10)


def test_a_gpu_is_asked_for_a_constant_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of the CPU stand in for those of a GPU."""
    asked: list[float] = []

    def number(buffer: Tensor) -> float:
        asked.append(float(buffer.max()))
        return asked[-1]

    monkeypatch.setattr("ipvae.models.layer._is_read_each_time", lambda _: False)
    monkeypatch.setattr("ipvae.models.layer._number", number)
    model = annealed()
    for step in range(3):
        model.set_annealing(temperature=0.5**step, eps=step / 2)
        assert (model.temperature, model.eps) == (0.5**step, step / 2)
    assert asked == []
    for _ in range(2):
        assert filled(model).temperature == 0.25
        assert model.temperature == 0.25
    assert asked == [0.25, 0.25]
    other = {"layer.temp": torch.tensor(0.875)}
    called = [
        torch.func.functional_call(model, other, (torch.zeros(2, 12),), {"seed": 1}).loss for _ in range(2)
    ]
    assert torch.equal(called[0], called[1])
    assert model.temperature == 0.25
    assert asked.count(0.875) == 1
    assert copy.deepcopy(model).temperature == pickle.loads(pickle.dumps(model)).temperature == 0.25


def test_a_compiled_model_follows_the_annealing(x: Tensor) -> None:
    model = small(estimator="sigmoid", t_train=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for temperature in (1.0, 0.25):
        model.set_annealing(temperature=temperature, eps=temperature)
        assert torch.equal(compiled(x, seed=1).loss, model(x, seed=1).loss)
    state = model.state_dict() | {"layer.temp": torch.tensor(0.125)}
    model.load_state_dict(state)
    found = compiled(x, seed=1).loss
    assert torch.equal(found, model(x, seed=1).loss)


def test_where_there_is_no_number_to_look_at_the_last_one_holds() -> None:
    model = small(clamp_u=10.0)
    model.set_annealing(temperature=0.25, eps=0.5)
    assert (copy.deepcopy(model).to("meta").temperature, model.temperature) == (0.25, 0.25)
    with FakeTensorMode() as mode:
        for name, buffer in model.layer.named_buffers():
            setattr(model.layer, name, mode.from_tensor(buffer))
        assert (model.temperature, model.clamps["clamp_u"]) == (0.25, 6.0)


def test_annealing_out_of_range_is_refused() -> None:
    model = small()
    for options, message in (
        ({"temperature": -0.1}, "temperature: expected a finite number of at least 0, found -0.1"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"eps": 1.5}, "eps: expected 0 to 1, found 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_annealing(**options)
    assert isinstance(model, IPVAE)
    with pytest.raises(ValueError, match="n: expected an int from 0 to 4194300, found -1"):
        model.set_n_arrivals(-1)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_temperature_of_a_gaussian_model_stays_1(activation: str) -> None:
    """The released code multiplies sigma by it."""
    model = small(cell="gaussian", activation=activation)
    model.set_annealing(temperature=0.01, eps=0.5)
    assert (model.temperature, model.eps, float(model.layer.temp)) == (1.0, 0.5, 1.0)
    earlier = model.state_dict() | {"layer.temp": torch.tensor(0.01)}
    model.load_state_dict(earlier)
    assert float(model.layer.temp) == 1.0


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_reset_parameters_makes_a_new_model(options: dict[str, Any]) -> None:
    own = {} if "cell" in options else {"n_arrivals": "released"}
    options = {"beta_inner": 0.7, **own, **options}
    model = small(**options)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    model.layer.load_state_dict(model.layer.state_dict() | longer(model))
    parameters = list(model.parameters())
    model.reset_parameters()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    expected, found = small(**options), model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    assert (model.temperature, model.eps) == (1.0, 1.0)
    assert getattr(model, "n_arrivals", None) == getattr(expected, "n_arrivals", None)


def longer(model: IterativeVAE) -> dict[str, Tensor]:
    """A cut of the arrivals for more steps than the configuration has, as a released file may hold."""
    return {"n_exp": torch.full((9,), 4, dtype=torch.int32)} if isinstance(model, IPVAE) else {}


def test_torchs_defaults_do_not_change_a_model() -> None:
    expected = small(beta_inner=0.3).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        found = small(beta_inner=0.3).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in small().state_dict().values())


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
    monkeypatch.setattr("ipvae.models.base.RECORD_ENTRIES", 2 * 6 * 7)
    torch.testing.assert_close(model.encode(x, 9, last=7, seed=5), rates[-7:].mean(0))
    moving = torch.randn(9, 6, 12)
    expected = model.rates(model.infer(moving, 9, record=("log_rate",), seed=5).records["log_rate"])
    torch.testing.assert_close(model.encode(moving, 9, last=5, seed=5), expected[-5:].mean(0))


def test_reconstruct_decodes_what_encode_gives(model: IterativeVAE, x: Tensor) -> None:
    latents = model.encode(x, 6, last=2, seed=5)
    torch.testing.assert_close(model.reconstruct(x, 6, last=2, seed=5), latents @ model.dictionary.T)


@pytest.mark.parametrize("counts", [False, True])
def test_a_loop_over_batches_equals_one_call(
    model: IterativeVAE, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(23, 12, generator=torch.Generator().manual_seed(3))
    x[11] = x[2]
    with torch.no_grad():
        model.layer.u_init[0].add_(4.0)
    options: dict[str, Any] = {"last": 3, "counts": counts, "seed": 5}
    for call in (model.encode, model.reconstruct):
        whole = call(x, 6, **options)
        assert not torch.equal(whole[11], whole[2])  # equal rows, other noise
        monkeypatch.setattr("ipvae.models.base.RECORD_ENTRIES", 2 * 9 * 7)
        for size in (1, 4, 9):
            parts = [call(x[i : i + size], 6, sample_offset=i, **options) for i in range(0, len(x), size)]
            assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("n_inputs", "n_latents"), [(12, 7), (100, 513), (784, 512)])
def test_a_row_decodes_alike_in_every_batch_and_place(n_inputs: int, n_latents: int) -> None:
    model = small(n_inputs=n_inputs, n_latents=n_latents)
    latents = torch.rand(150, n_latents, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = model._decode_rows(latents)
        torch.testing.assert_close(whole, model.decode(latents))
        for start in range(34):  # every place in a block
            assert torch.equal(model._decode_rows(latents[start:]), whole[start:])
        for rows in (0, 1, 2, 3, 5, 8, 31, 32, 33, 64, 100):
            assert torch.equal(model._decode_rows(latents[7 : 7 + rows]), whole[7 : 7 + rows])


@pytest.mark.parametrize("pixel_noise", [False, True])
def test_samples_are_generated_by_their_index(model: IterativeVAE, pixel_noise: bool) -> None:
    with torch.no_grad():
        model.layer.u_init[0].add_(4.0)
    whole = model.generate(23, seed=5, pixel_noise=pixel_noise)
    parts = [
        model.generate(min(9, 23 - i), seed=5, pixel_noise=pixel_noise, sample_offset=i) for i in (0, 9, 18)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole[:9], whole[9:18])


def test_seeds_are_drawn_where_the_model_is(model: IterativeVAE, x: Tensor) -> None:
    """Whatever torch's default device: a seed on another one would be refused."""
    with torch.no_grad():
        model.layer.u_init[0].add_(4.0)
    calls = (lambda: model.encode(x, 3), lambda: model.reconstruct(x, 3), lambda: model.generate(9))
    for call in calls:
        torch.manual_seed(3)
        expected = call()
        assert not torch.equal(call(), expected)
        torch.manual_seed(3)
        with torch.device("meta"):
            assert torch.equal(call(), expected)


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
    with pytest.raises(ConfigError, match="config: IPVAE needs an IPVAEConfig, found IGVAEConfig"):
        IPVAE(IGVAEConfig(n_inputs=4))
    with pytest.raises(ConfigError, match="config: IGVAE needs an IGVAEConfig, found IPVAEConfig"):
        IGVAE(IPVAEConfig(n_inputs=4))


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


# What a model has of its configuration, its buffers or its weights, so that a call need not say it.
CONFIGURED = {
    "params", "n_inner", "beta_inner", "decay", "drive", "kl", "clamp_u", "clamp_du", "n_arrivals"
}  # fmt: skip
NOT_OF_A_MODEL = {"decoder", "neuron_offset"}  # it has a decoder of its own, and all neurons


@pytest.mark.parametrize(
    ("method", "op"), [(IPVAE.forward, ipvae_kernels.elbo), (IPVAE.infer, ipvae_kernels.infer)]
)
def test_a_model_passes_on_every_option_of_a_rollout(method: Any, op: Any) -> None:
    options = set(signature(op).parameters) - CONFIGURED - NOT_OF_A_MODEL
    assert options == set(signature(method).parameters) - {"self"}


def test_options_of_a_call_reach_the_rollout(x: Tensor) -> None:
    model = small(init_log_rate=(-1.0, 1.0))
    options = {"single_draw": True, "seed": 3}
    ours = model(x, 4, checkpoint=2, **options)
    loss = ipvae_kernels.elbo(
        x, model.params, 4, estimator=model.config.estimator, temperature=model.temperature,
        clamp_u=model.clamps["clamp_u"], clamp_du=model.clamps["clamp_du"], **options,
    ).loss  # fmt: skip
    assert torch.equal(ours.loss, loss)
    assert not torch.equal(ours.loss, model(x, 4, seed=3).loss)
    counts = model(x, 4, record=("counts",), **options).records["counts"]
    assert counts.shape == (4, len(x), model.config.n_latents)
    assert counts.requires_grad
    with pytest.raises(ValueError, match="matmul_precision: expected one of float32, tf32, bf16"):
        model(x, 4, matmul_precision="half")


def test_clamps_open_from_their_initial_value() -> None:
    assert opened(10.0, 0.0) == 2.0
    assert opened(10.0, 0.25) == 4.0
    assert opened(7.0, 1.0, init=1.0) == 7.0


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_eval_mode_prepares_parameters_and_never_uses_stale_ones(
    options: dict[str, Any], x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    prepare = ipvae_kernels.prepare
    monkeypatch.setattr(
        ipvae_kernels, "prepare", lambda params, **how: made.append(params) or prepare(params, **how)
    )
    model = small(**options).eval()

    def infer() -> Tensor:
        return model.infer(x, 3, seed=1).state.log_rate

    def fresh() -> Tensor:
        return ipvae_kernels.infer(
            x, model.params, 3, seed=1, kl=model.config.kl, **model.clamps
        ).state.log_rate

    assert torch.equal(infer(), fresh())
    assert torch.equal(infer(), fresh())
    assert len(made) == 1
    changes: list[Callable[[], Any]] = [
        lambda: (model.layer.phi.weight.data.mul_(2), model.eval()),  # by .data torch counts no version
        lambda: torch.nn.init.constant_(model.layer.dec_log_sigma, -0.5),
        lambda: model.load_state_dict(small(**options, seed=4).state_dict()),
        lambda: setattr(model.layer, "log_bias", torch.nn.Parameter(model.layer.log_bias - 1)),
    ]
    for n, change in enumerate(changes, 2):
        before = infer()
        change()
        assert not torch.equal(infer(), before)
        assert torch.equal(infer(), fresh())
        assert len(made) == n
    other = {name: value + 0.1 for name, value in model.named_parameters()}
    called = torch.func.functional_call(_Infers(model), {f"model.{k}": v for k, v in other.items()}, (x,))
    assert not torch.equal(called, infer())
    model.train()
    infer()
    assert len(made) == len(changes) + 1
    copied = copy.deepcopy(model.eval())
    assert torch.equal(copied.infer(x, 3, seed=1).state.log_rate, infer())


class _Infers(torch.nn.Module):
    def __init__(self, model: IterativeVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.infer(x, 3, seed=1).state.log_rate


@pytest.mark.parametrize(
    ("kind", "config_kind", "numbers"), [(IPVAE, IPVAEConfig, 1), (IGVAE, IGVAEConfig, 2)]
)
def test_the_step_size_starts_where_it_is_told(
    kind: Any, config_kind: Any, numbers: int, tmp_path: Path
) -> None:
    """In the configuration's file only where it is not the paper's; weights load whatever it says."""
    config = config_kind(n_inputs=6, n_latents=8, init_log_lr=-3.0)
    model = kind(config)
    assert [float(value) for value in model.layer.log_lr] == [-3.0] * numbers
    model.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config == config
    assert "init_log_lr" not in config_kind(n_inputs=6, n_latents=8).to_dict()
    with pytest.raises(ConfigError, match="init_log_lr: expected a finite number"):
        config_kind(n_inputs=6, n_latents=8, init_log_lr=float("nan"))
