"""NeuroBench runs trained models with its own metrics; synaptic operations are those of a count by hand."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig
from ipvae.extras import MissingExtra
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ipvae_kernels import poisson_sample

pytest.importorskip("neurobench", reason="neurobench is not installed")

from ipvae.interop.neurobench import NeuroBenchVAE, SynapticOperations
from neurobench.benchmarks import Benchmark
from neurobench.metrics.static import ConnectionSparsity, Footprint, ParameterCount
from neurobench.metrics.workload import MSE, ActivationSparsity, MembraneUpdates
from neurobench.metrics.workload import SynapticOperations as TheirOperations

N, M, K, T, SEED = 7, 12, 10, 5, 3


def made(n_inner: int = 1) -> IPVAE:
    config = IPVAEConfig(
        n_inputs=M, n_latents=K, input_shape=(1, 4, 3), n_inner=n_inner, beta_inner=0.5, init_scale=0.2,
        init_log_rate=(-1.0, 0.5),
    )  # fmt: skip
    model = IPVAE(config).eval()
    with torch.no_grad():
        model.dictionary[:, :2] = 0.0
        model.dictionary[3] = 0.0
    return model


@pytest.fixture
def model() -> IPVAE:
    return made()


@pytest.fixture
def x() -> Tensor:
    images = torch.rand(N, 1, 4, 3, generator=torch.Generator().manual_seed(1))
    images[:, 0, 0, 0] = 0.0  # a pixel that is always dark
    return images


def run(wrapped: NeuroBenchVAE, x: Tensor, static: list[Any], workload: list[Any], size: int = 3) -> Any:
    loader = DataLoader(TensorDataset(x, x), batch_size=size)
    bench = Benchmark(wrapped, loader, [], [], [static, workload])
    return bench.run(quiet=True)


def sent_by_hand(model: IPVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes of the updates and states after the steps, [T, N, K] each, from `infer` and the public draws."""
    states = model.infer(x, T, record=("log_rate",), seed=SEED).records["log_rate"]
    before = torch.cat([model.params.log_rate_init.expand(1, N, K), states[:-1]])
    draws = [poisson_sample(u, seed=SEED, draw="update", step=t) for t, u in enumerate(before)]
    return torch.stack(draws), states


def test_its_metrics_run_and_agree_with_a_count_by_hand(model: IPVAE, x: Tensor) -> None:
    static = [Footprint, ParameterCount, ConnectionSparsity]
    workload = [ActivationSparsity, SynapticOperations, MembraneUpdates, MSE]
    wrapped = NeuroBenchVAE(model, steps=T, output="reconstruction", seed=SEED)
    found = run(wrapped, x, static, workload)
    tensors = [*model.parameters(), *model.buffers()]
    assert found["Footprint"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found["ParameterCount"] == sum(parameter.numel() for parameter in model.parameters())
    there = model.dictionary != 0
    assert found["ConnectionSparsity"] == pytest.approx(1 - there.double().mean().item(), abs=1e-4)
    spikes, states = sent_by_hand(model, x)
    assert found["ActivationSparsity"] == pytest.approx((spikes == 0).double().mean().item())
    assert found["MembraneUpdates"] == T * K
    assert spikes.max() > 1  # else a count were no more than one event
    errors = x.flatten(1) - spikes @ model.dictionary.T
    assert found["SynapticOperations"] == {
        "Effective_ACs": float((spikes.sum((0, 1)) * there.sum(0)).sum()) / N,
        "Effective_MACs": float(((errors != 0).sum((0, 1)) * there.sum(1)).sum()) / N,
        "Dense": 2 * T * M * K,
    }
    decoded = model.decode(states[-1].exp()).reshape(x.shape)
    assert found["MSE"] == pytest.approx((decoded - x).square().mean().item(), rel=1e-5)


def test_lateral_circuits(model: IPVAE, x: Tensor) -> None:
    found = run(NeuroBenchVAE(model, steps=T, circuit="lateral", seed=SEED), x, [], [SynapticOperations])
    spikes, _ = sent_by_hand(model, x)
    weights = model.dictionary.T @ model.dictionary != 0
    assert found["SynapticOperations"] == {
        "Effective_ACs": float((spikes.sum((0, 1)) * weights.sum(0)).sum()) / N,
        "Effective_MACs": float(((x.flatten(1) != 0) * (model.dictionary != 0).sum(1)).sum()) / N,
        "Dense": T * K * K + M * K,
    }


def test_predictions_are_those_of_infer_in_any_batches(model: IPVAE, x: Tensor) -> None:
    result = model.infer(x, T, record=("counts",), seed=SEED)
    expected = {
        "counts": result.records["counts"].transpose(0, 1),
        "rates": result.state.log_rate.exp(),
    }
    for output, values in expected.items():
        wrapped = NeuroBenchVAE(model, steps=T, output=output, seed=SEED)  # type: ignore[arg-type]
        parts = torch.cat([wrapped(part) for part in x.split(3)])
        assert torch.allclose(parts, values, rtol=1e-5)
        assert not torch.equal(wrapped(x), values)  # of the samples that come next
        wrapped.reset()
        assert torch.allclose(wrapped(x), values, rtol=1e-5)


def test_moving_input_and_inner_updates(x: Tensor) -> None:
    model, frames = made(n_inner=2), torch.rand(4, N, M)
    expected = model.infer(frames, record=("counts",), steps=4, seed=SEED).records["counts"]
    wrapped = NeuroBenchVAE(model, seed=SEED, circuit="lateral")
    batch = frames.transpose(0, 1)  # [B, T, M], as NeuroBench has it
    assert torch.equal(wrapped(batch), expected.transpose(0, 1))
    assert wrapped.operations is not None
    assert wrapped.operations.dense == N * (4 * 2 * K * K + 4 * M * K)
    assert wrapped.operations.samples == N


def test_their_count_of_operations_is_refused(
    model: IPVAE, x: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = DataLoader(TensorDataset(x, x), batch_size=N)
    bench = Benchmark(NeuroBenchVAE(model, steps=2), loader, [], [], [[], [TheirOperations]])
    bench.run()
    said = capsys.readouterr().out
    assert "metrics: expected ipvae.interop.neurobench.SynapticOperations, found NeuroBench's own" in said


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": IGVAE(IGVAEConfig(n_inputs=4, n_latents=3))}, TypeError, "model: .* spiking .* IGVAE"),
        ({"model": nn.Linear(2, 3)}, TypeError, "model: expected a spiking model .* Linear"),
        ({"steps": 0}, ValueError, "steps: expected an int from 1"),
        ({"output": "spikes"}, ValueError, "output: expected one of counts, rates, reconstruction"),
        ({"circuit": "gram"}, ValueError, "circuit: expected one of residual, lateral"),
        ({"seed": "a"}, TypeError, "seed: expected an int"),
    ],
)  # fmt: skip
def test_bad_requests_are_named(
    model: IPVAE, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    call: dict[str, Any] = {"model": model, **change}
    with pytest.raises(error, match=f"^{message}"):
        NeuroBenchVAE(call.pop("model"), **call)


def test_other_models_have_no_operations(model: IPVAE, x: Tensor) -> None:
    with pytest.raises(TypeError, match="model: expected a NeuroBenchVAE that saw a batch, found IPVAE"):
        SynapticOperations()(model, x, (x, x))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected shape"):
        NeuroBenchVAE(model)(torch.zeros(2, 5))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("neurobench", "neurobench.models"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "ipvae.interop.neurobench")
    with pytest.raises(MissingExtra, match=r"neurobench is not installed: pip install 'ipvae-kernels\[neuro"):
        importlib.import_module("ipvae.interop.neurobench")
