"""infer and elbo under torch.compile, torch.func, checkpointing and repeated differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import ipvae_kernels as ik

Problem = Callable[..., tuple[Tensor, Any]]
FIELDS = ("dictionary", "log_sigma", "log_bias", "log_lr", "log_rate_init")


def leaves(x: Tensor, params: Any) -> list[Tensor]:
    return [x, *(value for value in vars(params).values() if isinstance(value, Tensor))]


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    """The function compiled in full graphs, and the counter of compilations."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter), counter


def test_two_compilations_for_any_constants(problem: Problem) -> None:
    """One static and one dynamic; results as without, bit for bit. The graph is the same for each backend."""
    params = problem(dtype=torch.float32, grad=True)[1]
    tensors, seed = leaves(params.dictionary, params)[1:], torch.tensor(5)

    def loss(x: Tensor, arguments: dict[str, Any]) -> Tensor:
        return ik.elbo(x, params, 2, seed=seed, n_inner=2, **arguments).loss

    compiled, counter = counted(loss)
    for i in range(5):
        x = problem(batch=3 + i, dtype=torch.float32)[0]
        arguments = {
            "beta": 0.1 * i, "temperature": 1.0 / (1 + i), "beta_inner": 0.2 * i,
            "clamp_u": 5.0 + i, "clamp_du": 4.0 + 0.5 * i, "sample_offset": 7 * i,
        }  # fmt: skip
        ours, plain = compiled(x, arguments), loss(x, arguments)
        assert torch.equal(ours, plain)
        gradients = zip(torch.autograd.grad(ours, tensors), torch.autograd.grad(plain, tensors), strict=True)
        assert all(torch.equal(a, b) for a, b in gradients)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("op", ["infer", "elbo"])
def test_two_compilations_for_a_sequence(op: str, problem: Problem) -> None:
    """The state carries the step, which advances at every call."""
    x, params = problem(dtype=torch.float32)

    def part(x: Tensor, state: ik.State) -> tuple[Tensor, ik.State]:
        if op == "elbo":
            result = ik.elbo(x, params, 3, state=state)
            return result.recon, result.state
        recorded = ik.infer(x, params, 3, state=state, record=["recon"], record_every=3)
        return recorded.records["recon"], recorded.state

    compiled, counter = counted(part)
    ours = plain = ik.State(torch.zeros(3, 9), 0, torch.tensor(5))
    for _ in range(10):
        recon, ours = compiled(x, ours)
        expected, plain = part(x, plain)
        assert torch.equal(recon, expected)
        assert ours.step == plain.step
    assert counter.frame_count <= 2


@pytest.mark.parametrize("op", ["elbo", "truncated", "checkpointed", "log_rate_update", "poisson_rsample"])
def test_non_reentrant_checkpointing(op: str, problem: Problem, backend: str) -> None:
    """Which hands out each saved tensor once; every op that has a backward."""
    x, params = problem(dtype=torch.float32, grad=True)
    u = torch.randn(3, 9, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        if op == "log_rate_update":
            return ik.log_rate_update(u, u.detach(), u.sin(), params, leak=0.5, backend=backend).sum()
        if op == "poisson_rsample":
            return ik.poisson_rsample(u, seed=2, temperature=0.5, backend=backend).sum()
        config = {"truncated": {"truncate": 1}, "checkpointed": {"checkpoint": 1}}.get(op, {})
        return ik.elbo(x, params, 2, seed=1, backend=backend, **config).loss

    tensors = [u, *leaves(x, params)]
    expected = torch.autograd.grad(run(x), tensors, materialize_grads=True)
    ours = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), tensors, materialize_grads=True)
    assert any(bool(gradient.any()) for gradient in expected)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", ["x", *FIELDS])
def test_second_derivatives_are_refused(name: str, problem: Problem, backend: str) -> None:
    """In every tensor alone: no path of one is dropped."""
    x, params = problem(dtype=torch.float32)
    leaf = (x if name == "x" else getattr(params, name)).requires_grad_()
    loss = ik.elbo(x, params, 2, seed=1, backend=backend).loss
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (once,) = torch.autograd.grad(ik.elbo(x, params, 2, seed=1, backend=backend).loss, leaf)
    assert torch.equal(gradient, once)
    with pytest.raises(ik.BackendError, match=r"elbo has no second derivative.*backend='autograd'"):
        gradient.square().sum().backward()


def test_second_derivatives_of_autograd(problem: Problem) -> None:
    x, params = problem(batch=2, pixels=3, neurons=4, grad=True)

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        parameters = ik.PoissonParams(*rest)
        return ik.elbo(
            x, parameters, 2, seed=2, estimator="sigmoid", temperature=0.8, backend="autograd"
        ).loss

    assert torch.autograd.gradgradcheck(run, leaves(x, params), atol=1e-4, rtol=1e-3)


def test_gradients_of_torch_func(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)

    def recon(given: Tensor) -> Tensor:
        return ik.elbo(given, params, 2, seed=1, temperature=0.3, backend=backend).recon.sum(0)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(recon(leaf).sum(), leaf)
    assert torch.equal(torch.func.grad(lambda given: recon(given).sum())(x), expected)
    jacobian = torch.func.jacrev(recon)(x)
    torch.testing.assert_close(jacobian.sum(0), expected, rtol=1e-5, atol=1e-5)
    assert bool((jacobian[0, 1:] == 0).all())  # samples do not see each other


@pytest.mark.parametrize("op", ["infer", "elbo"])
def test_forward_mode_is_refused(op: str, problem: Problem, backend: str) -> None:
    """Where it returned zeros."""
    x, params = problem(dtype=torch.float32)

    def state(given: Tensor) -> Tensor:
        return getattr(ik, op)(given, params, 2, seed=1, backend=backend).state.log_rate

    for run in (
        lambda: torch.func.jvp(state, (x,), (x,)),
        lambda: torch.func.jacfwd(state)(x),
        lambda: torch.func.hessian(lambda given: state(given).sum())(x),
    ):
        with pytest.raises(ik.BackendError, match=f"{op} has no .*backend='autograd'"):
            run()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ik.BackendError, match="autograd"):
        state(torch.autograd.forward_ad.make_dual(x, x))


def test_forward_mode_of_autograd(problem: Problem) -> None:
    x, params = problem()

    def loss(given: Tensor) -> Tensor:
        return ik.elbo(given, params, 2, seed=1, temperature=0.3, backend="autograd").loss

    slope = torch.func.jvp(loss, (x,), (x.sin(),))[1]
    torch.testing.assert_close(slope, (torch.func.grad(loss)(x) * x.sin()).sum())
    torch.testing.assert_close(torch.func.jacfwd(loss)(x), torch.func.jacrev(loss)(x))


def test_rows_of_vmap_are_samples_of_their_own(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    """As one call on the whole batch; gradients of each row are those of the row at its index."""
    x, params = problem(batch=4, dtype=dtype)
    x = x[:1].expand(4, -1)  # equal inputs, so that only the noise differs

    def recon(row: Tensor, offset: int = 3) -> Tensor:
        return ik.elbo(row[None], params, 2, seed=1, sample_offset=offset, backend=backend).recon[:, 0]

    whole = ik.elbo(x, params, 2, seed=1, sample_offset=3, backend=backend).recon.T
    ours = torch.vmap(recon, randomness="different")(x)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    assert len({float(value) for value in ours[:, 0]}) == 4
    assert torch.equal(torch.vmap(recon, randomness="same")(x)[2], recon(x[0]))
    nested = torch.vmap(torch.vmap(recon, randomness="different"), randomness="different")(x.view(2, 2, -1))
    assert len({float(value) for value in nested[..., 0].flatten()}) == 4
    slopes = torch.vmap(torch.func.grad(lambda row: recon(row).sum()), randomness="different")(x)
    for v in range(4):
        alone = torch.func.grad(lambda row, v=v: recon(row, 3 + v).sum())(x[v])
        assert torch.equal(slopes[v], alone)


@pytest.mark.parametrize("checkpointed", [None, 1])
def test_per_sample_gradients_of_parameters(
    checkpointed: int | None, problem: Problem, backend: str, dtype: torch.dtype
) -> None:
    """Sum to those of the batch; segments that the backward runs again draw what the forward drew."""
    x, params = problem(batch=3, dtype=dtype)
    arguments: dict[str, Any] = {"seed": 1, "checkpoint": checkpointed, "backend": backend}

    def loss(dictionary: Tensor, x: Tensor) -> Tensor:
        return ik.elbo(x, replace(params, dictionary=dictionary), 3, **arguments).recon.sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(
        params.dictionary, x.unsqueeze(1)
    )
    expected = torch.func.grad(loss)(params.dictionary, x)
    torch.testing.assert_close(each.sum(0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["infer", "elbo"])
def test_vmap_with_one_draw_for_all_rows_is_refused(op: str, problem: Problem) -> None:
    x, params = problem(dtype=torch.float32)

    def state(row: Tensor, seed: Any, backend: str) -> Tensor:
        return getattr(ik, op)(row[None], params, 2, seed=seed, backend=backend).state.log_rate

    for name in ("eager", "cpu", "autograd"):
        if ik.backends()[name] != "available":
            continue
        with pytest.raises(RuntimeError, match=f"{op}: one seed for all rows.*randomness='different'"):
            torch.vmap(lambda row, name=name: state(row, 1, name))(x)
    with pytest.raises(ik.BackendError, match="noise of their own"):
        torch.vmap(lambda row: state(row, 1, "autograd"), randomness="different")(x)
    with pytest.raises(ik.BackendError, match="sizes that depend on what is drawn"):
        torch.vmap(lambda row: state(row, 1, "autograd"), randomness="same")(x)
    if op == "infer":  # torch cannot sum under a vmap over nothing
        assert torch.vmap(lambda row: state(row, 1, "eager"), randomness="same")(x[:0]).shape == (0, 1, 9)
    rows = torch.vmap(lambda row, seed: state(row, seed, "eager"))(x, torch.tensor([1, 2, 3]))
    assert torch.equal(rows[2], state(x[2], 3, "eager"))


@pytest.mark.parametrize(("value", "result"), [("x", "recon"), ("log_rate_init", "(recon|kl|state)")])
def test_every_result_is_checked(value: str, result: str, problem: Problem, backend: str) -> None:
    """Finite inputs with an infinite loss: x of 1e25, and a prior of e^90."""
    x, params = problem(dtype=torch.float32)
    if value == "x":
        x.fill_(1e25)
    else:
        params.log_rate_init.fill_(90.0)
    message = f"the result '{result}' is not finite: the rollout left the range"
    for served in (backend, "autograd"):
        with pytest.raises(ValueError, match=message):
            ik.elbo(x, params, 2, seed=1, backend=served)
        with pytest.raises(ValueError, match=message):
            ik.infer(x, params, 2, seed=1, record=["zeros", "kl", "recon"], backend=served)


def test_gradients_are_checked(problem: Problem, backend: str) -> None:
    x, params = problem(dtype=torch.float32, grad=True)
    with torch.no_grad():
        params.log_bias.fill_(89.0)
    result = ik.elbo(x, params, 2, seed=1, backend=backend)
    with pytest.raises(ValueError, match=r"the result 'gradient of params\.log_bias' is not finite"):
        result.loss.backward()
    ik.elbo(x, params, 2, seed=1, backend=backend, check=False).loss.backward()
    assert bool(torch.isnan(params.log_bias.grad).any())


def test_a_loss_scaled_to_infinity_passes(problem: Problem, backend: str) -> None:
    """torch.amp.GradScaler lets gradients overflow, and skips the step."""
    x, params = problem(dtype=torch.float32, grad=True)
    (ik.elbo(x, params, 2, seed=1, backend=backend).loss * float("inf")).backward()
    assert not bool(torch.isfinite(params.dictionary.grad).all())


def test_records_from_a_generator(problem: Problem, backend: str, dtype: torch.dtype) -> None:
    x, params = problem(dtype=dtype)
    names = ["kl", "recon"]
    records = ik.infer(x, params, 2, record=(name for name in names), seed=1, backend=backend).records
    assert list(records) == names
    with pytest.raises(TypeError, match="record: expected a collection of names, found int"):
        ik.infer(x, params, 2, record=3, seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", ["infer", "elbo"])
def test_the_state_keeps_its_seed(op: str, problem: Problem, backend: str, dtype: torch.dtype) -> None:
    """The caller may fill a seed tensor anew; a sequence goes on with its own."""
    x, params = problem(dtype=dtype, grad=True)
    seed = torch.tensor(5)
    result = getattr(ik, op)(x, params, 2, seed=seed, backend=backend)
    seed.fill_(6)
    assert int(result.state.seed) == 5
    if op == "elbo":
        result.loss.backward()
