"""log_rate_update: its equations, its backward by hand, errors, torch integration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import ipvae_kernels as ik
from ipvae_kernels.update import eager

NAMES = ("log_rate", "log_rate_prior", "drive", "log_bias", "log_lr")
CONSTANTS = [
    {},
    {"leak": 0.7},
    {"leak": 0.7, "clamp_u": 2.0, "clamp_du": 2.0},
    {"clamp_u": 5.5, "clamp_du": 3.0},
]


def inputs(
    rows: int = 6, neurons: int = 11, *, dtype: torch.dtype = torch.float64, grad: bool = False
) -> list[Tensor]:
    """Drives large enough that every clamp and floor is in force somewhere."""
    generator = torch.Generator().manual_seed(3)
    draw = [
        torch.randn(s, generator=generator, dtype=torch.float64)
        for s in ((rows, neurons),) * 3 + ((neurons,), ())
    ]
    u, prior, drive, bias, lr = draw
    tensors = [2 * u - 1, 2 * prior - 1, 30 * drive, 0.5 * bias - 2, 0.2 * lr - 0.5]
    return [tensor.to(dtype).requires_grad_(grad) for tensor in tensors]


class Step(NamedTuple):
    """Anything with these two attributes serves as params."""

    log_bias: Tensor
    log_lr: Tensor


def update(tensors: list[Tensor], **arguments: Any) -> Tensor:
    *wide, log_bias, log_lr = tensors
    return ik.log_rate_update(*wide, Step(log_bias, log_lr), **arguments)


def formula(
    u: Tensor, prior: Tensor, drive: Tensor, log_bias: Tensor, log_lr: Tensor,
    leak: float = 0.0, clamp_u: float = 10.0, clamp_du: float = 10.0,
) -> Tensor:  # fmt: skip
    """The published equations, symbol by symbol."""
    g = -drive + leak * (u - prior)
    du = torch.maximum(-log_lr.exp() * (g + log_bias.exp()), torch.tensor(-8.0, dtype=u.dtype))
    du = clamp_du - F.softplus(clamp_du - du, threshold=60)
    new = torch.maximum(u + du, torch.tensor(-8.0, dtype=u.dtype))
    return clamp_u - F.softplus(clamp_u - new, threshold=60)


@pytest.mark.parametrize("constants", CONSTANTS, ids=str)
def test_equations(constants: dict[str, float], backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype)
    expected = formula(*(tensor.double() for tensor in tensors), **constants)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    torch.testing.assert_close(
        update(tensors, backend=backend, **constants).double(), expected, rtol=tolerance, atol=tolerance
    )
    pre = tensors[4].exp() * (tensors[2] - tensors[3].exp())
    assert bool((pre < -8).any() and (pre > 10).any() and (expected == expected.min()).any())


@pytest.mark.parametrize("constants", CONSTANTS, ids=str)
def test_backward_by_hand_is_that_of_autograd(
    constants: dict[str, float], backend: str, dtype: torch.dtype
) -> None:
    weight = torch.randn(6, 11, dtype=torch.float64)
    reference = inputs(grad=True)
    expected = torch.autograd.grad(
        (weight * update(reference, backend="autograd", **constants)).sum(), reference
    )
    tensors = inputs(dtype=dtype, grad=True)
    ours = torch.autograd.grad((weight * update(tensors, backend=backend, **constants)).sum(), tensors)
    for name, a, b in zip(NAMES, ours, expected, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(
                a, b, rtol=1e-11, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            error = (a.double() - b).abs().max() / (b.abs().max() + 1e-12)
            assert float(error) < 2e-6, name


@pytest.mark.parametrize("constants", CONSTANTS, ids=str)
def test_autograd_reference_is_the_formula(constants: dict[str, float]) -> None:
    weight, tensors = torch.randn(6, 11, dtype=torch.float64), inputs(grad=True)
    results = [
        torch.autograd.grad((weight * new).sum(), tensors)
        for new in (update(tensors, backend="autograd", **constants), formula(*tensors, **constants))
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "autograd"])
def test_gradcheck(backend: str) -> None:
    tensors = inputs(3, 4, grad=True)
    with torch.no_grad():
        tensors[2].mul_(0.1)  # away from the kinks
    assert torch.autograd.gradcheck(
        lambda *tensors: update(list(tensors), leak=0.5, backend=backend), tensors
    )


def test_small_updates_keep_their_digits() -> None:
    """An update of 1e-6 must not drown in the rounding of the ceiling."""
    exact = eager.soft_clamp(torch.tensor([1e-6, -1e-6, 0.0], dtype=torch.float64), 10.0)
    single = eager.soft_clamp(torch.tensor([1e-6, -1e-6, 0.0]), 10.0)
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=1e-11)


def test_ceilings_and_floors(backend: str, dtype: torch.dtype) -> None:
    u, bias, lr = (
        torch.zeros(1, 3, dtype=dtype),
        torch.full((3,), -30.0, dtype=dtype),
        torch.zeros((), dtype=dtype),
    )
    drive = torch.tensor([[1e6, -1e6, 0.0]], dtype=dtype)
    new = update([u, u, drive, bias, lr], backend=backend)
    clamped = 10 - math.log1p(math.exp(10 - 10.0))  # du = 10, u = softclamp(10)
    low = 10 - math.log1p(math.exp(10 - (10 - math.log1p(math.exp(18.0)))))
    expected = [
        [clamped, max(low, -8.0), 10 - math.log1p(math.exp(10.0 - (10 - math.log1p(math.exp(10.0)))))]
    ]
    torch.testing.assert_close(new.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=3e-6)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (2, 0)])
def test_leading_shapes(lead: tuple[int, ...], backend: str, dtype: torch.dtype) -> None:
    u, prior, drive, log_bias, log_lr = inputs(6, 5, dtype=dtype)
    rows = math.prod(lead)
    wide = [tensor[:rows].reshape(*lead, 5).requires_grad_() for tensor in (u, prior, drive)]
    new = update([*wide, log_bias.requires_grad_(), log_lr.requires_grad_()], backend=backend)
    assert new.shape == (*lead, 5)
    assert torch.equal(
        new.reshape(rows, 5),
        update([u[:rows], prior[:rows], drive[:rows], log_bias, log_lr], backend=backend),
    )
    gradients = torch.autograd.grad(new.sum(), [*wide, log_bias, log_lr])
    assert [tuple(g.shape) for g in gradients] == [(*lead, 5)] * 3 + [(5,), ()]
    if rows == 0:
        assert all(float(g.sum()) == 0 for g in gradients)


def test_non_contiguous_inputs(backend: str, dtype: torch.dtype) -> None:
    u, prior, drive, log_bias, log_lr = inputs(8, 12, dtype=dtype)
    odd = [
        u.T.contiguous().T,
        prior,
        drive.T.contiguous().T,
        log_bias.repeat_interleave(2)[::2],
        log_lr.expand(1)[0],
    ]
    assert not odd[0].is_contiguous()
    assert not odd[3].is_contiguous()
    expected = update([u, prior, drive, log_bias, log_lr], backend=backend)
    assert torch.equal(update(odd, backend=backend), expected)
    odd[0].requires_grad_()
    (gradient,) = torch.autograd.grad(
        update(odd, backend=backend).sum(), odd[0]
    )  # an expanded upstream gradient
    u.requires_grad_()
    (expected,) = torch.autograd.grad((update([u, *odd[1:]], backend=backend) * torch.ones_like(u)).sum(), u)
    assert torch.equal(gradient, expected)


def test_inputs_are_left_alone(backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype, grad=True)
    before = [tensor.detach().clone() for tensor in tensors]
    update(tensors, leak=0.3, backend=backend).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("index", range(5), ids=NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_is_refused(index: int, value: float, backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype)
    tensors[index].view(-1)[0] = value
    with pytest.raises(ValueError, match=f"{NAMES[index]}: expected finite values, found 1 of"):
        update(tensors, backend=backend)


def test_nan_stays_where_it_is(backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype)
    clean = update(tensors, backend=backend)
    tensors[2][1, 2] = math.nan
    new = update(tensors, backend=backend, check=False)
    nan = torch.isnan(new)
    assert nan.nonzero().tolist() == [[1, 2]]
    assert torch.equal(new[~nan], clean[~nan])


BAD = [
    ("log_rate", torch.zeros(()), {}, ValueError, r"log_rate: expected shape \[\.\.\., K\], found \[\]"),
    (
        "log_rate_prior",
        torch.zeros(6, 10),
        {},
        ValueError,
        r"log_rate_prior: expected shape .* \[6, 11\], found \[6, 10\]",
    ),
    (
        "drive",
        torch.zeros(11),
        {},
        ValueError,
        r"drive: expected shape that of log_rate = \[6, 11\], found \[11\]",
    ),
    ("log_bias", torch.zeros(10), {}, ValueError, r"log_bias: expected shape \[K\] = \[11\], found \[10\]"),
    ("log_lr", torch.zeros(1), {}, ValueError, r"log_lr: expected shape \[\] = \[\], found \[1\]"),
    (
        "drive",
        torch.zeros(6, 11).double(),
        {},
        TypeError,
        "drive: expected dtype torch.float32 as that of log_rate",
    ),
    ("drive", [[0.0]], {}, TypeError, "drive: expected a torch.Tensor, found list"),
    (None, None, {"leak": -1}, ValueError, "leak: expected a finite number of at least 0, found -1"),
    (None, None, {"leak": True}, TypeError, "leak: expected a number, found bool"),
    (None, None, {"clamp_u": -8.0}, ValueError, "clamp_u: expected a finite number above -8, found -8.0"),
    (
        None,
        None,
        {"clamp_du": math.nan},
        ValueError,
        "clamp_du: expected a finite number above -8, found nan",
    ),
    (None, None, {"check": None}, TypeError, "check: expected a bool"),
    (None, None, {"backend": "gpu"}, ValueError, "backend: expected one of"),
]


@pytest.mark.parametrize(("name", "value", "arguments", "error", "message"), BAD)
def test_bad_arguments(
    name: str | None, value: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    tensors: list[Any] = inputs(dtype=torch.float32)
    if name:
        tensors[NAMES.index(name)] = value
    with pytest.raises(error, match=message):
        update(tensors, **arguments)


def test_opcheck(backend: str, dtype: torch.dtype) -> None:
    operator, tensors = torch.ops.ipvae_kernels, inputs(dtype=dtype)
    arguments = (*tensors, torch.tensor([0.5, 0.2, 10.0, 10.0], dtype=torch.float64), backend, True)
    torch.library.opcheck(operator.log_rate_update.default, arguments)
    backward = operator.log_rate_update_backward.default
    torch.library.opcheck(backward, (torch.ones(6, 11, dtype=dtype), *arguments))


def test_compile_without_graph_breaks(backend: str) -> None:
    tensors = inputs(dtype=torch.float32, grad=True)

    def loss(*tensors: Tensor) -> Tensor:
        return update(list(tensors), leak=0.3, backend=backend).sin().sum()

    results = [
        torch.autograd.grad(f(*tensors), tensors)
        for f in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_raises_half_precision(backend: str) -> None:
    tensors = inputs(dtype=torch.float32)
    half = [tensor.bfloat16() if i < 3 else tensor for i, tensor in enumerate(tensors)]
    for name in (backend, "autograd"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            new = update(half, backend=name)
        assert new.dtype == torch.float32
        assert torch.equal(new, update([tensor.float() for tensor in half], backend=name))


def by_rows(*tensors: Tensor, backend: str) -> Tensor:
    return update(list(tensors), leak=0.5, clamp_u=3.0, clamp_du=2.5, backend=backend)


def test_second_derivatives() -> None:
    """By finite differences in float64; drives away from the floors, where there are none."""
    tensors = inputs(2, 3, grad=True)
    with torch.no_grad():
        tensors[2].mul_(0.1)
    assert torch.autograd.gradgradcheck(lambda *given: by_rows(*given, backend="eager"), tensors)


def test_learning_through_a_gradient(backend: str, dtype: torch.dtype) -> None:
    """A penalty on a gradient, in every tensor, against autograd through the forward."""
    results = []
    for name in (backend, "autograd"):
        tensors = inputs(dtype=dtype, grad=True)
        new = by_rows(*tensors, backend=name)
        first = torch.autograd.grad(new.square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(part.square().sum() for part in first), tensors))
    for name, a, b in zip(NAMES, *results, strict=True):
        scale = float(b.abs().max())
        assert scale > 0
        torch.testing.assert_close(
            a, b, rtol=0, atol=scale * 1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("transform", ["grad", "jacrev", "jvp", "jacfwd", "hessian", "vmap", "per sample"])
def test_torch_func(transform: str, backend: str, dtype: torch.dtype) -> None:
    """Every transform of the op by hand equals that of plain PyTorch."""
    tensors = inputs(3, 4, dtype=dtype)

    def total(u: Tensor, backend: str) -> Tensor:
        return by_rows(u, *tensors[1:], backend=backend).square().sum(-1)

    def run(name: str) -> Any:
        u, prior, drive, log_bias, log_lr = tensors

        def row(bias: Tensor, *wide: Tensor) -> Tensor:
            return by_rows(*wide, bias, log_lr, backend=name)

        if transform == "jvp":
            return torch.func.jvp(lambda given: total(given, name), (u,), (u.sin(),))[1]
        if transform == "vmap":
            return torch.func.vmap(row, in_dims=(None, 0, 0, 0))(log_bias, u, prior, drive)
        if transform == "per sample":
            slope = torch.func.grad(lambda bias, given: row(bias, given, prior[0], drive[0]).sum())
            return torch.func.vmap(slope, in_dims=(None, 0))(log_bias, u)
        function = getattr(torch.func, transform)
        summed = transform in ("grad", "hessian")
        return function(lambda given: total(given, name).sum() if summed else total(given, name))(u)

    torch.testing.assert_close(run(backend), run("autograd"), rtol=1e-4, atol=1e-4)


def test_hessian_of_a_sum(backend: str) -> None:
    """Whose gradient is an expanded number; in expanded log rates too."""
    _, prior, drive, log_bias, log_lr = inputs(dtype=torch.float32)

    def total(u: Tensor, name: str) -> Tensor:
        return update([u.expand_as(prior), prior, drive, log_bias, log_lr], backend=name).sum()

    for u in (prior.sin(), prior[:1]):
        ours, reference = (torch.func.hessian(lambda u, n=n: total(u, n))(u) for n in (backend, "autograd"))
        assert bool(reference.any())
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_two_compilations_for_any_constants() -> None:
    tensors = inputs(dtype=torch.float32)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(*tensors: Tensor, leak: float, clamp: float) -> Tensor:
        return update(list(tensors), leak=leak, clamp_u=clamp, clamp_du=clamp)

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for i in range(5):
        constants = {"leak": 0.1 * i, "clamp": 2.0 + i}
        assert torch.equal(compiled(*tensors, **constants), run(*tensors, **constants))
    assert counter.frame_count <= 2


def test_results_and_gradients_out_of_range_are_refused(backend: str, dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype)
    tensors[2].zero_()
    tensors[3].fill_(-1000.0)  # no inhibition
    tensors[4].fill_(1000.0)  # an infinite step, times a drive of 0
    with pytest.raises(ValueError, match="the result 'log_rate' is not finite: the step left the range"):
        update(tensors, backend=backend)
    tensors = inputs(dtype=dtype)
    tensors[3].fill_(1000.0)
    tensors[3].requires_grad_()
    new = update(tensors, backend=backend)
    with pytest.raises(ValueError, match="the result 'gradient of log_bias' is not finite"):
        new.sum().backward()
