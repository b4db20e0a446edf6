"""What only kernels have: known answers of device functions, both drivers, formats of products, offsets.

Runs in the interpreter, in the processes that ``test_interpreter.py`` starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ipvae_kernels as ik
from ipvae_kernels.backend import triton as triton_backend
from ipvae_kernels.rollout.config import RolloutConfig
from ipvae_kernels.rollout.problem import Inputs, Trajectory, Upstream
from ipvae_kernels.rollout.triton import parts, stepped

if not triton_backend.interpreted():
    pytest.skip("runs in the processes of test_interpreter.py", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from ipvae_kernels.backend.triton import math as device_math
from ipvae_kernels.backend.triton.philox import exponential, philox
from ipvae_kernels.poisson.triton import draw_kernel
from ipvae_kernels.rollout import eager
from ipvae_kernels.rollout import triton as rollout

Problem = Callable[..., tuple[Tensor, Any]]

# Known answers published with Random123: rounds, counter, key, output.
KNOWN = [
    (7, [0] * 6, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, [0xFFFFFFFF] * 6, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (10, [0] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, [0xFFFFFFFF] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        10,
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@triton.jit
def philox_kernel(words_ptr, out_ptr, ROUNDS: tl.constexpr):
    a, b, c, d = philox(
        tl.load(words_ptr).to(tl.uint32), tl.load(words_ptr + 1).to(tl.uint32),
        tl.load(words_ptr + 2).to(tl.uint32), tl.load(words_ptr + 3).to(tl.uint32),
        tl.load(words_ptr + 4).to(tl.uint32), tl.load(words_ptr + 5).to(tl.uint32), ROUNDS,
    )  # fmt: skip
    tl.store(out_ptr, a.to(tl.int64))
    tl.store(out_ptr + 1, b.to(tl.int64))
    tl.store(out_ptr + 2, c.to(tl.int64))
    tl.store(out_ptr + 3, d.to(tl.int64))


@pytest.mark.parametrize(("rounds", "words", "answer"), KNOWN, ids=lambda value: str(value)[:24])
def test_triton_philox_known_answers(rounds: int, words: list[int], answer: str) -> None:
    out = torch.zeros(4, dtype=torch.int64)
    philox_kernel[(1,)](torch.tensor(words), out, rounds)
    assert [f"{int(word):08x}" for word in out] == answer.split()


@triton.jit
def functions_kernel(x_ptr, word_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    e, em1 = device_math.exp_pair(x)
    tl.store(out_ptr + at, e)
    tl.store(out_ptr + N + at, em1)
    tl.store(out_ptr + 2 * N + at, device_math.log(e))
    clamped, slope = device_math.soft_clamp(x, 3.0)
    tl.store(out_ptr + 3 * N + at, clamped)
    tl.store(out_ptr + 4 * N + at, slope)
    tl.store(out_ptr + 5 * N + at, exponential(tl.load(word_ptr + at).to(tl.uint32)))


def test_triton_functions_are_float32_grade() -> None:
    x = torch.linspace(-80, 80, 4096)
    words = torch.arange(4096) * 2**20 + 12345
    out = torch.empty(6, 4096)
    functions_kernel[(1,)](x, words, out, 4096)
    exact = x.double()
    rate = torch.exp(exact)
    v = (words.double() + 0.5) / 2**32
    expected = [
        rate, torch.expm1(exact), torch.log(out[0].double()),
        torch.minimum(exact, torch.tensor(3.0)) - torch.log1p(torch.exp(-(exact - 3).abs())),
        torch.sigmoid(3 - exact), -torch.log1p(-v),
    ]  # fmt: skip
    for ours, reference, atol in zip(out, expected, (0, 0, 1e-7, 1e-7, 0, 0), strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=5e-7, atol=atol)


CONFIGS = [
    {},
    {"n_inner": 3, "beta_inner": 0.6},
    {"single_draw": True, "step": 3},
    {"kl": "released", "estimator": "fini2", "sample_offset": 5, "neuron_offset": 8},
    {"drive": "expected", "decay": 0.3, "estimator": "fini2"},
    {"cell": "gaussian", "single_draw": True, "step": 3, "neuron_offset": 8},
    {"cell": "gaussian_relu", "n_inner": 2, "beta_inner": 0.6},
]


@pytest.mark.parametrize("moving", [False, True], ids=["static", "moving"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_triton_drivers_agree(config: dict[str, Any], moving: bool, problem: Problem) -> None:
    """More than one tile in every direction; the same counts, and gradients to rounding, as eager."""
    cfg = RolloutConfig(**{"steps": 2, "estimator": "cubic", "temperature": 0.1, "clamp_u": 4.0, **config})
    rows = 17 if config else 33
    gaussian = {"poisson": "", "gaussian": "identity", "gaussian_relu": "relu"}[cfg.cell]
    x, params = problem(rows, 70, 70, moving=2 if moving else 0, dtype=torch.float32, gaussian=gaussian)
    *tensors, start = [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]
    start = start.unsqueeze(-2).repeat_interleave(rows, -2)
    inputs = Inputs(*tensors, start)
    *loss, trajectory = eager.elbo(inputs, torch.tensor(4), cfg)
    upstream = Upstream(*map(torch.randn_like, loss))
    gradients = eager.elbo_backward(upstream, inputs, trajectory, cfg)
    for driver in ("resident", "stepped"):
        with rollout.driver(driver):
            *of_loss, kept = rollout.elbo(inputs, torch.tensor(4), cfg)
            ours = rollout.elbo_backward(upstream, inputs, trajectory, cfg)
        for mine, theirs in zip((*of_loss, *kept), (*loss, *trajectory), strict=True):
            wrong = ~torch.isclose(mine, theirs, rtol=2e-4, atol=2e-4)
            assert float(wrong.float().mean()) < 2e-3, driver
        for a, b in zip(ours, gradients, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5, driver


@pytest.mark.parametrize("record_every", [1, 2])
@pytest.mark.parametrize("single_draw", [False, True])
def test_triton_drivers_record_the_same(single_draw: bool, record_every: int, problem: Problem) -> None:
    x, params = problem(17, 20, 70, dtype=torch.float32)
    arguments: dict[str, Any] = {
        "seed": 3, "record": list(eager.RECORDS), "record_every": record_every, "single_draw": single_draw
    }  # fmt: skip
    reference = ik.infer(x, params, 4, backend="eager", **arguments)
    for driver in ("resident", "stepped"):
        with rollout.driver(driver):
            result = ik.infer(x, params, 4, backend="triton", **arguments)
        assert torch.equal(result.records["counts"], reference.records["counts"]), driver
        for name, record in reference.records.items():
            torch.testing.assert_close(result.records[name], record, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("driver", ["resident", "stepped"])
@pytest.mark.parametrize("estimator", ["hard", "fini2"])
def test_triton_decodes_any_count(estimator: str, driver: str, problem: Problem) -> None:
    """Counts of a batch on either side of 256 and of 65,536, where exact bfloat16 takes another piece."""
    cfg = RolloutConfig(steps=1, estimator=estimator, clamp_u=20.0)
    x, params = problem(4, 20, 70, dtype=torch.float32)
    *tensors, _ = [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]
    start = torch.tensor([0.0, 5.5, 9.0, 12.0]).unsqueeze(1).expand(4, 70).contiguous()
    with rollout.driver(driver):
        kept = rollout.elbo(Inputs(*tensors, start), torch.tensor(4), cfg).trajectory
    counts, errors = kept.counts, kept.errors
    largest = counts[0, 0].amax(1)
    assert largest[0] < 256
    assert 256 < largest[2] < 2**16 < largest[3]
    decoded = counts.double() @ params.dictionary.T.double()
    scale = counts.double() @ params.dictionary.T.double().abs()
    wrong = (x.double() - errors.double() - decoded).abs() / (scale + x.abs())
    assert float(wrong.max()) < 3e-7


@pytest.mark.parametrize("config", [{}, {"n_inner": 2, "beta_inner": 0.6}, {"cell": "gaussian"}], ids=str)
def test_neurons_in_two_parts_meet_at_the_seam(config: dict[str, Any], problem: Problem) -> None:
    """Two stepped drivers, each with half of the neurons, that add up their errors draw by draw."""
    cfg = RolloutConfig(**{"steps": 3, "estimator": "cubic", "temperature": 0.1, "clamp_u": 4.0, **config})
    rows, pixels, neurons = 5, 20, 40
    gaussian = "identity" if cfg.cell == "gaussian" else ""
    x, params = problem(rows, pixels, neurons, dtype=torch.float32, gaussian=gaussian)
    *tensors, start = [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]
    whole = Inputs(*tensors, start.unsqueeze(-2).repeat_interleave(rows, -2))
    *loss, trajectory = eager.elbo(whole, torch.tensor(4), cfg)
    upstream = Upstream(*map(torch.randn_like, loss))
    expected = eager.elbo_backward(upstream, whole, trajectory, cfg)

    def run(part: int, meet: stepped.Meet) -> tuple[Tensor, ...]:
        own = slice(part * neurons // 2, (part + 1) * neurons // 2)
        of_part = cfg._replace(neuron_offset=own.start)
        inputs = Inputs(
            x=x if part == 0 else torch.zeros_like(x),
            dictionary=whole.dictionary[:, own].contiguous(),
            log_sigma=whole.log_sigma,
            log_bias=whole.log_bias[own].contiguous(),
            log_lr=whole.log_lr,
            log_rate=whole.log_rate[..., own].contiguous(),
        )
        kept = Trajectory.empty(inputs, of_part)
        buffers = stepped.Buffers.of(kept, inputs, of_part)._replace(recon_sums=None)
        every: Any = lambda t: True  # noqa: E731
        stepped.forward(inputs, torch.tensor(4), of_part, buffers, every, every, meet)
        grads = parts.Gradients(*map(torch.empty_like, (kept.errors, kept.drives, kept.drives)))
        precision = torch.exp(-2 * whole.log_sigma)
        grads.errors[:, cfg.n_inner] = (
            upstream.grad_recon.unsqueeze(-1) * kept.errors[:, cfg.n_inner] * precision
        )
        above = upstream._replace(grad_log_rate=upstream.grad_log_rate[..., own].contiguous())
        grad_lr, grad = stepped.backward(above, inputs, kept, grads, of_part, meet)
        return kept.path, kept.counts, kept.errors, grad_lr, grad

    first, second = in_turns(run)
    joined = [torch.cat(halves, -1) for halves in zip(first[:2], second[:2], strict=True)]
    for name, ours in zip(("path", "counts"), joined, strict=True):
        torch.testing.assert_close(ours, getattr(trajectory, name), rtol=2e-4, atol=2e-4, msg=name)
    assert torch.equal(first[2], second[2])
    torch.testing.assert_close(first[2], trajectory.errors, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(first[3] + second[3], expected.log_lr, rtol=1e-3, atol=1e-3)
    grad = torch.cat([first[4], second[4]], -1)
    torch.testing.assert_close(grad, expected.log_rate, rtol=1e-3, atol=1e-4)


def in_turns(run: Callable[[int, stepped.Meet], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """What two parts return that meet; one runs at a time: Triton's interpreter is not thread-safe."""
    brought: list[list[Tensor]] = [[], []]
    results: list[Any] = [None, None]
    turns = [threading.Semaphore(1), threading.Semaphore(0)]

    def meet_of(part: int) -> stepped.Meet:
        def meet(tensors: list[Tensor]) -> None:
            brought[part] = tensors
            if part == 1:
                for a, b in zip(*brought, strict=True):
                    a += b
                    b.copy_(a)
            turns[1 - part].release()
            assert turns[part].acquire(timeout=120)

        return meet

    def work(part: int) -> None:
        assert turns[part].acquire(timeout=120)
        try:
            results[part] = run(part, meet_of(part))
        finally:
            turns[1 - part].release()

    threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_triton_driver_follows_the_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = rollout.choose_driver
    monkeypatch.setattr(triton_backend, "version", lambda: (3, 5))
    assert choose(200, 256, 512) == "stepped"
    assert choose(200, 64, 512) == "resident"
    monkeypatch.setattr(triton_backend, "version", lambda: (3, 10))
    assert choose(200, 256, 512) == "resident"
    assert choose(200, 256, 512, "bf16") == "stepped"
    assert choose(4096, 2304, 131072) == "stepped"
    assert choose(200, 256, 131072) == "stepped"
    assert choose(200, 256, 512, major=8) == "stepped"


def test_triton_gradients_and_counts_of_the_public_ops(problem: Problem) -> None:
    x, params = problem(5, 13, 21, dtype=torch.float32, grad=True)
    leaves = [x, params.dictionary, params.log_sigma, params.log_bias, params.log_lr, params.log_rate_init]
    gradients = []
    for backend in ("triton", "cpu"):
        if ik.backends()[backend] != "available":
            pytest.skip(ik.backends()[backend])
        result = ik.elbo(x, params, 3, seed=9, estimator="fini2", backend=backend)
        gradients.append(torch.autograd.grad(result.loss, leaves))
    for ours, theirs in zip(*gradients, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("matmul_precision", ["float32", "tf32", "bf16"])
def test_triton_takes_every_precision(matmul_precision: str, problem: Problem) -> None:
    """Interpreted, factors are rounded to bfloat16 as on a GPU, but not to TF32."""
    x, params = problem(4, 20, 40, dtype=torch.float32)
    exact = ik.infer(x, params, 1, record=("recon",), seed=1, backend="eager")
    ours = ik.infer(
        x, params, 1, record=("recon",), seed=1, matmul_precision=matmul_precision, backend="triton"
    )
    error = (ours.state.log_rate - exact.state.log_rate).abs().max() / exact.state.log_rate.abs().max()
    assert float(error) < (2e-2 if matmul_precision == "bf16" else 1e-6)
    assert (float(error) > 1e-5) == (matmul_precision == "bf16")


def test_triton_reads_the_seed_when_it_runs() -> None:
    """What a replayed CUDA graph does: the same call on the same tensors, whose contents have changed."""
    u, seed = torch.zeros(8, 32), torch.tensor(1)
    first = ik.poisson_sample(u, seed=seed, backend="triton")
    seed.fill_(2)
    second = ik.poisson_sample(u, seed=seed, backend="triton")
    assert not torch.equal(first, second)
    assert torch.equal(second, ik.poisson_sample(u, seed=2, backend="eager"))


def test_triton_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tile of 2.16e9 elements, in memory that is reserved and never touched elsewhere."""
    rows, neurons, tile_rows = 2**24 + 3, 129, 4
    try:
        u, counts = (np.zeros((rows, neurons), dtype=np.float32) for _ in range(2))
    except MemoryError:
        pytest.skip("no 17 GB of address space")
    u[-3:] = 1.0
    program = 2 * (rows // tile_rows)  # two tiles of neurons for each tile of rows
    monkeypatch.setattr(
        interpreter_builder,
        "set_grid_idx",
        lambda x, y, z: setattr(interpreter_builder, "grid_idx", (program, 0, 0)),
    )
    # The interpreter copies what a tensor says it has: one element. Addresses are those of the whole.
    pointers = (torch.from_numpy(array.reshape(-1)[:1]) for array in (u, counts))
    draw_kernel.fn[(1,)](
        next(pointers), torch.tensor(7), next(pointers), None, rows, neurons, 2 << 28, 0, 0, 0, 0.0, None,
        ESTIMATOR=0, BLOCK_K=128, TILE=128 * tile_rows,
    )  # fmt: skip
    expected = ik.poisson_sample(torch.ones(3, 128), seed=7, sample_offset=rows - 3, backend="eager")
    assert torch.equal(torch.from_numpy(counts[-3:, :128]), expected)
    assert not counts[-7:-3].any()
