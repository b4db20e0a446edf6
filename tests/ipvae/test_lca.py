"""Habits of the Locally Competitive Algorithm: its tuple, its layers, and the energy that it minimises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ipvae import IPVAE, IPVAEConfig
from ipvae.interop.lca import CLAMP, Convolution, LCAConv, LCAConv1D, LCAConv2D, LCAConv3D, sparse_code
from torch import Tensor, nn
from torch.nn import functional

import ipvae_kernels

TUPLE = ("inputs", "acts", "recons", "recon_errors")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> LCAConv2D:
    torch.manual_seed(5)
    return LCAConv2D(4, 2, **{"kernel_size": 3, "tau": 20.0, "lca_iters": 5, "return_vars": TUPLE, **options})


def test_a_trained_model_gives_the_tuple() -> None:
    model = IPVAE(IPVAEConfig(n_inputs=6, n_latents=5, input_shape=(1, 2, 3), init_scale=0.3)).eval()
    x, moving = images(4, 1, 2, 3), images(3, 4, 6)
    for source, steps in ((x, 7), (x.numpy(), 7), (moving, 3)):
        every = model.infer(source, steps, record=("counts", "reconstruction"), seed=2).records
        last, whole = (sparse_code(model, source, steps, all_steps=all_, seed=2) for all_ in (False, True))
        assert torch.equal(whole.code, every["counts"])
        assert torch.equal(last.code, every["counts"][-1])
        for found in (last, whole):
            frames = found.inputs[-1] if found is last and source is moving else found.inputs
            assert torch.equal(found.recon_error, frames - found.recon)
        inputs, _, recon, _ = last
        assert inputs.shape[-2:] == recon.shape == (4, 6)
    part = sparse_code(model, x[2:], 7, seed=2, sample_offset=2)
    assert torch.equal(part.code, sparse_code(model, x, 7, seed=2).code[2:])


def minimum(lca: LCAConv2D, x: Tensor, decoder: Convolution) -> tuple[Any, Tensor]:
    """The energy of activations in the algorithm's units, and its minimum by iterated soft thresholds."""
    unit = Convolution(lca.weights.detach() / lca.spike_size, lca.stride, lca.padding, x.shape[2:])

    def energy(a: Tensor) -> Tensor:
        return 0.5 * (x - unit.mean(a)).square().sum() + lca.lambda_ * a.sum()

    a = torch.zeros(len(x), *decoder.code_shape)
    for _ in range(600):
        a = functional.relu(a + (unit.drive(x - unit.mean(a)) - lca.lambda_) / 20)
    return energy, energy(a)


@pytest.mark.parametrize("stride", [1, 2])
def test_spikes_find_the_minimum_of_the_energy(stride: int) -> None:
    lca = small(
        stride=stride, lambda_=0.5, lca_iters=400, spike_size=0.25, return_vars=("inputs", "acts", "rates"),
        return_all_ts=True,
    )  # fmt: skip
    x, acts, rates = lca(images(6, 2, 8, 8), seed=0)
    energy, least = minimum(lca, x[..., 0], lca.problem(x[..., 0])[2])
    nothing = energy(torch.zeros_like(acts[..., 0]))
    for found in (acts[..., 250:].mean(-1), rates[..., 250:].mean(-1)):
        excess = (energy(lca.spike_size * found) - least) / (nothing - least)
        assert -1e-6 < excess < 0.03


class Flat(nn.Module):
    """A transposed convolution of torch's as the ops take decoders."""

    def __init__(self, weights: Tensor, code: tuple[int, ...], **options: Any) -> None:
        super().__init__()
        channels = (weights.shape[0], weights.shape[1])
        self.layer = nn.ConvTranspose2d(*channels, weights.shape[2:], bias=False, **options)
        self.layer.weight = nn.Parameter(weights.detach())
        self.code = code

    def forward(self, code: Tensor) -> Tensor:
        decoded: Tensor = self.layer(code.reshape(-1, *self.code)).flatten(1)
        return decoded


@pytest.mark.parametrize(("stride", "side"), [(1, 7), (2, 8), (2, 7), (3, 8)])
def test_it_is_infer_with_a_transposed_convolution(stride: int, side: int) -> None:
    lca = small(stride=stride, return_vars=("acts", "states", "recons"))
    batch = images(3, 2, side, side)
    acts, states, recons = lca(batch, seed=1)
    x, params, decoder = lca.problem(batch)
    beyond = side - ((decoder.code_shape[1] - 1) * stride + 1)
    layer = Flat(lca.weights, decoder.code_shape, stride=stride, padding=1, output_padding=beyond)
    expected = ipvae_kernels.infer(
        x,
        params,
        5,
        decoder=layer,
        clamp_u=CLAMP,
        clamp_du=CLAMP,
        seed=1,
        record=("counts", "reconstruction"),
        record_every=5,
    )
    assert torch.equal(acts, expected.records["counts"][0].reshape(acts.shape))
    assert torch.allclose(states, expected.state.log_rate.reshape(states.shape), atol=1e-5)
    assert torch.allclose(recons.flatten(1), expected.records["reconstruction"][0], atol=1e-5)
    assert recons.shape == batch.shape


@pytest.mark.parametrize(
    ("layer", "sides", "code", "options"),
    [
        (LCAConv1D, (9,), (5,), {"stride": 2}),
        (LCAConv2D, (8, 6), (8, 3), {"stride": (1, 2), "kernel_size": (3, 5)}),
        (LCAConv3D, (4, 6, 5), (3, 5, 4), {"kernel_size": 2, "pad": "valid"}),
    ],
)
def test_one_two_and_three_sides(
    layer: Any, sides: tuple[int, ...], code: tuple[int, ...], options: dict[str, Any]
) -> None:
    names = (*TUPLE, "states", "rates", "input_drives")
    lca = layer(4, 2, **{"kernel_size": 3, "lca_iters": 6, "return_vars": names, **options})
    every = layer(
        4, 2, **{"kernel_size": 3, "lca_iters": 6, "return_vars": names, **options}, return_all_ts=True
    )
    every.load_state_dict(lca.state_dict())
    batch = images(3, 2, *sides)
    last, whole = lca(batch, seed=4), every(batch, seed=4)
    shapes = [(3, 2, *sides), (3, 4, *code), (3, 2, *sides), (3, 2, *sides), *[(3, 4, *code)] * 3]
    for one, all_, shape in zip(last, whole, shapes, strict=True):
        assert one.shape == shape
        assert all_.shape == (*shape, 6)
        assert torch.allclose(all_[..., -1], one, atol=1e-5)
    inputs, acts, recons, errors, states, rates, drives = last
    assert torch.allclose(inputs.flatten(1).mean(1), torch.zeros(3), atol=1e-6)
    assert torch.allclose(inputs.flatten(1).std(1), torch.ones(3), atol=1e-5)
    assert torch.equal(errors, inputs - recons)
    assert torch.equal(rates, states.exp())
    assert torch.equal(acts, acts.round())
    assert torch.allclose(lca.compute_recon(acts, lca.weights, sides), recons)
    adjoint = (drives * acts).sum() * lca.spike_size
    assert torch.allclose(adjoint, (inputs * recons).sum(), rtol=1e-4, atol=1e-4)


def test_batches_frames_and_single_variables() -> None:
    lca = small(return_vars=("acts",))
    batch = images(5, 2, 8, 8)
    acts = lca(batch, seed=3)
    assert torch.equal(lca(batch[2:], seed=3, sample_offset=2), acts[2:])
    still = small(return_vars=("states",), tau=1e6)
    before = images(5, 4, 8, 8, seed=2)
    assert torch.allclose(still(batch, before), before, atol=1e-3)  # nor does the soft ceiling lower them
    raw = small(return_vars=("inputs",), input_zero_mean=False, input_unit_var=False)
    assert torch.equal(raw(batch), batch)


def test_its_rule_and_an_optimiser_learn_the_same_way() -> None:
    lca = small(eta=1.0, req_grad=True)
    batch = images(3, 2, 8, 8)
    _, acts, _, errors = lca(batch, seed=0)
    assert not acts.requires_grad
    (errors.square().sum() / 2).backward()
    assert lca.weights.grad is not None
    active = 1 + (acts != 0).sum((0, 2, 3))
    before = lca.weights.detach().clone()
    expected = -(lca.spike_size**2) * lca.weights.grad / active[:, None, None, None]
    update = lca.update_weights(acts, errors, normalize=False)
    assert torch.allclose(update, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(lca.weights, before + update)
    lca.normalize_weights()
    assert torch.allclose(lca.weights.flatten(1).norm(dim=1), torch.full((4,), lca.spike_size))
    lca.assign_weight_values(before, normalize=False)
    assert torch.equal(lca.weights, before)


def test_features_of_the_data_are_learned() -> None:
    planted = functional.normalize(images(2, 1, 3, 3, seed=8).flatten(1)).reshape(2, 1, 3, 3)
    places = (torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(9)) < 0.04) * 3.0
    batch = functional.conv_transpose2d(places, planted, padding=1)
    torch.manual_seed(0)
    lca = LCAConv2D(
        2, 1, kernel_size=3, tau=20.0, lca_iters=40, eta=0.3, lambda_=0.1, spike_size=0.25, return_vars=TUPLE,
        init_log_rate=-1.0, input_zero_mean=False, input_unit_var=False,
    )  # fmt: skip
    shares = []
    for step in range(24):
        x, code, _, error = lca(batch, seed=step)
        shares.append(float(error.square().sum() / x.square().sum()))
        lca.update_weights(code, error)
    assert sum(shares[-4:]) < 0.7 * sum(shares[:4])


def test_the_loss_of_the_paper_trains_the_features() -> None:
    lca = small(req_grad=True)
    x, params, decoder = lca.problem(images(3, 2, 8, 8))
    result = ipvae_kernels.elbo(x, params, 4, decoder=decoder, estimator="fini2", seed=0)
    result.loss.backward()
    assert lca.weights.grad is not None
    assert lca.weights.grad.abs().sum() > 0
    assert not any(variable.requires_grad for variable in small()(images(3, 2, 8, 8)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, r"kernel_size: expected odd sides with pad='same', found \(4, 4\)"),
        (
            {"kernel_size": (3, 3, 3)},
            ValueError,
            r"kernel_size: expected an int or 2 of them, found \(3, 3, 3\)",
        ),
        ({"stride": 0}, ValueError, "stride: expected an int from 1"),
        ({"pad": "full"}, ValueError, "pad: expected one of same, valid"),
        ({"lambda_": 0.0}, ValueError, "lambda_: expected a finite number above 0"),
        ({"tau": -1.0}, ValueError, "tau: expected a finite number above 0"),
        ({"spike_size": 0.0}, ValueError, "spike_size: expected a finite number above 0"),
        ({"lca_iters": 0}, ValueError, "lca_iters: expected an int from 1"),
        ({"return_vars": "acts"}, TypeError, "return_vars: expected a collection of names, found the string"),
        ({"return_vars": ()}, ValueError, "return_vars: expected names out of inputs, .* found none"),
        ({"return_vars": ("conns",)}, ValueError, "return_vars: 'conns' is not there"),
        ({"return_vars": ("code",)}, ValueError, "return_vars: expected one of inputs, input_drives"),
    ],
)
def test_bad_layers_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        small(**options)


def test_bad_inputs_are_named() -> None:
    with pytest.raises(TypeError, match="LCAConv: expected one of LCAConv1D"):
        LCAConv(4, 2)
    lca = small()
    for shape, message in (
        ((3, 2, 8), r"inputs: expected \[B, 2, H, W\], found \[3, 2, 8\]"),
        ((3, 1, 8, 8), r"inputs: expected \[B, 2, H, W\], found \[3, 1, 8, 8\]"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            lca(images(*shape))
    with pytest.raises(ValueError, match=r"^inputs: expected sides of at least \[3, 3\], found \[2, 8\]"):
        small(pad="valid")(images(3, 2, 2, 8))
    with pytest.raises(TypeError, match=r"inputs: expected a torch\.Tensor"):
        lca(images(3, 2, 8, 8).numpy())
    with pytest.raises(
        ValueError, match=r"initial_states: expected shape \[B, out_neurons, \*sides\] = \[3, 4"
    ):
        lca(images(3, 2, 8, 8), torch.zeros(3, 4, 7, 8))
    with pytest.raises(ValueError, match=r"tensor: expected shape \[out_neurons, in_neurons, \*kernel\]"):
        lca.assign_weight_values(torch.zeros(4, 2, 3, 5))
    with pytest.raises(ValueError, match="finite"):
        lca(torch.full((1, 2, 8, 8), float("nan")))
