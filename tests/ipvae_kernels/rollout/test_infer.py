"""infer: records, continuation, splits, single draw, errors, torch integration; Poisson and Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import triton as triton_backend
from ipvae_kernels.poisson import noise
from ipvae_kernels.rollout import eager
from ipvae_kernels.rollout.op import RECORDS
from ipvae_kernels.rollout.problem import constants as problem_arguments

Problem = Callable[..., tuple[Tensor, Any]]


@pytest.fixture(
    params=[
        *(
            f"{kind} {name}"
            for kind in ("poisson", "identity", "relu")
            for name in ("eager", "cpu", "triton")
        ),
        "relu autograd",
    ]
)
def model(request: pytest.FixtureRequest) -> tuple[str, str, torch.dtype]:
    """A kind of model (for ``problem(gaussian=...)``), a backend that serves it, and a dtype."""
    kind, backend = request.param.split()
    if backend == "triton" and not triton_backend.interpreted():
        pytest.skip("served by the interpreter in a process of its own")
    if ik.backends()[backend] != "available":
        pytest.skip(ik.backends()[backend])
    dtype = torch.float32 if backend in ("cpu", "triton") else torch.float64
    return "" if kind == "poisson" else kind, backend, dtype


@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize("kl", ["exact", "released"])
def test_records(kl: str, moving: bool, model: tuple[str, str, torch.dtype], problem: Problem) -> None:
    kind, backend, dtype = model
    steps = 4
    x, params = problem(batch=5, moving=steps if moving else 0, gaussian=kind, dtype=dtype)
    state, records = ik.infer(x, params, steps, record=RECORDS, kl=kl, seed=3, backend=backend)
    lead = (2,) if kind else ()
    assert list(records) == list(RECORDS)
    shapes = {"log_rate": (*lead, 5, 9), "counts": (5, 9), "reconstruction": (5, 7)}
    for name, record in records.items():
        assert record.shape == (steps, *shapes.get(name, (5,))), name
        assert record.dtype == dtype
    u, z, mean = records["log_rate"], records["counts"], records["reconstruction"]
    assert torch.equal(u[-1], state.log_rate)
    same = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(mean, z @ params.dictionary.T, **same)
    error = x - mean
    torch.testing.assert_close(records["squared_error"], error.square().sum(-1), **same)
    torch.testing.assert_close(records["spikes"], z.sum(-1), **same)
    torch.testing.assert_close(records["zeros"], (z == 0).to(dtype).mean(-1), **same)
    normal = torch.distributions.Normal(mean, params.log_sigma.exp())
    frames = x if moving else x.expand(steps, *x.shape)
    torch.testing.assert_close(records["recon"], -normal.log_prob(frames).sum(-1), **same)
    first = (params.state_init if kind else params.log_rate_init).unsqueeze(-2).expand(*lead, 5, 9)
    prior = torch.cat([first[None], u[:-1]])
    torch.testing.assert_close(records["kl"], divergence(u, prior, kl, bool(kind)), **same)
    if not kind:
        assert torch.equal(z, z.round())


def divergence(state: Tensor, prior: Tensor, kl: str, gaussian: bool) -> Tensor:
    """KL by torch.distributions."""
    distributions = torch.distributions
    if gaussian:
        p, q = (distributions.Normal(s[:, 0], s[:, 1].exp()) for s in (state, prior))
        return distributions.kl_divergence(p, q).sum(-1)
    exact = distributions.kl_divergence(
        distributions.Poisson(state.exp()), distributions.Poisson(prior.exp())
    )
    return (exact if kl == "exact" else exact * torch.exp(state - prior)).sum(-1)


def test_records_come_in_the_order_asked_for(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    every = ik.infer(x, params, 3, record=RECORDS, seed=3, backend=backend).records
    some = ik.infer(x, params, 3, record=["zeros", "counts"], seed=3, backend=backend).records
    assert list(some) == ["zeros", "counts"]
    assert all(torch.equal(some[name], every[name]) for name in some)


@pytest.mark.parametrize("every", [1, 2, 3, 5, 20])
def test_record_every_counts_global_steps(
    every: int, model: tuple[str, str, torch.dtype], problem: Problem
) -> None:
    kind, backend, dtype = model
    x, params = problem(gaussian=kind, dtype=dtype)
    whole = ik.infer(x, params, 9, record=["kl", "recon"], seed=3, backend=backend).records
    first = ik.infer(x, params, 4, record=["kl", "recon"], record_every=every, seed=3, backend=backend)
    second = ik.infer(
        x, params, 5, state=first.state, record=["kl", "recon"], record_every=every, backend=backend
    )
    for name, record in whole.items():
        parts = torch.cat([first.records[name], second.records[name]])
        assert torch.equal(parts, record[every - 1 :: every]), name


@pytest.mark.parametrize("single_draw", [False, True])
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
def test_time_splits_are_bit_identical(
    moving: bool, single_draw: bool, model: tuple[str, str, torch.dtype], problem: Problem
) -> None:
    kind, backend, dtype = model
    x, params = problem(moving=7 if moving else 0, gaussian=kind, dtype=dtype)
    arguments = {"record": RECORDS, "single_draw": single_draw, "backend": backend}
    whole = ik.infer(x, params, 7, seed=3, **arguments)
    state, parts = (
        ik.State(
            (params.state_init if kind else params.log_rate_init)
            .unsqueeze(-2)
            .expand_as(whole.state.log_rate),
            0,
            3,
        ),
        [],
    )
    for begin, end in [(0, 1), (1, 4), (4, 7)]:
        part = ik.infer(x[begin:end] if moving else x, params, end - begin, state=state, **arguments)
        state = part.state
        parts.append(part.records)
    assert torch.equal(state.log_rate, whole.state.log_rate)
    assert (state.step, int(state.seed), state.sample_offset) == (7, 3, 0)
    for name in RECORDS:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole.records[name]), name


def test_batch_splits(model: tuple[str, str, torch.dtype], problem: Problem) -> None:
    """Bit-identical on cpu; elsewhere the BLAS may sum in another order: some roundings of the dtype."""
    kind, backend, dtype = model
    x, params = problem(batch=7, gaussian=kind, dtype=dtype)
    whole = ik.infer(x, params, 4, record=["counts", "kl"], seed=3, backend=backend)
    parts = [
        ik.infer(x[a:b], params, 4, record=["counts", "kl"], seed=3, sample_offset=a, backend=backend)
        for a, b in [(0, 1), (1, 5), (5, 7)]
    ]
    tolerance = 0.0 if backend == "cpu" else 1e-10 if dtype == torch.float64 else 2e-6
    joined = torch.cat([part.state.log_rate for part in parts], -2)
    torch.testing.assert_close(joined, whole.state.log_rate, rtol=tolerance, atol=tolerance)
    for name in ("counts", "kl"):
        joined = torch.cat([part.records[name] for part in parts], 1)
        torch.testing.assert_close(joined, whole.records[name], rtol=tolerance, atol=tolerance)


def test_the_path_does_not_depend_on_the_records(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    plain = ik.infer(x, params, 6, seed=3, backend=backend).state.log_rate
    for record in (["kl"], ["counts"], RECORDS):
        assert torch.equal(
            ik.infer(x, params, 6, record=record, seed=3, backend=backend).state.log_rate, plain
        )


@pytest.mark.parametrize(
    ("arguments", "draws"),
    [
        ({}, 5),
        ({"record": ["log_rate", "kl"]}, 5),
        ({"record": ["recon"]}, 10),
        ({"record": ["recon"], "single_draw": True}, 6),
    ],
    ids=str,
)
def test_draws_that_nothing_needs_are_skipped(
    arguments: dict[str, Any], draws: int, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = problem()
    taken = []
    counts = noise.PhiloxNoise.counts
    monkeypatch.setattr(noise.PhiloxNoise, "counts", lambda *a: taken.append(1) or counts(*a))
    ik.infer(x, params, 5, seed=3, backend="eager", **arguments)
    assert len(taken) == draws


def test_single_draw_shares_the_fresh_draw(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    result = ik.infer(x, params, 5, record=["log_rate", "counts"], single_draw=True, seed=3, backend=backend)
    u, z = result.records["log_rate"].double(), result.records["counts"].double()
    p = [tensor.double() for tensor in (params.dictionary, params.log_sigma)]
    for t in range(4):
        drive = ((x.double() - z[t] @ p[0].T) / torch.exp(2 * p[1])) @ p[0]
        new = ik.log_rate_update(
            u[t], u[t], drive, ik.PoissonParams(*p, params.log_bias.double(), params.log_lr.double(), u[t][0])
        )
        torch.testing.assert_close(u[t + 1], new, rtol=2e-5, atol=2e-5)
    two = ik.infer(x, params, 5, record=["log_rate"], seed=3, backend=backend).records["log_rate"]
    assert torch.equal(two[0], result.records["log_rate"][0])
    assert not torch.equal(two[1], result.records["log_rate"][1])


@pytest.mark.parametrize("n_inner", [1, 2, 3])
def test_infer_follows_the_hard_elbo(
    n_inner: int, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    x, params = problem(dtype=dtype)
    arguments = {"seed": 3, "n_inner": n_inner, "beta_inner": 0.5, "backend": backend}
    infer = ik.infer(x, params, 4, record=["recon", "kl"], **arguments)
    elbo = ik.elbo(x, params, 4, estimator="hard", **arguments)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(infer.records["recon"], elbo.recon, **tolerance)
    torch.testing.assert_close(infer.records["kl"], elbo.kl, **tolerance)
    torch.testing.assert_close(infer.state.log_rate, elbo.state.log_rate, **tolerance)


def test_backends_agree(problem: Problem, backend: str) -> None:
    x, params = problem(batch=64, dtype=torch.float32)
    ours = ik.infer(x, params, 3, record=["counts"], seed=3, backend=backend)
    reference = ik.infer(x, params, 3, record=["counts"], seed=3, backend="autograd")
    differ = (ours.records["counts"] != reference.records["counts"]).float().mean()
    assert float(differ) < 2e-3  # draws within rounding of a threshold, and what follows from them
    close = torch.isclose(ours.state.log_rate, reference.state.log_rate, rtol=1e-4, atol=1e-4)
    assert float((~close).float().mean()) < 2e-2


def test_no_gradient(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype, grad=True)
    result = ik.infer(x, params, 2, record=["kl"], seed=3, backend=backend)
    assert not result.state.log_rate.requires_grad
    assert not result.records["kl"].requires_grad


def test_seed_rules(problem: Problem) -> None:
    x, params = problem()
    torch.manual_seed(4)
    first = ik.infer(x, params, 3)
    torch.manual_seed(4)
    assert torch.equal(ik.infer(x, params, 3).state.log_rate, first.state.log_rate)
    assert torch.equal(ik.infer(x, params, 3, seed=first.state.seed).state.log_rate, first.state.log_rate)
    assert not torch.equal(ik.infer(x, params, 3).state.log_rate, first.state.log_rate)
    start = ik.State(first.state.log_rate, 3, 7, 2)
    kept = ik.infer(x, params, 1, state=start)
    assert (int(kept.state.seed), kept.state.step, kept.state.sample_offset) == (7, 4, 2)
    changed = ik.infer(x, params, 1, state=start, seed=8, sample_offset=5)
    assert (int(changed.state.seed), changed.state.sample_offset) == (8, 5)
    without = ik.infer(x, params, 1, state=replace(start, seed=None))
    assert without.state.seed is not None


def test_the_input_state_is_left_alone(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    start = torch.randn(3, 9).to(dtype)
    before = start.clone()
    first = ik.infer(x, params, 2, state=ik.State(start, 0, 3), backend=backend)
    kept = first.state.log_rate.clone()
    ik.infer(x, params, 2, state=first.state, backend=backend)
    assert torch.equal(start, before)
    assert torch.equal(first.state.log_rate, kept)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 5, 1), (2, 1, 6), (0, 4, 5)], ids=str)
def test_smallest_sizes(
    sizes: tuple[int, int, int], model: tuple[str, str, torch.dtype], problem: Problem
) -> None:
    kind, backend, dtype = model
    x, params = problem(*sizes, gaussian=kind, dtype=dtype)
    result = ik.infer(x, params, 2, record=RECORDS, seed=1, backend=backend)
    assert result.state.log_rate.shape == (*((2,) if kind else ()), sizes[0], sizes[2])
    assert result.records["counts"].shape == (2, sizes[0], sizes[2])
    assert result.records["zeros"].shape == (2, sizes[0])
    assert all(bool(torch.isfinite(record).all()) for record in result.records.values())


def test_non_contiguous_inputs(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(batch=4, dtype=dtype)
    expected = ik.infer(x, params, 3, record=RECORDS, seed=1, backend=backend)
    odd = replace(
        params,
        dictionary=params.dictionary.T.contiguous().T,
        log_bias=params.log_bias.repeat_interleave(3)[::3],
    )
    result = ik.infer(x.T.contiguous().T, odd, 3, record=RECORDS, seed=1, backend=backend)
    for name in RECORDS:
        torch.testing.assert_close(result.records[name], expected.records[name], rtol=1e-6, atol=1e-6)


def test_nan_ends_and_is_refused(model: tuple[str, str, torch.dtype], problem: Problem) -> None:
    kind, backend, dtype = model
    x, params = problem(gaussian=kind, dtype=dtype)
    clean = ik.infer(x, params, 3, seed=1, backend=backend).state.log_rate
    x[1, 2] = math.nan
    with pytest.raises(ValueError, match="x: expected finite values, found 1 of 21"):
        ik.infer(x, params, 3, seed=1, backend=backend)
    state = ik.infer(x, params, 3, record=RECORDS, seed=1, backend=backend, check=False).state.log_rate
    assert bool(torch.isnan(state[..., 1, :]).any())
    for row in (0, 2):
        torch.testing.assert_close(state[..., row, :], clean[..., row, :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["poisson", "gaussian"])
def test_opcheck(cell: str, problem: Problem, backend: str, dtype: torch.dtype) -> None:
    gaussian = "identity" if cell == "gaussian" else ""
    x, params = problem(moving=4, dtype=dtype, gaussian=gaussian)
    tensors = [x, params.dictionary, params.log_sigma, params.log_bias, params.log_lr]
    tensors.append(torch.zeros(*((2,) if gaussian else ()), 3, 9, dtype=dtype))
    for record, every in [("", 1), (",".join(RECORDS), 3), ("kl", 1)]:
        cfg = eager.RolloutConfig(4, step=3, cell=cell)
        torch.library.opcheck(
            torch.ops.ipvae_kernels.infer.default,
            (*tensors, *problem_arguments(torch.tensor(3), cfg), record, every, backend, True),
        )


def test_compile_without_graph_breaks(problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32)

    def run(x: Tensor, params: ik.PoissonParams, state: ik.State) -> ik.InferResult:
        first = ik.infer(x, params, 2, state=state, record=["kl", "counts"], backend=backend)
        return ik.infer(x, params, 2, state=first.state, record=["kl"], backend=backend)

    start = ik.State(torch.zeros(3, 9), 0, torch.tensor(3))
    ours = torch.compile(run, fullgraph=True, backend="aot_eager")(x, params, start)
    reference = run(x, params, start)
    assert torch.equal(ours.state.log_rate, reference.state.log_rate)
    assert torch.equal(ours.records["kl"], reference.records["kl"])
    assert (ours.state.step, int(ours.state.seed)) == (4, 3)


def test_autocast_computes_in_float32(model: tuple[str, str, torch.dtype], problem: Problem) -> None:
    kind, backend, _ = model
    x, params = problem(gaussian=kind, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ik.infer(x.bfloat16(), params, 3, seed=5, backend=backend)
    outside = ik.infer(x.bfloat16().float(), params, 3, seed=5, backend=backend)
    assert torch.equal(inside.state.log_rate, outside.state.log_rate)


@pytest.mark.parametrize(("n_inner", "single_draw"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("kind", ["identity", "relu"])
def test_gaussian_gradients(kind: str, n_inner: int, single_draw: bool, problem: Problem) -> None:
    x, params = problem(batch=2, pixels=3, neurons=4, gaussian=kind, grad=True)
    tensors = [x, params.dictionary, params.log_sigma, params.log_bias, params.log_lr, params.state_init]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        params = ik.GaussianParams(*rest, activation=kind)
        result = ik.elbo(x, params, 2, seed=2, n_inner=n_inner, single_draw=single_draw, beta=0.7)
        return result.loss, result.state.log_rate

    # The normals are held constant in the update, which finite differences see too: the noise is fixed.
    assert torch.autograd.gradcheck(run, tensors, atol=1e-5, rtol=1e-4)


def test_gaussian_clamps_come_in_pairs(problem: Problem) -> None:
    x, params = problem(gaussian="identity")
    state = ik.infer(100 * x, params, 3, seed=1, clamp_u=(0.5, 0.25), clamp_du=(3.0, 3.0)).state.log_rate
    assert float(state[0].abs().max()) <= 0.5
    assert float(state[1].abs().max()) <= 0.25
    for bad in (1.0, (1.0,), (1.0, 2.0, 3.0)):
        with pytest.raises(TypeError, match="clamp_u: expected a pair of numbers"):
            ik.infer(x, params, 3, clamp_u=bad)
    with pytest.raises(ValueError, match="clamp_du: expected a finite number above 0, found 0"):
        ik.infer(x, params, 3, clamp_du=(0.0, 1.0))


def rename(params: Any, **changes: Any) -> Any:
    return replace(params, **changes)


BAD = [
    (lambda x, p: (x.numpy(), p, 2), {}, TypeError, "x: .* found ndarray; torch.from_numpy makes one"),
    (lambda x, p: (x.to(torch.uint8), p, 2), {}, TypeError, "x: expected dtype .* found torch.uint8"),
    (lambda x, p: ([[0.0]], p, 2), {}, TypeError, r"x: expected a torch\.Tensor, found list"),
    (
        lambda x, p: (x[0], p, 2),
        {},
        ValueError,
        r"x: expected shape \[B, M\] or \[steps, B, M\], found \[7\]",
    ),
    (lambda x, p: (x[:, :6], p, 2), {}, ValueError, "x: expected last dimension M = 7 .* found 6"),
    (
        lambda x, p: (x.expand(3, 3, 7), p, 2),
        {},
        ValueError,
        "x: expected one frame per step, steps = 2, found 3 frames",
    ),
    (
        lambda x, p: (x.float(), p, 2),
        {},
        TypeError,
        "x: expected dtype torch.float64 as that of params.dictionary, found torch.float32",
    ),
    (lambda x, p: (x.half(), p, 2), {}, TypeError, "x: expected dtype .* found torch.float16"),
    (
        lambda x, p: (x, (1, 2), 2),
        {},
        TypeError,
        "params: expected PoissonParams or GaussianParams, found tuple",
    ),
    (
        lambda x, p: (x, rename(p, dictionary=p.dictionary[0]), 2),
        {},
        ValueError,
        r"params.dictionary: expected shape \[M, K\]",
    ),
    (
        lambda x, p: (x, rename(p, dictionary=p.dictionary[:, :0]), 2),
        {},
        ValueError,
        r"neither of them 0, found \[7, 0\]",
    ),
    (
        lambda x, p: (x, rename(p, log_sigma=p.log_sigma[:3]), 2),
        {},
        ValueError,
        r"params.log_sigma: expected shape \[M\] = \[7\], found \[3\]",
    ),
    (
        lambda x, p: (x, rename(p, log_bias=p.log_bias[:3]), 2),
        {},
        ValueError,
        r"params.log_bias: expected shape \[K\] = \[9\]",
    ),
    (
        lambda x, p: (x, rename(p, log_lr=p.log_lr[None]), 2),
        {},
        ValueError,
        r"params.log_lr: expected shape \[\] = \[\], found \[1\]",
    ),
    (
        lambda x, p: (x, rename(p, log_rate_init=p.log_rate_init[:3]), 2),
        {},
        ValueError,
        r"params.log_rate_init: expected shape \[K\]",
    ),
    (
        lambda x, p: (x, rename(p, log_bias=None), 2),
        {},
        TypeError,
        r"params.log_bias: expected a torch\.Tensor, found NoneType",
    ),
    (lambda x, p: (x, p, 0), {}, ValueError, "steps: expected an int from 1 to .*, found 0"),
    (lambda x, p: (x, p, 2.0), {}, TypeError, "steps: expected an int, found float"),
    (None, {"state": torch.zeros(3, 9)}, TypeError, "state: expected a State or None, found Tensor"),
    (
        None,
        {"state": ik.State(torch.zeros(3, 8).double())},
        ValueError,
        r"state.log_rate: expected shape \[B, K\] = \[3, 9\], found \[3, 8\]",
    ),
    (None, {"state": ik.State(torch.zeros(3, 9))}, TypeError, "state.log_rate: expected dtype torch.float64"),
    (
        None,
        {"state": ik.State(torch.zeros(3, 9).double(), step=2**32 - 1)},
        ValueError,
        "step: expected an int from 0 to 4294967294",
    ),
    (
        None,
        {"state": ik.State(torch.zeros(3, 9).double(), step=-1)},
        ValueError,
        "step: expected an int from 0",
    ),
    (None, {"record": "kl"}, TypeError, "record: expected a collection of names, found the string 'kl'"),
    (None, {"record": ["kl", "loss"]}, ValueError, "record: expected one of log_rate, .*; found 'loss'"),
    (None, {"record_every": 0}, ValueError, "record_every: expected an int from 1"),
    (None, {"seed": 0.5}, TypeError, "seed: expected an int, found float"),
    (None, {"n_inner": 0}, ValueError, "n_inner: expected an int from 1 to 256, found 0"),
    (None, {"n_inner": 257}, ValueError, "n_inner: expected an int from 1 to 256, found 257"),
    (None, {"beta_inner": -0.5}, ValueError, "beta_inner: expected a finite number of at least 0"),
    (
        None,
        {"clamp_u": (1.0, 2.0)},
        TypeError,
        "clamp_u: expected a number for a Poisson model, found a tuple",
    ),
    (None, {"clamp_u": -9}, ValueError, "clamp_u: expected a finite number above -8, found -9"),
    (None, {"clamp_du": math.inf}, ValueError, "clamp_du: expected a finite number above -8, found inf"),
    (None, {"decay": -0.1}, ValueError, "decay: expected a finite number of at least 0"),
    (None, {"drive": "exact"}, ValueError, "drive: expected one of paper, sampled, expected; found 'exact'"),
    (
        None,
        {"drive": "expected", "single_draw": True},
        ValueError,
        "single_draw: expected False with drive='expected', whose updates draw nothing",
    ),
    (None, {"kl": "reverse"}, ValueError, "kl: expected one of exact, released; found 'reverse'"),
    (None, {"single_draw": 1}, TypeError, "single_draw: expected a bool, found int"),
    (
        None,
        {"single_draw": True, "n_inner": 2},
        ValueError,
        "single_draw: expected n_inner = 1 with it, found 2",
    ),
    (None, {"sample_offset": -1}, ValueError, "sample_offset: expected an int from 0"),
    (None, {"neuron_offset": 2}, ValueError, "neuron_offset: expected a multiple of 4, found 2"),
    (None, {"neuron_offset": 2**32 - 4}, ValueError, "neuron_offset: expected an int from 0 to 4294967287"),
    (None, {"check": "yes"}, TypeError, "check: expected a bool, found str"),
    (None, {"backend": "numpy"}, ValueError, "backend: expected one of"),
]


@pytest.mark.parametrize(("change", "arguments", "error", "message"), BAD)
def test_bad_arguments(
    change: Any, arguments: dict[str, Any], error: type[Exception], message: str, problem: Problem
) -> None:
    x, params = problem()
    positional = (x, params, 2) if change is None else change(x, params)
    with pytest.raises(error, match=message):
        ik.infer(*positional, **arguments)
    if "record" not in arguments and "record_every" not in arguments:
        with pytest.raises(error, match=message):
            ik.elbo(*positional, **arguments)
