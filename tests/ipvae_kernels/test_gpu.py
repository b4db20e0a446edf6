"""The Triton backend on a GPU: float64 eager, the CPU's spikes, graphs, determinism, large offsets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import cuda
from ipvae_kernels.backend.triton import tuning
from ipvae_kernels.philox import Stream
from ipvae_kernels.poisson.estimators import ESTIMATORS
from ipvae_kernels.rollout import triton as rollout
from ipvae_kernels.rollout.triton import resident_kernels, stepped_kernels
from ipvae_kernels.update import triton as triton_update

Problem = Callable[..., tuple[Tensor, Any]]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ik.backends()["triton"] != "available" or not torch.cuda.is_available(),
        reason=f"triton on a GPU: {ik.backends()['triton']}",
    ),
]
DIFFERENTIABLE = [name for name in ESTIMATORS if name not in ("gumbel", "hard")]
DRIVERS = ["resident", "stepped"]
SIZES = [(1, 1, 1), (3, 7, 9), (17, 70, 130), (200, 256, 512)]
KINDS = {
    "poisson": "",
    "gaussian": "identity",
    "gaussian_relu": "relu",
}  # of ``problem(gaussian=...)``, by cell


def by_sizes(sizes: object) -> str:
    return "x".join(map(str, sizes)) if isinstance(sizes, tuple) else str(sizes)


@pytest.fixture(autouse=True)
def _untuned() -> Iterator[None]:
    """The default configuration of every kernel: compiling all three for every test takes minutes."""
    with contextlib.ExitStack() as stack:
        for module in (resident_kernels, stepped_kernels, triton_update):
            for kernel in tuning.tuned(module).values():
                stack.enter_context(tuning.only(kernel, kernel.configs[0]))
        yield


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    with rollout.driver(name):
        yield name


def on_gpu(x: Tensor, params: Any, grad: bool = False) -> tuple[Tensor, Any]:
    moved = {
        name: value.detach().cuda().requires_grad_(grad)
        for name, value in vars(params).items()
        if isinstance(value, Tensor)
    }
    return x.detach().cuda().requires_grad_(grad), replace(params, **moved)


def leaves(x: Tensor, params: Any) -> list[Tensor]:
    return [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]


def rates(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).mul(1.5).add(1.0)


def flips(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() != theirs.cpu()).float().mean())


def test_spikes_equal_the_cpu() -> None:
    """Up to draws within a rounding of their threshold: at most one in 10^5. Here the kernel is tuned."""
    u = rates(1000, 1000)
    counts = ik.poisson_sample(u.cuda(), seed=3, backend="triton")
    assert flips(counts, ik.poisson_sample(u, seed=3)) <= 1e-5


@pytest.mark.parametrize("n_arrivals", [None, 3])
@pytest.mark.parametrize("estimator", DIFFERENTIABLE)
def test_relaxed_counts_and_gradients(estimator: str, n_arrivals: int | None) -> None:
    u = rates(100, 300)
    arguments: dict[str, Any] = {"estimator": estimator, "n_arrivals": n_arrivals, "seed": 2}
    results = []
    for tensor, backend in ((u.cuda(), "triton"), (u.double(), "eager")):
        tensor.requires_grad_()
        z = ik.poisson_rsample(tensor, backend=backend, **arguments)
        results.append([part.detach().double().cpu() for part in (z, *torch.autograd.grad(z.sum(), tensor))])
    for ours, exact in zip(*results, strict=True):
        wrong = ~torch.isclose(ours, exact, rtol=1e-3, atol=1e-3)
        assert float(wrong.double().mean()) < 1e-3


@pytest.mark.parametrize("leak", [0.0, 0.7])
def test_update(leak: float) -> None:
    results = []
    for device, dtype, backend in (("cuda", torch.float32, "triton"), ("cpu", torch.float64, "eager")):
        generator = torch.Generator().manual_seed(1)
        shapes = ((300, 700),) * 3 + ((700,), ())
        draws = [torch.randn(s, generator=generator) for s in shapes]
        tensors = [
            t.to(device, dtype).requires_grad_()
            for t in (draws[0], draws[1], 9 * draws[2], draws[3], draws[4])
        ]
        params = ik.PoissonParams(tensors[3], tensors[3], tensors[3], tensors[4], tensors[3])
        new = ik.log_rate_update(*tensors[:3], params, leak=leak, backend=backend)
        gradients = torch.autograd.grad(new.square().sum(), tensors)
        results.append([part.detach().double().cpu() for part in (new, *gradients)])
    for ours, exact in zip(*results, strict=True):
        assert float((ours - exact).abs().max()) <= 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("sizes", SIZES, ids=by_sizes)
def test_a_rollout_spikes_like_the_cpu(sizes: tuple[int, int, int], driver: str, problem: Problem) -> None:
    x, params = problem(*sizes, dtype=torch.float32)
    reference = ik.infer(x, params, 4, record=("counts", "recon", "kl"), seed=3, backend="eager")
    result = ik.infer(*on_gpu(x, params), 4, record=("counts", "recon", "kl"), seed=3, backend="triton")
    assert flips(result.records["counts"], reference.records["counts"]) <= 1e-3
    for name in ("recon", "kl"):
        close = torch.isclose(result.records[name].cpu(), reference.records[name], rtol=1e-3, atol=1e-3)
        assert float(close.float().mean()) > 0.9


@pytest.mark.parametrize("moving", [0, 4], ids=["static", "moving"])
@pytest.mark.parametrize("gaussian", ["identity", "relu"])
@pytest.mark.parametrize("sizes", SIZES, ids=by_sizes)
def test_a_gaussian_rollout_is_that_of_the_cpu(
    sizes: tuple[int, int, int], gaussian: str, moving: int, driver: str, problem: Problem
) -> None:
    x, params = problem(*sizes, moving=moving, dtype=torch.float32, gaussian=gaussian)
    record = ("log_rate", "counts", "recon", "kl")
    reference = ik.infer(x, params, 4, record=record, seed=3, backend="eager")
    result = ik.infer(*on_gpu(x, params), 4, record=record, seed=3, backend="triton")
    for name in record:
        torch.testing.assert_close(
            result.records[name].cpu(), reference.records[name], rtol=1e-3, atol=1e-3, msg=name
        )


@pytest.mark.parametrize(
    "config",
    [
        {"estimator": "cubic"},
        {"estimator": "fini2", "n_inner": 2, "beta_inner": 0.6},
        {"cell": "gaussian"},
        {"cell": "gaussian_relu", "n_inner": 2, "beta_inner": 0.6},
    ],
    ids=str,
)
@pytest.mark.parametrize("sizes", SIZES, ids=by_sizes)
def test_backward_against_float64(
    sizes: tuple[int, int, int], config: dict[str, Any], driver: str, problem: Problem
) -> None:
    """The same trajectory through both backwards: no draw takes part."""
    from ipvae_kernels.rollout import eager
    from ipvae_kernels.rollout.config import RolloutConfig
    from ipvae_kernels.rollout.problem import Inputs, Upstream

    cfg = RolloutConfig(**{"steps": 4, "temperature": 0.1, "clamp_u": 4.0, **config})
    x, params = on_gpu(*problem(*sizes, dtype=torch.float32, gaussian=KINDS[cfg.cell]))
    *tensors, start = leaves(x, params)
    start = start.unsqueeze(-2).repeat_interleave(sizes[0], -2)
    inputs = Inputs(*tensors, start)
    *loss, trajectory = rollout.elbo(inputs, torch.tensor(4, device="cuda"), cfg)
    problem_of = (Upstream(*map(torch.randn_like, loss)), inputs, trajectory)
    ours = rollout.elbo_backward(*problem_of, cfg)
    exact = eager.elbo_backward(*(type(part)(*(t.double() for t in part)) for part in problem_of), cfg)
    for a, b in zip(ours, exact, strict=True):
        assert float((a.double() - b).abs().max()) <= 2e-5 * float(b.abs().max()) + 1e-6


def test_opcheck(problem: Problem, driver: str) -> None:
    x, params = on_gpu(*problem(2, dtype=torch.float32))
    seed = torch.tensor(3, device="cuda")
    u = torch.zeros(4, 5, device="cuda")
    operators = torch.ops.ipvae_kernels
    torch.library.opcheck(operators.poisson_sample.default, (u, seed, *Stream(), "triton", True))
    temperature = torch.tensor(0.1, dtype=torch.float64)
    relaxed = (u.clone().requires_grad_(), seed, temperature, *Stream(), "cubic", None, "triton", True)
    torch.library.opcheck(operators.poisson_rsample.default, relaxed)
    from ipvae_kernels.rollout.config import RolloutConfig
    from ipvae_kernels.rollout.problem import constants as problem_arguments

    constants = problem_arguments(seed, RolloutConfig(2, estimator="cubic", temperature=0.3))
    start = torch.zeros(2, 9, device="cuda")
    arguments = (*leaves(x, params)[:5], start, *constants, 2, "triton", True)
    torch.library.opcheck(operators.elbo.default, arguments)


def test_compile_fullgraph(problem: Problem, driver: str) -> None:
    x, params = on_gpu(*problem(5, dtype=torch.float32), grad=True)

    def loss(x: Tensor, params: ik.PoissonParams, seed: Tensor) -> Tensor:
        return ik.elbo(x, params, 3, seed=seed, backend="triton", check=False).loss

    seed = torch.tensor(5, device="cuda")
    ours = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, params, seed), leaves(x, params))
    theirs = torch.autograd.grad(loss(x, params, seed), leaves(x, params))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", ["call", "sizes"])
def test_graph_replay_takes_a_new_seed(by: str, problem: Problem, driver: str) -> None:
    x, params = on_gpu(*problem(17, 20, 70, dtype=torch.float32))
    seed = torch.tensor(1, device="cuda")

    def run() -> Tensor:
        return ik.infer(x, params, 3, record=("counts",), seed=seed, backend="triton").records["counts"]

    # Compiles and tunes, which a capture cannot.
    if by == "call":
        ik.warmup(run)
    else:
        ik.warmup([(17, 70, 20)], record=("counts",), backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counts = run()
    for value in (1, 2):
        seed.fill_(value)
        graph.replay()
        assert torch.equal(counts, run())
    assert not torch.equal(counts, ik.infer(x, params, 3, record=("counts",), seed=1).records["counts"])


def test_two_runs_are_bit_identical(problem: Problem, driver: str) -> None:
    x, params = on_gpu(*problem(200, 100, 300, dtype=torch.float32), grad=True)
    runs = [
        torch.autograd.grad(ik.elbo(x, params, 8, seed=1, backend="triton").loss, leaves(x, params))
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_time_and_batch_splits_are_bit_identical(problem: Problem, driver: str) -> None:
    x, params = on_gpu(*problem(40, 30, 100, dtype=torch.float32))
    whole = ik.infer(x, params, 6, seed=1, backend="triton").state.log_rate
    first = ik.infer(x, params, 2, seed=1, backend="triton")
    assert torch.equal(ik.infer(x, params, 4, state=first.state, backend="triton").state.log_rate, whole)
    parts = [
        ik.infer(x[a:b], params, 6, seed=1, sample_offset=a, backend="triton").state.log_rate
        for a, b in ((0, 3), (3, 40))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)  # tiles may be tuned by rows


def test_offsets_beyond_32_bits() -> None:
    rows, neurons = 2**20 + 3, 2049  # 2.15e9 elements, 8.6 GB each
    free, _ = torch.cuda.mem_get_info()
    if free < 20e9:
        pytest.skip("needs 20 GB")
    u = torch.zeros(rows, neurons, device="cuda")
    counts = ik.poisson_sample(u, seed=3, backend="triton", check=False)
    expected = ik.poisson_sample(torch.zeros(3, neurons), seed=3, sample_offset=rows - 3)
    assert torch.equal(counts[-3:].cpu(), expected)


@pytest.mark.skipif(cuda.reason() is None, reason="auto takes the compiled CUDA kernels first")
def test_auto_takes_triton_on_a_gpu(problem: Problem) -> None:
    x, params = on_gpu(*problem(3, dtype=torch.float32))
    ours = ik.infer(x, params, 2, seed=1)
    assert torch.equal(ours.state.log_rate, ik.infer(x, params, 2, seed=1, backend="triton").state.log_rate)


def test_cpu_tensors_are_refused() -> None:
    with pytest.raises(ik.BackendError, match=r"on NVIDIA GPUs, the tensors are on cpu; move them"):
        ik.poisson_sample(torch.zeros(3), backend="triton")
