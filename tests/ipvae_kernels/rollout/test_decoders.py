"""Rollouts with decoders of the user's: equal to the fused ones where linear, elsewhere by their rules."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ipvae_kernels as ik

Problem = Callable[..., tuple[Tensor, Any]]
STEPS = 4
HOW: dict[str, Any] = {"seed": 11, "sample_offset": 3}
SCHEDULES: list[dict[str, Any]] = [{}, {"n_inner": 3, "beta_inner": 0.5}, {"single_draw": True}]
ESTIMATORS = [("hard", 0.0), ("sigmoid", 0.5), ("cubic", 0.2), ("fini2", 0.0), ("gumbel", 0.5)]
MODELS = ["", "identity", "relu"]


def linear(dictionary: Tensor) -> nn.Linear:
    """The module that multiplies with a dictionary."""
    pixels, neurons = dictionary.shape
    module = nn.Linear(neurons, pixels, bias=False, dtype=dictionary.dtype)
    module.weight.data.copy_(dictionary)
    return module


def without_dictionary(params: Any) -> Any:
    """The other parameters."""
    return dataclasses.replace(params, dictionary=None)


def others(params: Any) -> list[Tensor]:
    """Every tensor but the dictionary."""
    return [value for name, value in vars(params).items() if name not in ("dictionary", "activation")]


def network(inputs: int = 9, latents: int = 8) -> nn.Module:
    """A small convolutional decoder of images 3 x 3, in float64."""
    torch.manual_seed(1)
    assert inputs == 9
    return nn.Sequential(
        nn.Linear(latents, 18),
        nn.ReLU(),
        nn.Unflatten(1, (2, 3, 3)),
        nn.Conv2d(2, 1, 3, padding=1),
        nn.Flatten(),
    ).double()


@pytest.mark.parametrize("moving", [0, STEPS], ids=["static", "moving"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("gaussian", MODELS)
def test_a_linear_module_infers_what_the_fused_rollout_infers(
    gaussian: str, schedule: dict[str, Any], moving: int, problem: Problem
) -> None:
    x, params = problem(gaussian=gaussian, moving=moving)
    how = {"record": ik.rollout.op.RECORDS, "record_every": 2, **HOW, **schedule}
    fused = ik.infer(x, params, STEPS, backend="eager", **how)
    ours = ik.infer(
        x, without_dictionary(params), STEPS, decoder=linear(params.dictionary), backend="eager", **how
    )
    assert ours.state.step == fused.state.step
    assert list(ours.records) == list(fused.records)
    for name, record in fused.records.items():
        torch.testing.assert_close(ours.records[name], record, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.state.log_rate, fused.state.log_rate, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [*SCHEDULES, {"truncate": 3, "beta": 2.0, "kl": "released"}], ids=str)
@pytest.mark.parametrize(
    ("gaussian", "estimator", "temperature"),
    [("", *estimator) for estimator in ESTIMATORS] + [("identity", "hard", 0.0), ("relu", "hard", 0.0)],
)
def test_a_linear_module_has_the_gradients_of_the_fused_loss(
    gaussian: str, estimator: str, temperature: float, schedule: dict[str, Any], problem: Problem
) -> None:
    x, params = problem(gaussian=gaussian, grad=True)
    how = {"estimator": estimator, "temperature": temperature, **HOW, **schedule}
    backend = "auto" if estimator == "gumbel" else "eager"
    fused = ik.elbo(x, params, STEPS, backend=backend, **how)
    module = linear(params.dictionary)
    ours = ik.elbo(x, without_dictionary(params), STEPS, decoder=module, backend=backend, **how)
    results = []
    for result, dictionary in ((fused, params.dictionary), (ours, module.weight)):
        gradients = torch.autograd.grad(result.loss, [x, dictionary, *others(params)])
        results.append([result.loss, result.recon, result.kl, result.state.log_rate, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_linear_decoder_is_fused(problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32)
    bare, decoder = without_dictionary(params), ik.LinearDecoder(params.dictionary)
    for function in (ik.infer, ik.elbo):
        ours = function(x, bare, STEPS, decoder=decoder, backend=backend, **HOW)
        assert torch.equal(
            ours.state.log_rate, function(x, params, STEPS, backend=backend, **HOW).state.log_rate
        )


@pytest.mark.parametrize("gaussian", MODELS)
def test_a_network_by_ops_is_that_by_autograd(gaussian: str, problem: Problem) -> None:
    """The ops have backwards by hand; autograd goes through the draws themselves."""
    x, params = problem(pixels=9, neurons=8, grad=True, gaussian=gaussian)
    module, results = network(), []
    for backend in ("eager", "autograd"):
        result = ik.elbo(
            x, without_dictionary(params), STEPS, decoder=module, backend=backend, n_inner=2, **HOW
        )
        gradients = torch.autograd.grad(result.loss, [x, *module.parameters(), *others(params)])
        results.append([result.loss, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert bool((one != 0).any())


def test_the_drive_is_minus_the_gradient_of_the_reconstruction_term(problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8)
    module = network()
    state, records = ik.infer(
        x, without_dictionary(params), 1, decoder=module, record=["recon"], backend="eager", **HOW
    )
    u = params.log_rate_init.expand(len(x), -1)
    z = ik.poisson_sample(u, draw="update", backend="eager", **HOW).requires_grad_()
    recon = (0.5 * (x - module(z)).square() / torch.exp(2 * params.log_sigma)).sum()
    drive = -torch.autograd.grad(recon, z)[0]
    torch.testing.assert_close(state.log_rate, ik.log_rate_update(u, u, drive, params, backend="eager"))
    assert records["recon"].shape == (1, len(x))


def test_cuts_and_splits_of_a_network(problem: Problem) -> None:
    x, params = problem(batch=4, pixels=9, neurons=8)
    bare, module = without_dictionary(params), network()
    how: dict[str, Any] = {"decoder": module, "backend": "eager"}
    whole = ik.infer(x, bare, 6, record=["counts"], **HOW, **how)
    first = ik.infer(x, bare, 2, record=["counts"], **HOW, **how)
    second = ik.infer(x, bare, 4, record=["counts"], state=first.state, **how)
    assert torch.equal(second.state.log_rate, whole.state.log_rate)
    assert torch.equal(
        torch.cat([first.records["counts"], second.records["counts"]]), whole.records["counts"]
    )
    part = ik.infer(x[2:], bare, 6, record=["counts"], seed=11, sample_offset=5, **how)
    assert torch.equal(part.records["counts"], whole.records["counts"][:, 2:])


@pytest.mark.parametrize("kept", [1, 3, 4, 9])
def test_checkpoints_change_nothing(kept: int, problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8, moving=7, grad=True)
    module, results = network(), []
    for checkpoint in (None, kept):
        result = ik.elbo(
            x, without_dictionary(params), 7, decoder=module, checkpoint=checkpoint, backend="eager", **HOW
        )
        gradients = torch.autograd.grad(result.loss, [x, *module.parameters(), *others(params)])
        results.append([result.loss, result.recon, result.kl, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Watched(nn.Module):
    """A decoder that counts how many of its results are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.results, self.most = network(), weakref.WeakSet[Any](), 0

    def forward(self, code: Tensor) -> Tensor:
        """The mean."""
        mean: Tensor = self.inner(code)
        self.results.add(mean)
        self.most = max(self.most, len(self.results))
        return mean


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_inference_keeps_no_graph(mode: Any, problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8)
    most = []
    for steps in (3, 30):
        module = Watched()
        with mode():
            result = ik.infer(
                x, without_dictionary(params), steps, decoder=module, record=["recon"], backend="eager", **HOW
            )
        assert not result.state.log_rate.requires_grad
        assert not result.records["recon"].requires_grad
        assert all(parameter.grad is None for parameter in module.parameters())
        most.append(module.most)
    assert most[0] == most[1]


def test_gaussian_ops_are_not_compiled(problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8, gaussian="relu")
    with pytest.raises(ik.BackendError, match="Gaussian models run in plain PyTorch"):
        ik.infer(x, without_dictionary(params), 2, decoder=network(), backend="cpu")


def test_transforms_are_refused(problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8)
    bare, module = without_dictionary(params), network()
    with pytest.raises(ik.BackendError, match="not served inside of"):
        torch.vmap(
            lambda row: ik.elbo(row[None], bare, 2, decoder=module, backend="eager").loss, randomness="same"
        )(x)


class Detached(nn.Module):
    """A decoder that autograd cannot differentiate."""

    def forward(self, code: Tensor) -> Tensor:
        """The mean."""
        return code.detach()[:, :1].expand(-1, 9)


class Halved(nn.Module):
    """A decoder with another dtype."""

    def forward(self, code: Tensor) -> Tensor:
        """The mean."""
        return code.half()


BAD: list[tuple[Any, type[Exception], str]] = [
    (nn.Linear(8, 5).double(), ValueError, r"mean of the decoder: expected .* = \[3, 9\], found \[3, 5\]"),
    (nn.Unflatten(1, (2, 4)), ValueError, r"mean of the decoder: expected shape"),
    (Halved(), TypeError, "decoder: expected means of dtype torch.float64 as the codes, found torch.float16"),
    (Detached(), ValueError, "decoder: expected a mean that autograd can differentiate"),
    (torch.zeros(9, 8), TypeError, "decoder: expected an nn.Module or a Decoder, found Tensor"),
    (7, TypeError, "decoder: expected an nn.Module or a Decoder, found int"),
]  # fmt: skip


@pytest.mark.parametrize("function", [ik.infer, ik.elbo])
@pytest.mark.parametrize(("decoder", "error", "message"), BAD)
def test_bad_decoders(
    decoder: Any, error: type[Exception], message: str, function: Any, problem: Problem
) -> None:
    x, params = problem(pixels=9, neurons=8)
    with pytest.raises(error, match=message):
        function(x, without_dictionary(params), 2, decoder=decoder, backend="eager", **HOW)


def test_exactly_one_decoder(problem: Problem) -> None:
    x, params = problem(pixels=9, neurons=8)
    with pytest.raises(
        ValueError, match=r"params\.dictionary: expected None beside a decoder, found a tensor"
    ):
        ik.infer(x, params, 2, decoder=network())
    with pytest.raises(TypeError, match=r"params\.dictionary: expected a torch\.Tensor, found NoneType"):
        ik.infer(x, without_dictionary(params), 2)
    with pytest.raises(
        ValueError, match=r"x: expected last dimension M = 9 as in params\.log_sigma, found 8"
    ):
        ik.infer(x[:, :8], without_dictionary(params), 2, decoder=network())
