"""The bodies of the CUDA kernels, run on the host thread by thread, against eager PyTorch and autograd."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import compiled, cuda
from ipvae_kernels.rollout import structs
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.op import RECORDS
from ipvae_kernels.rollout.problem import Inputs, Trajectory

Problem = Callable[..., tuple[Tensor, Any]]
Layout = Callable[[int, int, int], None]

BLOCK, CLUSTER, GRID = 1, 2, 3
LAYOUTS = [(BLOCK, 1, 8), (BLOCK, 1, 16), (CLUSTER, 2, 8), (CLUSTER, 4, 16), (GRID, 3, 8)]
ESTIMATORS = [
    ("hard", 0.0),
    ("sigmoid", 0.5),
    ("linear", 0.2),
    ("cubic", 0.1),
    ("quintic", 0.3),
    ("cosine", 0.4),
    ("fini2", 1.0),
    ("fini3", 1.0),
]


def _error(ours: Tensor, reference: Tensor) -> float:
    difference = (ours.double() - reference).abs().max() / (reference.abs().max() + 1e-12)
    return float(difference.detach())


# ---- pointwise -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 333), (2, 0), (0, 5)], ids=str)
@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_draws_equal_eager(estimator: str, temperature: float, shape: tuple[int, int]) -> None:
    log_rate = torch.rand(shape) * 11 - 8
    results = []
    for backend in ("cuda", "eager"):
        u = log_rate.clone().requires_grad_()
        counts = ik.poisson_rsample(
            u, estimator=estimator, temperature=temperature, backend=backend,
            seed=-5, draw="update", inner=1, sample_offset=3, neuron_offset=8,
        )  # fmt: skip
        results.append((counts.detach(), torch.autograd.grad(counts.sum(), u)[0]))
    (counts, slopes), (reference, reference_slopes) = results
    if estimator in ("hard", "fini2", "fini3"):
        assert torch.equal(counts, reference)
    torch.testing.assert_close(counts, reference, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slopes, reference_slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("emulated")
def test_draws_equal_those_of_the_cpu() -> None:
    log_rate = torch.cat([torch.rand(60, 130) * 12 - 8, torch.tensor([[20.0, 36.0]]).repeat(60, 65)])
    if compiled.reason() is not None:
        pytest.skip(str(compiled.reason()))
    for draw in ({}, {"draw": "update", "inner": 2, "step": 3}, {"draw": "loss", "neuron_offset": 2**31}):
        how: dict[str, Any] = {"seed": 7, **draw}
        ours = ik.poisson_sample(log_rate, **how, backend="cuda")
        assert torch.equal(ours, ik.poisson_sample(log_rate, **how, backend="cpu"))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("estimator", "temperature"), [("hard", 0.0), ("cubic", 0.1), ("sigmoid", 1.0)])
def test_nan_stays_nan_and_ends(estimator: str, temperature: float) -> None:
    log_rate = torch.tensor([[0.0, math.nan, 1.0, math.inf, 2.0]])
    counts = ik.poisson_rsample(
        log_rate, estimator=estimator, temperature=temperature, seed=1, backend="cuda", check=False
    )
    assert counts[0, 1].isnan()
    assert counts[0, [0, 2, 4]].isfinite().all()
    assert not counts[0, 3].isfinite()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("leak", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (130, 132), (65, 301)], ids=str)
def test_update_equals_eager(shape: tuple[int, int], leak: float) -> None:
    tensors = [torch.randn(shape) * 3 for _ in range(3)]
    tensors += [torch.randn(shape[1]) - 2, torch.tensor(0.3)]
    upstream = torch.randn(shape)
    results = []
    for backend, dtype in (("cuda", torch.float32), ("eager", torch.float32), ("autograd", torch.float64)):
        u, prior, drive, bias, lr = inputs = [t.to(dtype).requires_grad_() for t in tensors]
        params = ik.PoissonParams(lr, lr, bias, lr, lr)
        new = ik.log_rate_update(u, prior, drive, params, leak=leak, backend=backend)
        results.append([new, *torch.autograd.grad((new * upstream).sum(), inputs)])
    for ours, eager, exact in zip(*results, strict=True):
        assert _error(ours, exact) <= 4 * _error(eager, exact) + 1e-6


# ---- rollouts --------------------------------------------------------------------------------------------

MIXED = -1.8
"""An initial log rate at which some rows fire rarely enough to be decoded event by event, and others not."""


def _started(params: Any, start: float | None) -> Any:
    """The same parameters with the same initial log rate, or mean, in every neuron."""
    if start is None:
        return params
    if isinstance(params, ik.PoissonParams):
        return dataclasses.replace(params, log_rate_init=torch.full_like(params.log_rate_init, start))
    state = params.state_init.clone()
    state[0], state[1] = start, 0.0
    return dataclasses.replace(params, state_init=state)


def _parameters(params: Any) -> list[Tensor]:
    return [value for value in vars(params).values() if isinstance(value, Tensor)]


def _everything(
    x: Tensor, params: Any, steps: int, backend: str, dtype: torch.dtype, kl: str = "exact", **arguments: Any
) -> list[Tensor]:
    """State, records, losses and every gradient."""
    x, *tensors = (t.to(dtype).detach().requires_grad_() for t in (x, *_parameters(params)))
    gaussian = isinstance(params, ik.GaussianParams)
    params = (
        ik.GaussianParams(*tensors, activation=params.activation) if gaussian else ik.PoissonParams(*tensors)
    )
    names = ("n_inner", "beta_inner", "decay", "drive", "single_draw", "neuron_offset")
    shared = {key: arguments[key] for key in names if key in arguments}
    state, records = ik.infer(x, params, steps, seed=3, record=RECORDS, kl=kl, backend=backend, **shared)
    result = ik.elbo(x, params, steps, seed=3, beta=1.7, kl=kl, backend=backend, **arguments)
    weights = torch.linspace(-1, 1, result.state.log_rate.numel()).to(dtype)
    total = result.loss + (result.state.log_rate.flatten() * weights).sum()
    gradients = torch.autograd.grad(total, (x, *tensors))
    return [state.log_rate, *records.values(), result.recon, result.kl, *gradients]


_REFERENCES: dict[tuple[Any, ...], list[list[Tensor]]] = {}
"""What eager and autograd give, by what they were given: the same for every layout, and half of the time."""


def _agrees(x: Tensor, params: Any, steps: int, **arguments: Any) -> None:
    numbers = [tensor.numpy().tobytes() for tensor in (x, *_parameters(params))]
    given = (x.shape, *numbers, getattr(params, "activation", ""), steps, str(arguments))
    if given not in _REFERENCES:
        _REFERENCES[given] = [
            _everything(x, params, steps, backend, dtype, **arguments)
            for backend, dtype in (("eager", torch.float32), ("autograd", torch.float64))
        ]
    eager, exact = _REFERENCES[given]
    ours = _everything(x, params, steps, "cuda", torch.float32, **arguments)
    for a, b, c in zip(ours, eager, exact, strict=True):
        assert a.shape == c.shape
        assert _error(a, c) <= 4 * _error(b, c) + 4e-6


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("layout_of", LAYOUTS, ids=str)
@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        (1, {}),
        (1, {"neuron_offset": 8}),
        (3, {}),
        (3, {"single_draw": True}),
        (2, {"n_inner": 3, "beta_inner": 0.6}),
    ],
    ids=str,
)
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
def test_rollouts_are_as_accurate_as_eager(
    moving: bool,
    steps: int,
    arguments: dict[str, Any],
    gaussian: str,
    layout_of: tuple[int, int, int],
    layout: Layout,
    problem: Problem,
) -> None:
    layout(*layout_of)
    x, params = problem(11, 33, 70, moving=steps if moving else 0, dtype=torch.float32, gaussian=gaussian)
    _agrees(x, params, steps, **arguments)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("layout_of", [(BLOCK, 1, 16), (CLUSTER, 4, 8), (GRID, 3, 8)], ids=str)
@pytest.mark.parametrize("arguments", [{"decay": 0.3}, {"drive": "expected", "n_inner": 2}], ids=str)
def test_drives_and_decay(
    arguments: dict[str, Any], layout_of: tuple[int, int, int], layout: Layout, problem: Problem
) -> None:
    layout(*layout_of)
    x, params = problem(11, 33, 70, dtype=torch.float32)
    _agrees(x, params, 2, estimator="fini2", **arguments)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("batch", "pixels", "neurons"), [(1, 1, 1), (17, 70, 36), (8, 32, 129)])
@pytest.mark.parametrize("layout_of", [(BLOCK, 1, 8), (CLUSTER, 4, 8), (GRID, 3, 16)], ids=str)
def test_awkward_sizes(
    layout_of: tuple[int, int, int], batch: int, pixels: int, neurons: int, layout: Layout, problem: Problem
) -> None:
    layout(*layout_of)
    x, params = problem(batch, pixels, neurons, dtype=torch.float32)
    _agrees(x, params, 2, kl="released")


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("estimator", "temperature"), ESTIMATORS)
def test_estimators(estimator: str, temperature: float, layout: Layout, problem: Problem) -> None:
    layout(CLUSTER, 2, 8)
    x, params = problem(5, 20, 40, dtype=torch.float32)
    _agrees(x, params, 3, estimator=estimator, temperature=temperature)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("gaussian", ["", "identity"])
def test_the_plan_of_the_device_serves(gaussian: str, problem: Problem) -> None:
    x, params = problem(20, 65, 130, dtype=torch.float32, gaussian=gaussian)
    _agrees(x, params, 2)


@pytest.mark.parametrize("kind_of", [(BLOCK, 1), (CLUSTER, 2), (GRID, 2)], ids=str)
def test_nothing_fits_in_shared_memory(
    kind_of: tuple[int, int],
    emulated: ModuleType,
    limits: Callable[..., Any],
    layout: Layout,
    problem: Problem,
) -> None:
    layout(*kind_of, 8)
    x, params = problem(11, 33, 70, dtype=torch.float32)
    with cuda.emulation(emulated, limits(shared=1024)):
        _agrees(x, params, 2)


@pytest.mark.parametrize(("gaussian", "start"), [("", None), ("", MIXED), ("relu", None), ("relu", -1.0)])
def test_results_do_not_depend_on_the_order_of_threads(
    gaussian: str, start: float | None, emulated: ModuleType, layout: Layout, problem: Problem
) -> None:
    """A missing barrier would show: threads run until they wait, in three orders."""
    x, params = problem(9, 40, 70, dtype=torch.float32, gaussian=gaussian)
    params = _started(params, start)
    for layout_of in LAYOUTS:
        layout(*layout_of)
        results = []
        for order in range(3):
            emulated.set_order(order)
            results.append(_everything(x, params, 2, "cuda", torch.float32))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("layout_of", [(BLOCK, 1, 8), (CLUSTER, 4, 8)], ids=str)
@pytest.mark.parametrize("start", [None, MIXED, -4.0])
@pytest.mark.parametrize("single_draw", [False, True])
def test_splits_are_bit_identical(
    single_draw: bool,
    start: float | None,
    layout_of: tuple[int, int, int],
    layout: Layout,
    problem: Problem,
) -> None:
    """Of the batch, and of the sequence; and it does not matter what is recorded."""
    layout(*layout_of)
    x, params = problem(19, 33, 130, dtype=torch.float32)
    params = _started(params, start)
    record = ("log_rate", "recon", "kl")
    shared = {"single_draw": single_draw, "backend": "cuda"}
    state, whole = ik.infer(x, params, 4, seed=1, record=record, **shared)
    assert torch.equal(ik.infer(x, params, 4, seed=1, **shared).state.log_rate, state.log_rate)
    for begin, end in [(0, 1), (1, 12), (12, 19)]:
        part = ik.infer(x[begin:end], params, 4, seed=1, record=record, sample_offset=begin, **shared).records
        for name in record:
            assert torch.equal(part[name], whole[name][:, begin:end])
    first, _ = ik.infer(x, params, 1, seed=1, **shared)
    then, rest = ik.infer(x, params, 3, state=first, record=record, record_every=2, **shared)
    assert torch.equal(then.log_rate, state.log_rate)
    for name in record:
        assert torch.equal(rest[name], whole[name][[1, 3]])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("log_rate", [-1.0, 3.0, 8.5])  # the last one has counts above 2,048
def test_products_have_the_error_of_float32(log_rate: float, problem: Problem) -> None:
    x, params = problem(20, 70, 130, dtype=torch.float32)
    params = dataclasses.replace(params, log_rate_init=torch.full((130,), log_rate))
    ours = ik.infer(x, params, 1, seed=1, record=("counts", "reconstruction"), backend="cuda").records
    counts, dictionary = ours["counts"][0], params.dictionary
    # The counts come after one update, which moves them apart: some are large, most are not.
    exact = counts.double() @ dictionary.double().T
    float32 = (counts @ dictionary.T - exact).abs().mean()
    assert (ours["reconstruction"][0] - exact).abs().mean() < 2 * float32 + 1e-7


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("layout_of", LAYOUTS, ids=str)
@pytest.mark.parametrize(("gaussian", "start"), [("", MIXED), ("", -3.0), ("", -6.0), ("relu", -2.0)])
def test_sparse_codes_are_as_accurate_as_eager(
    gaussian: str, start: float, layout_of: tuple[int, int, int], layout: Layout, problem: Problem
) -> None:
    layout(*layout_of)
    x, params = problem(11, 33, 150, dtype=torch.float32, gaussian=gaussian)
    _agrees(x, _started(params, start), 3, **({} if gaussian else {"estimator": "fini2"}))


def _event_by_event(counts: Tensor, dictionary: Tensor, size: int) -> Tensor:
    """The sum of a row as the kernel forms it without tensor cores: in order, and slice by slice."""
    total = torch.zeros(len(counts), len(dictionary))
    for part, phi in zip(counts.split(size, 1), dictionary.split(size, 1), strict=True):
        share = torch.zeros_like(total)
        for n in range(phi.shape[1]):
            share += part[:, n, None] * phi[:, n]
        total += share
    return total


@pytest.mark.parametrize(("shared", "cost"), [(1_000_000, 8), (1024, 128)], ids=["resident", "streamed"])
@pytest.mark.parametrize("layout_of", LAYOUTS, ids=str)
def test_rows_of_few_spikes_are_summed_event_by_event(
    layout_of: tuple[int, int, int],
    shared: int,
    cost: int,
    emulated: ModuleType,
    limits: Callable[..., Any],
    layout: Layout,
    problem: Problem,
) -> None:
    """Rows of one tile have no spike in a slice, a few, or one of each neuron: up to a share of the slice the
    sum is that of the events, to the bit; beyond it, that of the tensor cores."""
    layout(*layout_of)
    x, params = problem(19, 150, 300, dtype=torch.float32)
    params = dataclasses.replace(params, log_lr=torch.tensor(-40.0))  # states stay
    slice_ = -(-300 // layout_of[1] // 32) * 32
    limit = slice_ // cost
    log_rate = torch.full((19, 300), -8.0)  # the floor: one neuron in 3,000 fires all the same
    choices = [0, 1, limit, limit + 1, 33, 300]
    for row in range(19):
        for begin in range(0, 300, slice_):
            width = min(slice_, 300 - begin)
            log_rate[row, begin + torch.randperm(width)[: choices[row % len(choices)]]] = 3.0
    start = ik.State(log_rate, seed=4)
    with cuda.emulation(emulated, limits(shared=shared)):
        records = ik.infer(
            x, params, 1, state=start, record=("counts", "reconstruction"), backend="cuda"
        ).records
    counts, ours = records["counts"][0], records["reconstruction"][0]
    exact = counts.double() @ params.dictionary.double().T
    float32 = (counts @ params.dictionary.T - exact).abs().mean()
    assert (ours - exact).abs().mean() < 2 * float32 + 1e-7
    events = _event_by_event(counts, params.dictionary, slice_)
    spikes = torch.stack([(part != 0).sum(1) for part in counts.split(slice_, 1)]).amax(0).tolist()
    assert {0, limit, limit + 1} <= set(spikes)
    for row, most in enumerate(spikes):
        assert torch.equal(ours[row], events[row]) == (most <= limit), (row, most)


def test_reads_of_the_resident_dictionary_meet_in_no_bank(emulated_module: ModuleType) -> None:
    """32 lanes read 32 banks: eight pixels by four neurons, four by eight, and 32 by one."""
    for pixels, neurons in [(8, 4), (4, 8), (32, 1)]:
        for pixel in range(0, 64, pixels):
            for neuron in range(0, 64, neurons):
                banks = {
                    emulated_module.swizzled(p, n) % 32
                    for p in range(pixel, pixel + pixels)
                    for n in range(neuron, neuron + neurons)
                }
                assert len(banks) == 32


@pytest.mark.usefixtures("emulated")
def test_segments_of_the_trajectory(layout: Layout, problem: Problem) -> None:
    layout(CLUSTER, 2, 8)
    x, params = problem(5, 20, 40, dtype=torch.float32, grad=True)
    tensors = (x, *_parameters(params))
    whole, segments = (
        torch.autograd.grad(
            ik.elbo(x, params, 5, seed=1, checkpoint=checkpoint, backend="cuda").loss, tensors
        )
        for checkpoint in (5, 2)
    )
    for a, b in zip(segments, whole, strict=True):
        assert _error(a, b.double()) < 1e-5


@pytest.mark.usefixtures("emulated")
def test_an_empty_batch(problem: Problem) -> None:
    x, params = problem(2, 7, 9, dtype=torch.float32, grad=True)
    result = ik.elbo(x[:0], params, 2, seed=1, backend="cuda")
    gradients = torch.autograd.grad(result.loss, _parameters(params), allow_unused=True)
    assert all(not gradient.any() for gradient in gradients if gradient is not None)
    assert ik.infer(x[:0].detach(), params, 2, seed=1, record=("counts",), backend="cuda").records[
        "counts"
    ].shape == (2, 0, 9)


# ---- sizes beyond 2^31 -----------------------------------------------------------------------------------


def _sparse(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Float32 in a file whose untouched pages take no room."""
    return np.memmap(path, dtype=np.float32, mode="w+", shape=shape)


def test_elements_beyond_2_to_31(emulated: ModuleType, tmp_path: Path) -> None:
    rows, neurons = 2**16 + 1, 2**16 + 2  # 4.3 billion, neurons not a multiple of 4
    u, counts = _sparse(tmp_path / "u", (rows, neurons)), _sparse(tmp_path / "counts", (rows, neurons))
    last = torch.rand(neurons) * 4 - 2
    u[-1] = last.numpy()
    args = emulated.PoissonArgs()
    args.n_rows, args.n_latents, args.kind, args.step = rows, neurons, 2, 0
    args.log_rate, args.counts = u.ctypes.data, counts.ctypes.data
    quads = -(-neurons // 4)
    emulated.poisson_quads(args, 5, (rows - 1) * quads, rows * quads)
    expected = ik.poisson_sample(last[None], seed=5, sample_offset=rows - 1, backend="eager")[0]
    assert torch.equal(torch.from_numpy(np.array(counts[-1])), expected)
    assert not counts[-2, -8:].any()

    bias, lr = torch.zeros(neurons), torch.zeros(())
    update = emulated.UpdateArgs()
    update.n_rows, update.n_latents, update.clamp_u, update.clamp_du = rows, neurons, 10.0, 10.0
    update.log_rate = update.log_rate_prior = update.drive = u.ctypes.data
    update.inhibition, update.out = bias.data_ptr(), counts.ctypes.data
    emulated.update_quads(update, lr.data_ptr(), (rows - 1) * quads, rows * quads)
    params = ik.PoissonParams(lr, lr, torch.full((neurons,), -math.inf), lr, lr)
    new = ik.log_rate_update(last[None], last[None], last[None], params, backend="eager", check=False)[0]
    torch.testing.assert_close(torch.from_numpy(np.array(counts[-1])), new, rtol=1e-5, atol=1e-5)


def _last_tile(
    emulated: ModuleType,
    limits: Any,
    folder: Path,
    rows: int,
    x: Tensor,
    params: Any,
    cfg: RolloutConfig,
) -> dict[str, Tensor]:
    """Forward, with all that it can write, and backward of the last tile of a batch whose last rows are x.

    Returns those rows of every array that was written. Nothing else of the batch takes any room.
    """
    folder.mkdir()
    last, (pixels, neurons) = x.shape[-2], params.dictionary.shape
    start = params.state_init if cfg.cell != "poisson" else params.log_rate_init
    state = start.view(-1, 1, neurons).expand(-1, last, -1)
    written: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}

    def array(name: str, *lead: int, width: int, fill: Tensor | None = None) -> Tensor:
        tensor = torch.from_numpy(_sparse(folder / name, (*lead, rows, width)))
        if fill is None:
            written[name] = tensor
        else:
            tensor[..., -last:, :] = fill
            read[name] = tensor
        return tensor

    updates, draws = cfg.steps * cfg.n_inner, (cfg.steps, cfg.n_inner + 1)
    sizes = {"pixels": pixels, "neurons": neurons, "sums": 1}
    records = {
        "recon": "sums",
        "kl_out": "sums",
        "squared_error": "sums",
        "spikes": "sums",
        "zeros": "sums",
        "counts": "neurons",
        "reconstruction": "pixels",
    }
    trajectory = Trajectory(
        path=array("path", updates + 1, len(state), width=neurons),
        counts=array("drawn", *draws, width=neurons),
        slopes=array("slopes", *draws, width=neurons),
        errors=array("errors", *draws, width=pixels),
        drives=array("drives", updates, width=neurons),
    )
    inputs = Inputs(
        x=array("x", *x.shape[:-2], width=pixels, fill=x),
        dictionary=params.dictionary,
        log_sigma=params.log_sigma,
        log_bias=params.log_bias,
        log_lr=params.log_lr,
        log_rate=array("log_rate", len(state), width=neurons, fill=state),
    )
    args = structs.rollout(emulated, inputs, cfg)
    structs.trajectory(args, trajectory)
    compiled.fill(
        args,
        record_every=1,
        log_rate_out=array("log_rate_out", len(state), width=neurons),
        log_rates=array("log_rates", cfg.steps, len(state), width=neurons),
        **{name: array(name, cfg.steps, width=sizes[size]) for name, size in records.items()},
    )
    parameters = structs.parameters(emulated, inputs)
    with cuda.emulation(emulated, limits):
        forward, plan = (cuda.plan(args, backward, x.device) for backward in (False, True))
    emulated.rollout_last_tile(args, parameters, 3, forward)

    upstream = torch.linspace(-1, 1, cfg.steps * last).view(cfg.steps, last, 1)
    partial = _sparse(folder / "partial", (plan.tiles, pixels + neurons + len(state) * plan.team))
    grad = compiled.fill(
        emulated.RolloutGradArgs(),
        grad_recon=array("grad_recon", cfg.steps, width=1, fill=upstream),
        grad_kl=array("grad_kl", cfg.steps, width=1, fill=-upstream),
        grad_log_rate=array("grad_log_rate", len(state), width=neurons, fill=state.cos()),
        grad_log_rate_in=array("grad_log_rate_in", len(state), width=neurons),
        grad_x=array("grad_x", *x.shape[:-2], width=pixels),
        grad_errors=array("grad_errors", *draws, width=pixels),
        grad_drives=array("grad_drives", updates, width=neurons),
        partial=torch.from_numpy(partial),
    )
    grad.forward = args
    emulated.rollout_grad_last_tile(grad, parameters, plan)
    if rows > last:  # the row before the tile, of another tile
        assert not any(tensor[..., -last - 1, :].any() for tensor in written.values())
    return {name: tensor[..., -last:, :].clone() for name, tensor in written.items()} | {
        "partial": torch.tensor(partial[-1])
    }


@pytest.mark.parametrize(
    ("layout_of", "gaussian", "moving", "shared", "arguments"),
    [
        ((BLOCK, 1, 8), "", False, 232_448, {"estimator": "fini2"}),
        ((CLUSTER, 2, 8), "", True, 232_448, {"estimator": "cubic", "temperature": 0.3}),
        ((CLUSTER, 2, 16), "relu", False, 232_448, {}),
        ((GRID, 2, 8), "relu", True, 1024, {"n_inner": 2, "beta_inner": 0.6}),
        ((GRID, 2, 16), "", False, 1024, {"estimator": "fini3", "single_draw": True}),
    ],
    ids=str,
)
def test_rows_beyond_2_to_31_of_a_rollout(
    layout_of: tuple[int, int, int],
    gaussian: str,
    moving: bool,
    shared: int,
    arguments: dict[str, Any],
    emulated: ModuleType,
    limits: Callable[..., Any],
    layout: Layout,
    problem: Problem,
    tmp_path: Path,
) -> None:
    """2^31 rows lie before the tile, some 2^36 elements of K or M, as many of a step before the next."""
    layout(*layout_of)
    x, params = problem(3, 33, 37, moving=2 if moving else 0, dtype=torch.float32, gaussian=gaussian)
    cfg = RolloutConfig(2, cell="gaussian_relu" if gaussian else "poisson", **arguments)
    far, near = (
        _last_tile(emulated, limits(shared=shared), tmp_path / f"{rows}", rows, x, params, c)
        for rows, c in [(2**31 + 3, cfg), (3, cfg._replace(sample_offset=2**31))]
    )
    for name, reference in near.items():
        assert reference.any(), name
        assert torch.equal(far[name], reference), name
