"""torch's default device and dtype are a user's affair: results neither need them nor change with them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import (
    IGVAE,
    IPVAE,
    IterativeVAE,
    TrainConfig,
    evaluate,
    load_model,
    train,
)
from ipvae.data import JitterFeeder, RotationFeeder, load_dataset
from ipvae.models.registry import FAMILIES
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import ipvae_kernels as ik

M, K = 16, 6
ESTIMATORS = ("sigmoid", "cubic", "fini2", "gumbel", "hard")
Numbers = dict[str, Any]


@pytest.fixture(params=["device", "dtype"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets another default. What is made without a device then has no data, and breaks what uses it."""

    def change() -> None:
        if request.param == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)

    yield change
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def model_of(cell: str) -> IterativeVAE:
    own: dict[str, Any] = {} if cell == "gaussian" else {"init_log_rate": (-1.0, 0.0)}
    family = FAMILIES[cell]
    return family(
        family.config_class(n_inputs=M, n_latents=K, input_shape=(1, 4, 4), t_train=2, init_scale=0.3, **own)
    )


def ops(x: Tensor, log_rate: Tensor, params: Any, backend: str) -> Numbers:
    """Every op, with gradients."""
    drawn_by = "eager" if backend == "autograd" else backend  # the same, where nothing is differentiated
    numbers: Numbers = {"counts": ik.poisson_sample(log_rate, seed=1, backend=drawn_by)}
    for estimator in ESTIMATORS:
        served = "auto" if estimator == "gumbel" else backend
        leaf = log_rate.clone().requires_grad_()
        counts = ik.poisson_rsample(leaf, estimator=estimator, seed=1, backend=served)
        numbers[estimator] = counts.detach(), *torch.autograd.grad(counts.sum(), leaf)
    numbers["update"] = ik.log_rate_update(log_rate, log_rate, log_rate, params, backend=backend)
    for n_inner in (1, 2):
        run = ik.infer(x, params, 3, seed=2, n_inner=n_inner, record=("counts", "recon"), backend=backend)
        numbers[f"infer {n_inner}"] = run.state.log_rate, *run.records.values()
        phi = params.dictionary.clone().requires_grad_()
        loss = ik.elbo(
            x, ik.PoissonParams(phi, *list(vars(params).values())[1:]), 3, seed=2, n_inner=n_inner,
            truncate=2, checkpoint=1, backend=backend,
        ).loss  # fmt: skip
        numbers[f"elbo {n_inner}"] = loss.detach(), *torch.autograd.grad(loss, phi)
    return numbers


def methods(model: IterativeVAE, x: Tensor) -> Numbers:
    """Every method of a model that draws, and the measures."""
    labels = np.arange(len(x)) % 2
    found = evaluate(model, x, 4, marks=[2, 4], labels=labels, train=(x, labels), seed=3)
    return {
        "encode": model.encode(x, 4, last=2, seed=1),
        "counts": model.encode(x, 4, last=2, counts=True, seed=1),
        "reconstruct": model.reconstruct(x.numpy(), 4, seed=1),
        "generate": model.generate(3, seed=2, pixel_noise=True),
        "loss": model(x, seed=3).loss.detach(),
        "curves": (torch.from_numpy(found.r2), torch.from_numpy(found.nelbo)),
        "accuracy": torch.from_numpy(np.array([found.readout[4].accuracy, found.lifetime[2]])),
    }


def sources(images: Tensor) -> Numbers:
    """Data sets and moving input."""
    digits = load_dataset("digits")
    return {
        "digits": (digits.train, digits.labels["test"]),
        "jitter": JitterFeeder(images, seed=2, window=(3, 3)).frames(0, 5),
        "rotation": RotationFeeder(images).frames(1, 4),
    }


def equal(first: Numbers, second: Numbers) -> None:
    def flat(numbers: Numbers, name: str) -> tuple[Tensor, ...]:
        return numbers[name] if isinstance(numbers[name], tuple) else (numbers[name],)

    for name in first:
        for a, b in zip(flat(first, name), flat(second, name), strict=True):
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=name)


@pytest.mark.parametrize("backend", ["auto", "eager", "autograd"])
def test_ops(elsewhere: Callable[[], None], problem: Callable[..., Any], backend: str) -> None:
    x, params = problem(dtype=torch.float32)
    log_rate = torch.randn(4, params.log_bias.shape[0])
    before = ops(x, log_rate, params, backend)
    elsewhere()
    equal(before, ops(x, log_rate, params, backend))


@pytest.mark.parametrize("cell", ["poisson", "gaussian"])
def test_models(elsewhere: Callable[[], None], cell: str) -> None:
    model, x = model_of(cell), torch.randn(5, 1, 4, 4)
    before = methods(model, x)
    elsewhere()
    equal(before, methods(model, x))
    model.encode(x, 3)  # without a seed
    assert model.generate(2).device.type == "cpu"


def test_data(elsewhere: Callable[[], None]) -> None:
    images = torch.rand(2, 1, 4, 4)
    before = sources(images)
    elsewhere()
    equal(before, sources(images))


@pytest.mark.parametrize("cell", ["poisson", "gaussian"])
def test_a_fresh_model_and_its_training_do_not_follow_the_default_dtype(cell: str, tmp_path: Path) -> None:
    x, states = torch.randn(9, 1, 4, 4), []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model = model_of(cell)
            config = TrainConfig(max_steps=3, batch_size=4)
            train(model, x, config, tmp_path / str(dtype), progress=False, logger=None)
        finally:
            torch.set_default_dtype(torch.float32)
        states.append(model.state_dict())
    equal(*states)


@pytest.mark.parametrize("cell", ["poisson", "gaussian"])
def test_models_are_trained_and_read_elsewhere(
    elsewhere: Callable[[], None], cell: str, tmp_path: Path
) -> None:
    model, x = model_of(cell), torch.randn(9, 1, 4, 4)
    torch.save({"model": model.state_dict()}, tmp_path / "theirs.pt")
    before = model.state_dict()
    elsewhere()
    equal(before, type(model).from_released(tmp_path / "theirs.pt", config=model.config).state_dict())
    run = train(model, x, TrainConfig(max_steps=2, batch_size=4), tmp_path / "run", progress=False)
    read = type(model).from_pretrained(run.model_dir)
    for found in (read, load_model(run.checkpoint), load_model(run.out_dir)):
        equal(model.state_dict(), found.state_dict())


def test_a_model_is_made_on_the_default_device() -> None:
    with torch.device("meta"):
        assert {p.device.type for p in model_of("poisson").state_dict().values()} == {"meta"}


@pytest.mark.parametrize("make", [IPVAE, IGVAE])
def test_methods_without_a_seed_stay_on_the_device_of_the_model(
    make: type[IterativeVAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fake tensors of a GPU, whose devices are checked and whose numbers are not there."""
    model = make(make.config_class(n_inputs=M, n_latents=K))
    real = model.params
    with FakeTensorMode():
        tensors = {
            name: torch.empty(value.shape, device="cuda") if isinstance(value, Tensor) else value
            for name, value in vars(real).items()
        }
        # In place of the parameters themselves: a torch without CUDA refuses to index fake tensors of it.
        monkeypatch.setattr(make, "params", type(real)(**tensors))
        monkeypatch.setattr(make, "dictionary", tensors["dictionary"])
        x = torch.empty(3, M, device="cuda")
        for found in (
            model.encode(x, 4, last=2),
            model.encode(x, 4, counts=True),
            model.reconstruct(x, 4),
            model.infer(x, 3).state.log_rate,
            model(x).loss,
        ):
            assert found.device.type == "cuda"
