"""The compiled module: accuracy of its functions, every instruction set, threads."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import philox
from ipvae_kernels.backend import compiled
from ipvae_kernels.cells import CELLS
from ipvae_kernels.poisson.divergence import KLS
from ipvae_kernels.poisson.estimators import COMPILED, ESTIMATORS
from ipvae_kernels.rollout import cpu as rollout
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.op import RECORDS
from ipvae_kernels.rollout.problem import Inputs

Problem = Callable[..., tuple[Tensor, Any]]

pytestmark = pytest.mark.skipif(compiled.reason() is not None, reason=str(compiled.reason()))


def _evaluate(function: str, x: Tensor) -> Tensor:
    out = torch.full_like(x, math.nan)
    compiled.load().evaluate(function, x.data_ptr(), out.data_ptr(), x.numel())
    return out


def _linear(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 1_000_003)


def _both_signs(low_exponent: float, high: float) -> Tensor:
    positive = torch.logspace(low_exponent, math.log10(high), 200_003)
    return torch.cat([positive, -positive])


def _kl_shape(d: Tensor) -> Tensor:
    series = sum((n - 1) / math.factorial(n) * d**n for n in range(2, 20))
    return torch.where(d.abs() < 0.7, series, 1 + torch.exp(d) * (d - 1))


def _log_ratio_kl(d: Tensor) -> Tensor:
    series = sum((2 * d) ** n / math.factorial(n) for n in range(2, 20)) / 2
    return torch.where(d.abs() < 0.5, series, torch.expm1(2 * d) / 2 - d)


# Function of csrc/common: reference in float64, inputs, largest error in ulp of the result, absolute error.
# An error counts only where it is beyond both; the absolute one is for zeros of the function.
ACCURACY: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, float, float]] = {
    "exp": (torch.exp, _linear(-87.0, 88.0), 1.0, 0.0),
    "expm1": (torch.expm1, torch.cat([_linear(-40.0, 88.0), _both_signs(-30, 1.0)]), 1.5, 0.0),
    "log": (torch.log, torch.logspace(-37, 38, 1_000_003), 1.0, 0.0),
    "soft_clamp": (lambda v: v - torch.nn.functional.softplus(v - 10), _linear(-8.0, 30.0), 1.5, 1e-6),
    "soft_clamp_slope": (lambda v: torch.sigmoid(10 - v), _linear(-8.0, 30.0), 3.0, 0.0),
    "sinpi": (lambda y: torch.sin(math.pi * y), _linear(-0.5, 0.5), 4.0, 0.0),
    "cospi": (lambda y: torch.cos(math.pi * y), _linear(-0.5, 0.5), 4.0, 2e-7),
    "kl_shape": (_kl_shape, torch.cat([_linear(-8.0, 8.0), _both_signs(-15, 1.0)]), 16.0, 0.0),
    "log_ratio_kl": (_log_ratio_kl, torch.cat([_linear(-40.0, 40.0), _both_signs(-15, 1.0)]), 6.0, 0.0),
    "tanh_clamp": (
        lambda v: 7 * torch.tanh(v / 7),
        torch.cat([_linear(-99.0, 99.0), _both_signs(-30, 1.0)]),
        6.0,
        0.0,
    ),
    "tanh_clamp_slope": (lambda v: torch.cosh(v / 7) ** -2, _linear(-99.0, 99.0), 48.0, 0.0),
    "normal_quantile": (
        lambda p: torch.from_numpy(special.ndtri(p.numpy())),
        torch.cat([torch.logspace(-9.93, -0.302, 1_000_003), _linear(0.499, 0.5)]),
        8.0,
        0.0,
    ),
}


@pytest.mark.parametrize("function", ACCURACY)
def test_accuracy(function: str, instruction_set: str) -> None:
    reference, x, ulps, absolute = ACCURACY[function]
    exact = reference(x.double())
    spacing = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    error = (_evaluate(function, x).double() - exact).abs()
    assert bool((error <= torch.clamp(ulps * spacing, min=absolute)).all())


NAN_STAYS = sorted(ACCURACY.keys() - {"log", "sinpi", "cospi", "normal_quantile"})


@pytest.mark.parametrize("function", NAN_STAYS)
def test_nan_stays_nan(function: str, instruction_set: str) -> None:
    assert _evaluate(function, torch.full((7,), math.nan)).isnan().all()


def test_infinities_of_the_clamps(instruction_set: str) -> None:
    far = torch.tensor([torch.inf, 1e38, -torch.inf])
    assert _evaluate("soft_clamp", far).tolist() == [10.0, 10.0, -torch.inf]
    assert _evaluate("tanh_clamp", far).tolist() == [7.0, 7.0, -7.0]
    assert _evaluate("tanh_clamp_slope", far).max() < 1e-30


def test_words_to_numbers(instruction_set: str) -> None:
    edges = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    words = torch.cat([torch.tensor(edges), torch.arange(0, 2**32, 65_537)])
    as_bits = words.to(torch.uint32).view(torch.float32)
    uniform = _evaluate("uniform", as_bits)
    assert torch.equal(uniform, philox.uniform(words, torch.float32))
    assert uniform.min() == 2.0**-33
    assert uniform.max() == 1.0 - 2.0**-24
    exponential = philox.exponential(words, torch.float64)
    error = (_evaluate("exponential", as_bits).double() - exponential).abs() / exponential
    assert error.max() < 4e-7
    # In its centre a normal is known to the rounding of the uniform near 1/2.
    normal = philox.normal(words, torch.float64)
    error = (_evaluate("normal", as_bits).double() - normal).abs() / (normal.abs() + 0.25)
    assert error.max() < 5e-7


def test_philox_known_answers(instruction_set: str, shared: Callable[[str], Path]) -> None:
    lines = shared("kat/philox4x32.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    assert len(rows) == 6
    for rounds, *words in rows:
        values = [int(word, 16) for word in words]
        answer = compiled.load().philox(values[:4], values[4:6], int(rounds))
        assert answer == 2 * values[6:]  # from scalar code, and from a vector


@pytest.mark.parametrize(
    ("estimator", "temperature"), [("hard", 0.0), ("sigmoid", 1.0), ("cubic", 0.1), ("fini3", 1.0)]
)
def test_draws_equal_eager(instruction_set: str, estimator: str, temperature: float) -> None:
    log_rate = torch.rand(40, 333) * 11 - 8
    draws = [
        ipvae_kernels.poisson_rsample(
            log_rate, estimator=estimator, temperature=temperature, seed=-5, backend=backend
        )
        for backend in ("eager", "cpu")
    ]
    if estimator == "hard":
        assert torch.equal(*draws)
    else:
        torch.testing.assert_close(*draws, rtol=1e-4, atol=1e-5)


def test_rollout_equals_eager(instruction_set: str, problem: Problem) -> None:
    x, params = problem(21, 33, 70, dtype=torch.float32)
    results = [
        ipvae_kernels.infer(x, params, 20, seed=3, record=("counts", "recon", "kl"), backend=backend)
        for backend in ("eager", "cpu")
    ]
    assert torch.equal(results[0].records["counts"], results[1].records["counts"])
    for name in ("recon", "kl"):
        torch.testing.assert_close(results[0].records[name], results[1].records[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_rate", [-1.0, 3.0, 7.0])  # the last one has counts above 256
def test_products_have_the_error_of_float32(log_rate: float, instruction_set: str, problem: Problem) -> None:
    x, params = problem(50, 70, 130, dtype=torch.float32)
    params = dataclasses.replace(params, log_rate_init=torch.full((130,), log_rate))
    record = ("counts", "reconstruction", "log_rate")
    ours = ipvae_kernels.infer(x, params, 1, seed=1, record=record, backend="cpu").records
    counts, dictionary = ours["counts"][0], params.dictionary
    exact = counts.double() @ dictionary.double().T
    float32 = (counts @ dictionary.T - exact).abs().mean()
    # The reconstruction is recorded as x minus the residual: a rounding of x more.
    assert (ours["reconstruction"][0] - exact).abs().mean() < 2 * float32 + 1e-7


@pytest.mark.parametrize("log_rate", [13.0, 20.0])  # counts of three digits of base 256, and beyond 2^24
def test_absurd_counts_are_decoded(log_rate: float, instruction_set: str, problem: Problem) -> None:
    x, params = problem(3, 20, 70, dtype=torch.float32)
    still = torch.tensor(-100.0)  # a learning rate of nothing: the log rate stays where it is
    params = dataclasses.replace(params, log_rate_init=torch.full((70,), log_rate), log_lr=still)
    ours = ipvae_kernels.infer(
        x, params, 1, seed=1, record=("counts", "reconstruction"), clamp_u=30.0, backend="cpu"
    ).records
    expected = ours["counts"][0].double() @ params.dictionary.double().T
    assert ours["counts"].max() > (2**24 if log_rate > 16 else 2**16)
    torch.testing.assert_close(
        ours["reconstruction"][0].double(), expected, rtol=0, atol=1e-6 * ours["counts"].max().item()
    )


@pytest.mark.parametrize("log_rate", [13.0, 20.0])
def test_an_absurd_row_leaves_its_neighbours_alone(
    log_rate: float, instruction_set: str, problem: Problem
) -> None:
    x, params = problem(3, 20, 70, dtype=torch.float32)
    params = dataclasses.replace(params, log_lr=torch.tensor(-100.0))
    start = torch.zeros(3, 70)
    record = ("counts", "reconstruction")
    states = []
    for first in (0.0, log_rate):
        start[0] = first
        state = ipvae_kernels.State(start.clone(), 0, torch.tensor(1))
        states.append(
            ipvae_kernels.infer(x, params, 1, state=state, record=record, clamp_u=30.0, backend="cpu")
        )
    assert states[1].records["counts"][0, 0].min() > 1e5
    for name in record:
        assert torch.equal(states[0].records[name][0, 1:], states[1].records[name][0, 1:])


def test_more_latents_than_one_exact_sum_takes(instruction_set: str) -> None:
    latents = 40_000  # 32,768 products of digits surely fit 32 bits
    dictionary = torch.rand(3, latents) + 1  # all of one sign, so that the sums are as large as they get
    zero = torch.zeros
    params = ipvae_kernels.PoissonParams(
        dictionary, zero(3), zero(latents), torch.tensor(-100.0), torch.full((latents,), 5.3)
    )
    x = torch.zeros(2, 3)
    ours = ipvae_kernels.infer(x, params, 1, seed=1, record=("counts", "reconstruction"), backend="cpu")
    counts = ours.records["counts"][0].double()
    assert 190 < counts.mean() < 210
    # 40,000 additions in float32 one after the other, as other instruction sets make, are good for 1e-5.
    torch.testing.assert_close(
        ours.records["reconstruction"][0].double(), counts @ dictionary.double().T, rtol=2e-5, atol=0
    )


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_drives_have_the_error_of_float32(spread: float, instruction_set: str, problem: Problem) -> None:
    """Of rows and columns of very different size, and of elements that differ within them."""
    x, params = problem(50, 300, 130, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    dictionary = params.dictionary * torch.exp(2 * torch.randn(130, generator=generator))
    x = x * torch.exp(spread * torch.randn(50, 1, generator=generator))
    log_rate, seed = torch.zeros(50, 130), torch.tensor(1)
    cfg = RolloutConfig(steps=1, estimator="fini2")
    inputs = Inputs(x, dictionary, params.log_sigma, params.log_bias, params.log_lr, log_rate)
    trajectory = rollout.elbo(inputs, seed, cfg).trajectory
    errors, drives = trajectory.errors[0, 0], trajectory.drives[0]
    weighted = errors * torch.exp(-2 * params.log_sigma)
    exact = weighted.double() @ dictionary.double()
    float32 = (weighted @ dictionary - exact).abs() / exact.abs().mean(0)
    assert ((drives - exact).abs() / exact.abs().mean(0)).mean() < 2 * float32.mean()


def test_splits_of_the_batch_are_bit_identical(instruction_set: str, problem: Problem) -> None:
    x, params = problem(75, 33, 130, dtype=torch.float32)
    record = ("log_rate", "recon", "kl")
    whole = ipvae_kernels.infer(x, params, 4, seed=1, record=record, backend="cpu").records
    for begin, end in [(0, 1), (1, 18), (18, 51), (51, 75)]:
        part = ipvae_kernels.infer(
            x[begin:end], params, 4, seed=1, record=record, sample_offset=begin, backend="cpu"
        ).records
        for name in record:
            assert torch.equal(part[name], whole[name][:, begin:end])


def test_gradients_equal_eager(instruction_set: str, problem: Problem) -> None:
    x, params = problem(50, 70, 130, dtype=torch.float32, grad=True)
    tensors = (x, params.dictionary, params.log_sigma, params.log_bias, params.log_lr, params.log_rate_init)
    for estimator in ("fini2", "cubic"):
        ours, eager = (
            torch.autograd.grad(
                ipvae_kernels.elbo(x, params, 5, seed=1, estimator=estimator, backend=backend).loss, tensors
            )
            for backend in ("cpu", "eager")
        )
        for a, b in zip(ours, eager, strict=True):
            assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())


def _error(ours: Tensor, reference: Tensor) -> float:
    difference = (ours.double() - reference).abs().max() / (reference.abs().max() + 1e-12)
    return float(difference.detach())


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize(
    ("steps", "arguments"),
    [(1, {}), (5, {}), (5, {"single_draw": True}), (4, {"n_inner": 2, "beta_inner": 0.6})],
    ids=str,
)
@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
def test_gaussian_rollout_is_as_accurate_as_eager(
    moving: bool,
    steps: int,
    arguments: dict[str, Any],
    activation: str,
    instruction_set: str,
    problem: Problem,
) -> None:
    """Records, losses and every gradient, against autograd in float64."""
    results = []
    for backend, dtype in (("cpu", torch.float32), ("eager", torch.float32), ("autograd", torch.float64)):
        x, params = problem(
            21, 33, 70, moving=steps if moving else 0, dtype=torch.float32, gaussian=activation
        )
        x, *tensors = (t.to(dtype).requires_grad_() for t in (x, *_parameters(params)))
        params = ipvae_kernels.GaussianParams(*tensors, activation=activation)
        shared = {"seed": 3, "backend": backend, **arguments}
        state, records = ipvae_kernels.infer(x, params, steps, record=RECORDS, **shared)
        result = ipvae_kernels.elbo(x, params, steps, beta=1.7, **shared)
        weights = torch.linspace(-1, 1, result.state.log_rate.numel()).to(dtype)
        total = result.loss + (result.state.log_rate.flatten() * weights).sum()
        gradients = torch.autograd.grad(total, (x, *tensors))
        results.append([state.log_rate, *records.values(), result.recon, result.kl, *gradients])
    for ours, eager, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        assert _error(ours, exact) <= 4 * _error(eager, exact) + 2e-6


def _parameters(params: Any) -> list[Tensor]:
    return [value for value in vars(params).values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_threads(
    threads: int, gaussian: str, instruction_set: str, problem: Problem
) -> None:
    before = torch.get_num_threads()
    x, params = problem(37, 20, 140, dtype=torch.float32, grad=True, gaussian=gaussian)

    def gradients(n: int) -> list[Tensor]:
        torch.set_num_threads(n)
        result = ipvae_kernels.elbo(x, params, 6, seed=1, temperature=0.3, backend="cpu")
        tensors = (x, *_parameters(params))
        return [result.loss, result.recon, result.kl, *torch.autograd.grad(result.loss, tensors)]

    try:
        for one, many in zip(gradients(1), gradients(threads), strict=True):
            assert torch.equal(one, many)
    finally:
        torch.set_num_threads(before)


WIDE = 2_500  # neurons: three blocks, which threads share


def _wide(problem: Problem, gaussian: str, batch: int, **arguments: Any) -> Callable[..., dict[str, Tensor]]:
    """Inference with all records, in pieces of a sequence, and the loss, for some rows of a batch."""
    x, params = problem(batch, 20, WIDE, moving=6, dtype=torch.float32, gaussian=gaussian)

    def run(threads: int, rows: slice = slice(None), cut: int = 6) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        shared = {"seed": 3, "sample_offset": rows.start or 0, "backend": "cpu", **arguments}
        x_rows, state, parts = x[:, rows], None, []
        for begin in range(0, 6, cut):
            frames = x_rows[begin : begin + cut]
            state, records = ipvae_kernels.infer(
                frames, params, len(frames), record=RECORDS, record_every=2, state=state, **shared
            )
            parts.append(records)
        assert state is not None
        loss = ipvae_kernels.elbo(x_rows, params, 6, **shared)
        found = {name: torch.cat([part[name] for part in parts]) for name in RECORDS}
        return {**found, "state": state.log_rate, "loss recon": loss.recon, "loss kl": loss.kl}

    return run


@pytest.mark.parametrize("gaussian", ["", "relu"])
@pytest.mark.parametrize("arguments", [{}, {"n_inner": 2, "beta_inner": 0.6}, {"single_draw": True}], ids=str)
def test_wide_dictionaries_do_not_depend_on_threads_or_cuts(
    arguments: dict[str, Any], gaussian: str, instruction_set: str, problem: Problem
) -> None:
    """Threads share neurons where rows are few, rows where they are many: 80 rows on 2 threads and on 7."""
    run = _wide(problem, gaussian, 80, **arguments)
    before = torch.get_num_threads()
    try:
        whole = run(1)
        for threads, rows, cut in ((2, slice(None), 6), (7, slice(None), 4), (3, slice(33, 38), 2)):
            for name, found in run(threads, rows, cut).items():
                rows_at = -2 if name in ("log_rate", "counts", "reconstruction", "state") else -1
                expected = whole[name].narrow(rows_at, rows.start or 0, found.shape[rows_at])
                assert torch.equal(found, expected), (name, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("gaussian", ["", "identity"])
def test_wide_dictionaries_agree_with_eager(gaussian: str, instruction_set: str, problem: Problem) -> None:
    x, params = problem(5, 20, WIDE, dtype=torch.float32, gaussian=gaussian)
    results = []
    for backend in ("cpu", "eager"):
        state, records = ipvae_kernels.infer(x, params, 1, seed=3, record=RECORDS, backend=backend)
        results.append({"state": state.log_rate, **records})
    ours, theirs = results
    for name in ours:
        wrong = ~torch.isclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4)
        # A count near a threshold may fall otherwise, and what is made of it.
        assert float(wrong.float().mean()) < (0.01 if ours[name].numel() > 100 else 0.5), name
    assert torch.equal(ours["counts"].sum(-1), ours["spikes"]) or gaussian
    torch.testing.assert_close((ours["counts"] == 0).float().mean(-1), ours["zeros"])
    mean = ours["counts"] @ params.dictionary.T
    torch.testing.assert_close(ours["reconstruction"], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_children_of_forks_share_neurons(problem: Problem) -> None:
    """Where threads are started for the call."""
    done = subprocess.run([sys.executable, "-c", FORKED_WIDE], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


FORKED_WIDE = """
import os, torch, ipvae_kernels as ik
torch.set_num_threads(2)
params = ik.PoissonParams(
    dictionary=torch.linspace(-1, 1, 7 * 2500).view(7, 2500) / 50, log_sigma=torch.zeros(7),
    log_bias=torch.zeros(2500) - 3, log_lr=torch.zeros(()), log_rate_init=torch.zeros(2500) - 2,
)
def run():
    return ik.infer(torch.ones(2, 7), params, 3, seed=1, backend="cpu").state.log_rate
expected = run()
reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, b"1" if torch.equal(run(), expected) else b"0")
    os._exit(0)
print(os.read(reader, 1) == b"1")
"""


def test_a_long_row_is_shared_among_threads(instruction_set: str) -> None:
    log_rate = torch.rand(2, 5_000) * 12 - 8
    before = torch.get_num_threads()
    draws = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            draws.append(ipvae_kernels.poisson_sample(log_rate, seed=1, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*draws)
    assert torch.equal(draws[0], ipvae_kernels.poisson_sample(log_rate, seed=1, backend="eager"))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 70])
def test_all_finite_sees_every_element(size: int, instruction_set: str) -> None:
    values = torch.full((size,), 3e38)  # whose sum overflows
    assert compiled.all_finite(values)
    for i in range(size):
        for bad in (math.nan, math.inf, -math.inf):
            values[i] = bad
            assert not compiled.all_finite(values)
        values[i] = -1.0


def test_all_below_is_strict_and_takes_both_signs(instruction_set: str) -> None:
    for tensor in (torch.full((33,), -79.99), torch.full((2, 33), -79.99).T):  # the second by PyTorch
        values = tensor.clone(memory_format=torch.preserve_format)
        assert compiled.all_below(values, 80.0)
        for bad in (80.0, -80.0, math.nan, -math.inf):
            values[32] = bad
            assert not compiled.all_below(values, 80.0)
    assert compiled.all_below(torch.empty(0), 1.0)
    assert compiled.all_below(torch.empty(0, dtype=torch.float64), 1.0)


def test_unknown_instruction_set_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*baseline, got sse9"):
        compiled.load().set_instruction_set("sse9")


FORKS = """
import os, signal, sys, threading
import torch
import ipvae_kernels as ik

torch.set_num_threads(2)
torch.manual_seed(0)
params = ik.PoissonParams(
    0.1 * torch.randn(8, 16), torch.zeros(8), torch.full((16,), -2.0), torch.tensor(-1.0), torch.zeros(16)
)
x, stop = torch.randn(9, 8), threading.Event()
step = lambda: ik.infer(x, params, 1, seed=1, backend="cpu")
expected = step().state.log_rate

def busy():
    while not stop.is_set():
        step()

threads = [threading.Thread(target=busy, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for i in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends one that waits for ever
        os._exit(0 if torch.equal(step().state.log_rate, expected) else 1)
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"child {i} ended with {status}")
stop.set()
for thread in threads:
    thread.join()
print("done")
"""


def test_children_of_forks_compute() -> None:
    """While other threads are inside an op; and with two threads, whose pool no child has."""
    command = [sys.executable, "-W", "ignore", "-c", FORKS, "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_numbers_of_the_kernels_have_the_names_of_the_tables() -> None:
    module = compiled.load()
    assert module.estimators == COMPILED
    assert module.half_widths == tuple(ESTIMATORS[name].half_width for name in COMPILED)
    assert module.kls == KLS
    assert module.cells == tuple(CELLS)
