"""The CUDA kernels on a GPU: float64 eager, the CPU's draws, compilers, graphs, streams, devices, sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import cuda
from ipvae_kernels.philox import Stream
from ipvae_kernels.rollout import cuda as rollout
from ipvae_kernels.rollout.op import RECORDS

Problem = Callable[..., tuple[Tensor, Any]]


def _reason() -> str | None:
    return cuda.reason()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_reason() is not None, reason=str(_reason()))]

BLOCK, CLUSTER, GRID = 1, 2, 3
LAYOUTS = [
    (0, 0, 0),
    (BLOCK, 1, 8),
    (BLOCK, 1, 16),
    (CLUSTER, 2, 8),
    (CLUSTER, 8, 16),
    (GRID, 3, 8),
    (GRID, 7, 16),
]
SIZES = [(1, 1, 1), (3, 7, 9), (17, 70, 130), (200, 256, 512)]
ESTIMATORS = [
    ("sigmoid", 0.5),
    ("linear", 0.2),
    ("cubic", 0.1),
    ("quintic", 0.3),
    ("cosine", 0.4),
    ("fini2", 1.0),
]
ESTIMATORS += [("fini3", 1.0), ("hard", 0.0)]


@pytest.fixture(params=LAYOUTS, ids=str)
def layout(request: pytest.FixtureRequest) -> Iterator[tuple[int, int, int]]:
    of: tuple[int, int, int] = request.param
    if of[0] == CLUSTER and cuda.limits(torch.device("cuda", 0)).max_cluster < of[1]:
        pytest.skip(f"the device has no clusters of {of[1]} blocks")
    with cuda.layout(*of):
        yield of


def _parameters(params: Any) -> list[Tensor]:
    return [value for value in vars(params).values() if isinstance(value, Tensor)]


def _moved(
    x: Tensor, params: Any, device: str, dtype: torch.dtype = torch.float32, grad: bool = False
) -> Any:
    tensors = [t.detach().to(device, dtype).requires_grad_(grad) for t in (x, *_parameters(params))]
    if isinstance(params, ik.GaussianParams):
        return tensors[0], ik.GaussianParams(*tensors[1:], activation=params.activation)
    return tensors[0], ik.PoissonParams(*tensors[1:])


def _rates(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 12 - 8


def _flips(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu() != theirs.cpu()).float().mean())


def _error(ours: Tensor, exact: Tensor) -> float:
    return float(
        (ours.detach().cpu().double() - exact.detach()).abs().max() / (exact.detach().abs().max() + 1e-12)
    )


# ---- pointwise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (33, 1), (7, 129), (1000, 1000)], ids=str)
def test_counts_equal_the_cpu(shape: tuple[int, int]) -> None:
    """Up to draws within a rounding of their threshold: at most one in 10^5."""
    u = _rates(*shape)
    assert _flips(ik.poisson_sample(u.cuda(), seed=3, backend="cuda"), ik.poisson_sample(u, seed=3)) <= 1e-5


@pytest.mark.parametrize("n_arrivals", [None, 3])
@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_relaxed_counts_and_gradients(estimator: str, temperature: float, n_arrivals: int | None) -> None:
    arguments: dict[str, Any] = {"temperature": temperature, "n_arrivals": n_arrivals, "seed": 2}
    results = []
    for u, backend in ((_rates(100, 301).cuda(), "cuda"), (_rates(100, 301).double(), "eager")):
        u.requires_grad_()
        z = ik.poisson_rsample(u, estimator=estimator, backend=backend, **arguments)
        results.append([part.detach().double().cpu() for part in (z, *torch.autograd.grad(z.sum(), u))])
    for ours, exact in zip(*results, strict=True):
        wrong = ~torch.isclose(ours, exact, rtol=1e-3, atol=1e-3)
        assert float(wrong.double().mean()) < 1e-3


@pytest.mark.parametrize("leak", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (300, 700)], ids=str)
def test_update(shape: tuple[int, int], leak: float) -> None:
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(s, generator=generator) for s in (shape, shape, shape, shape[1:], ())]
    results = []
    for device, dtype, backend in (("cuda", torch.float32, "cuda"), ("cpu", torch.float64, "autograd")):
        u, prior, drive, bias, lr = inputs = [t.to(device, dtype).requires_grad_() for t in draws]
        params = ik.PoissonParams(lr, lr, bias, lr, lr)
        new = ik.log_rate_update(u, prior, drive, params, leak=leak, backend=backend)
        results.append([new, *torch.autograd.grad(new.square().sum(), inputs)])
    for ours, exact in zip(*results, strict=True):
        assert _error(ours, exact) < 1e-5


# ---- rollouts --------------------------------------------------------------------------------------------

STARTS = [None, -1.8, -5.0]
"""Initial log rates of all neurons, None: those of the problem. Codes are then dense, sparse in some rows,
which are decoded event by event, and sparse in all."""


def _started(params: Any, start: float | None) -> Any:
    if start is None:
        return params
    return dataclasses.replace(params, log_rate_init=torch.full_like(params.log_rate_init, start))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_rollout_spikes_like_the_cpu(
    sizes: tuple[int, int, int], start: float | None, layout: tuple[int, int, int], problem: Problem
) -> None:
    x, params = problem(*sizes, dtype=torch.float32)
    params = _started(params, start)
    reference = ik.infer(x, params, 4, record=RECORDS, seed=3, backend="eager").records
    ours = ik.infer(*_moved(x, params, "cuda"), 4, record=RECORDS, seed=3, backend="cuda").records
    assert _flips(ours["counts"], reference["counts"]) <= 1e-3
    for name in set(RECORDS) - {"counts"}:
        close = torch.isclose(ours[name].cpu(), reference[name], rtol=1e-3, atol=1e-3)
        assert float(close.float().mean()) > 0.9


@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
def test_backward_against_float64(
    moving: bool, sizes: tuple[int, int, int], gaussian: str, layout: tuple[int, int, int], problem: Problem
) -> None:
    """The GPU's own trajectory through the backward by hand in float64: no draw takes part."""
    from ipvae_kernels.rollout import eager
    from ipvae_kernels.rollout.config import RolloutConfig
    from ipvae_kernels.rollout.problem import Inputs, Upstream

    cell = "gaussian_relu" if gaussian else "poisson"
    x, params = _moved(
        *problem(*sizes, moving=3 if moving else 0, dtype=torch.float32, gaussian=gaussian), "cuda"
    )
    *parameters, start = _parameters(params)
    start = start.unsqueeze(-2).expand(*start.shape[:-1], sizes[0], sizes[2]).contiguous()
    cfg = RolloutConfig(3, estimator="hard" if gaussian else "cubic", temperature=0.1, cell=cell)
    seed = torch.full((), 1, dtype=torch.int64, device="cuda")
    inputs = Inputs(x, *parameters, start)
    *loss, trajectory = rollout.elbo(inputs, seed, cfg)
    problem_of = (Upstream(*map(torch.randn_like, loss)), inputs, trajectory)
    ours = rollout.elbo_backward(*problem_of, cfg)
    doubled = [type(part)(*(t.cpu().double() for t in part)) for part in problem_of]
    for a, b in zip(ours, eager.elbo_backward(*doubled, cfg), strict=True):
        assert _error(a, b) < 1e-4


@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_losses_and_gradients_of_every_estimator(
    estimator: str, temperature: float, problem: Problem
) -> None:
    """Against autograd in float64; one flipped count of thousands moves a sum by less than the tolerance."""
    x, params = problem(50, 70, 130, dtype=torch.float32)
    results = []
    for device, dtype, backend in (("cuda", torch.float32, "cuda"), ("cpu", torch.float64, "autograd")):
        inputs = _moved(x, params, device, dtype, grad=True)
        result = ik.elbo(
            *inputs, 2, seed=1, estimator=estimator, temperature=temperature, beta=1.3, backend=backend
        )
        tensors = (inputs[0], *_parameters(inputs[1]))
        results.append([result.loss, *torch.autograd.grad(result.loss, tensors)])
    for ours, exact in zip(*results, strict=True):
        assert _error(ours, exact) < 2e-2


def test_two_runs_are_bit_identical(layout: tuple[int, int, int], problem: Problem) -> None:
    x, params = _moved(*problem(50, 70, 130, dtype=torch.float32), "cuda", grad=True)
    runs = []
    for _ in range(2):
        result = ik.elbo(x, params, 5, seed=1, backend="cuda")
        tensors = (x, *_parameters(params))
        runs.append([result.loss, result.recon, result.kl, *torch.autograd.grad(result.loss, tensors)])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("start", STARTS)
def test_a_cut_sequence_is_bit_identical(
    start: float | None, layout: tuple[int, int, int], problem: Problem
) -> None:
    """And so is a part of the batch in the same layout."""
    x, params = problem(50, 70, 130, dtype=torch.float32)
    x, params = _moved(x, _started(params, start), "cuda")
    whole, records = ik.infer(x, params, 7, seed=1, record=("counts",), backend="cuda")
    first, _ = ik.infer(x, params, 3, seed=1, backend="cuda")
    then, rest = ik.infer(x, params, 4, state=first, record=("counts",), backend="cuda")
    assert torch.equal(then.log_rate, whole.log_rate)
    assert torch.equal(rest["counts"], records["counts"][3:])
    if layout[0]:
        part = ik.infer(x[5:18], params, 7, seed=1, sample_offset=5, backend="cuda").state
        assert torch.equal(part.log_rate, whole.log_rate[5:18])


# ---- torch: ops, compiler, graphs, streams, devices ------------------------------------------------------


def test_opcheck(problem: Problem) -> None:
    u = _rates(4, 9).cuda().requires_grad_()
    seed = torch.full((), 1, dtype=torch.int64, device="cuda")
    temperature = torch.tensor(0.1, dtype=torch.float64)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    rsample = torch.ops.ipvae_kernels.poisson_rsample
    relaxed = (u, seed, temperature, *Stream(), "cubic", None, "cuda", True)
    torch.library.opcheck(rsample, relaxed, test_utils=tests)
    update = torch.ops.ipvae_kernels.log_rate_update
    bias, lr = torch.zeros(9, device="cuda"), torch.zeros((), device="cuda")
    plain = u.detach()
    numbers = torch.tensor([0.0, 10.0, 10.0], dtype=torch.float64)
    torch.library.opcheck(update, (*(plain,) * 3, bias, lr, numbers, "cuda", True), test_utils=tests)
    x, params = _moved(*problem(dtype=torch.float32), "cuda")
    from ipvae_kernels.rollout.config import RolloutConfig
    from ipvae_kernels.rollout.problem import constants as problem_arguments

    *parameters, start = _parameters(params)
    constants = problem_arguments(seed, RolloutConfig(2, estimator="cubic"))
    arguments = (x, *parameters, start.expand(3, -1).contiguous(), *constants)
    torch.library.opcheck(torch.ops.ipvae_kernels.elbo, (*arguments, 2, "cuda", True), test_utils=tests)
    torch.library.opcheck(
        torch.ops.ipvae_kernels.infer, (*arguments, "counts", 1, "cuda", True), test_utils=tests
    )


def test_compiles_as_one_graph(problem: Problem) -> None:
    x, params = _moved(*problem(8, 20, 40, dtype=torch.float32), "cuda", grad=True)

    others = _parameters(params)[1:]

    def loss(x: Tensor, dictionary: Tensor) -> Tensor:
        of = ik.PoissonParams(dictionary, *others)
        return ik.elbo(x, of, 3, seed=1, backend="cuda", check=False).loss

    compiled = torch.compile(loss, fullgraph=True)
    grads = [torch.autograd.grad(f(x, params.dictionary), params.dictionary)[0] for f in (loss, compiled)]
    assert torch.equal(*grads)


def test_a_graph_replays_with_new_noise(layout: tuple[int, int, int], problem: Problem) -> None:
    x, params = _moved(*problem(20, 33, 70, dtype=torch.float32), "cuda")
    seed = torch.full((), 1, dtype=torch.int64, device="cuda")

    def run() -> Tensor:
        return ik.infer(x, params, 5, seed=seed, record=("counts",), backend="cuda", check=False).records[
            "counts"
        ]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()  # warm: what is asked of the device once is not captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counts = run()
    for value in (7, 8):
        seed.fill_(value)
        graph.replay()
        replayed = counts.clone()
        assert torch.equal(replayed, run())
    assert counts.any()


def test_streams_run_side_by_side(problem: Problem) -> None:
    x, params = _moved(*problem(20, 33, 70, dtype=torch.float32), "cuda")
    expected = [ik.infer(x, params, 20, seed=i, backend="cuda").state.log_rate for i in range(4)]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(4)], []
    for i, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            results.append(ik.infer(x, params, 20, seed=i, backend="cuda", check=False).state.log_rate)
    torch.cuda.synchronize()
    for ours, reference in zip(results, expected, strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_second_device_that_is_not_current(problem: Problem) -> None:
    x, params = problem(20, 33, 70, dtype=torch.float32)
    results = [
        ik.infer(*_moved(x, params, device), 5, seed=1, backend="cuda").state.log_rate.cpu()
        for device in ("cuda:0", "cuda:1")
    ]
    assert torch.equal(*results)
    assert torch.cuda.current_device() == 0


def test_mixed_devices_are_refused() -> None:
    u = torch.zeros(2, 3)
    params = ik.PoissonParams(*[torch.zeros(())] * 2, torch.zeros(3), *[torch.zeros(())] * 2)
    with pytest.raises(ValueError, match=r"params\.log_bias|log_bias: expected device cuda:0"):
        ik.log_rate_update(u.cuda(), u.cuda(), u.cuda(), params, backend="cuda")
    with pytest.raises(ValueError, match="seed: expected device cuda:0"):
        ik.poisson_sample(u.cuda(), seed=torch.zeros((), dtype=torch.int64), backend="cuda")


# ---- sizes -----------------------------------------------------------------------------------------------


def test_large_steps_and_offsets(problem: Problem) -> None:
    x, params = problem(5, 7, 9, dtype=torch.float32)
    start = params.log_rate_init.expand(5, -1).contiguous()
    results = []
    for device in ("cpu", "cuda"):
        state = ik.State(start.to(device), step=2**32 - 4, seed=-(2**63), sample_offset=2**32 - 5)
        moved = _moved(x, params, device)
        results.append(ik.infer(*moved, 3, state=state, record=("counts",)).records["counts"])
    assert torch.equal(results[0], results[1].cpu())


def test_more_than_2_to_31_elements() -> None:
    rows, neurons = 2**15 + 1, 2**16 + 2
    if torch.cuda.mem_get_info()[0] < 3 * 4 * rows * neurons:
        pytest.skip("needs 26 GB of free device memory")
    u = torch.full((rows, neurons), -1.0, device="cuda")
    u[-1] = _rates(neurons).cuda()
    counts = ik.poisson_sample(u, seed=5, backend="cuda", check=False)[-1]
    reference = ik.poisson_sample(u[-1:].cpu(), seed=5, sample_offset=rows - 1)[0]
    assert _flips(counts, reference) <= 1e-4


def test_long_inference_takes_no_more_memory(problem: Problem) -> None:
    x, params = _moved(*problem(20, 33, 70, dtype=torch.float32), "cuda")
    peaks = []
    for steps in (16, 10_000):
        torch.cuda.reset_peak_memory_stats()
        ik.infer(x, params, steps, seed=1, backend="cuda")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= peaks[0] + 2**16
