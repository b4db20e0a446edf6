"""What a CUDA graph needs before it captures calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from . import checks
from .cells import CELLS
from .params import GaussianParams, PoissonParams
from .poisson import poisson_sample
from .rollout import elbo, infer, step

_TIMES = 3  # the first compiles and tunes, the others settle what torch's libraries set up lazily
_STEPS = 2  # so that every kernel of a rollout runs; none is tuned for their number


def warmup(
    call: Callable[[], object] | Iterable[tuple[int, int, int]],
    *,
    cell: str = "poisson",
    record: Iterable[str] = (),
    device: torch.device | str | None = None,
    **options: Any,
) -> None:
    """Runs what a CUDA graph is about to capture, so that its kernels are compiled and tuned.

    While a graph is captured nothing can be timed, and a kernel that was never run for these sizes says so.
    The calls are made on a stream of their own, as torch asks for. A backward counts: what is captured has to
    be called here::

        def step():
            loss = ipvae_kernels.elbo(x, params, 16, seed=seed, backend="triton", check=False).loss
            return torch.autograd.grad(loss, params.dictionary)

        ipvae_kernels.warmup(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gradient = step()

    Or sizes, for a process that wants its kernels ready before its data come:
    ``warmup([(200, 512, 256)], estimator="fini2")`` runs :func:`infer`, and :func:`elbo` with its backward,
    on random inputs and parameters of each, for two steps (kernels are tuned for sizes, not for steps), and
    of the Poisson cell the ops of which :func:`step` is made.

    Without a GPU it only calls.

    Args:
        call: a function without arguments; or sizes (B, K, M): rows, neurons, pixels.
        cell: whose parameters are made for sizes, "poisson", "gaussian" or "gaussian_relu".
        record: for sizes, what :func:`infer` will be asked to record; kernels that record are others.
        device: for sizes; None: the current GPU, or without one the CPU.
        options: for sizes, arguments of :func:`elbo`; the other functions are passed those that they have.

    Raises:
        TypeError, ValueError: it cannot be called, and holds no sizes; an option is not as described, or
            there is one beside a function.
        BackendError: the backend that is named cannot serve.
    """
    if callable(call):
        if options or record or device is not None or cell != "poisson":
            raise TypeError(
                "call: expected sizes (B, K, M) beside options, found a function, which has its own"
            )
        _on_a_stream(call)
        return
    if isinstance(call, torch.Tensor) or not isinstance(call, Iterable):
        raise TypeError(
            "call: expected a function without arguments, or sizes (B, K, M) of several calls; found "
            f"{type(call).__name__}"
        )
    checks.choice("cell", cell, CELLS)
    names = record if isinstance(record, str) else tuple(record)  # which infer refuses, by its own words
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for sizes in call:
        if not isinstance(sizes, (tuple, list)) or len(sizes) != 3:
            raise ValueError(f"call: expected sizes (B, K, M), found {sizes!r}")
        batch, neurons, pixels = (checks.integer("call", size, 1, 2**31 - 1) for size in sizes)
        _on_a_stream(functools.partial(_rollouts, batch, neurons, pixels, cell, where, names, options))


def _on_a_stream(call: Callable[[], object]) -> None:
    """Calls it; where there is a GPU, so often that nothing is left to set up."""
    if not torch.cuda.is_available():
        call()
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_TIMES):
            call()
    torch.cuda.current_stream().wait_stream(stream)


def _rollouts(
    batch: int,
    neurons: int,
    pixels: int,
    cell: str,
    device: torch.device,
    record: Iterable[str],
    options: dict[str, Any],
) -> None:
    """Every kernel of a rollout of these sizes, once or more."""
    x, params = _problem(batch, neurons, pixels, cell, device)
    seed = torch.zeros((), dtype=torch.int64, device=device)  # and none is drawn from the caller's generator
    elbo(x, params, _STEPS, seed=seed, **options).loss.backward()  # type: ignore[no-untyped-call]
    infer(x, params, _STEPS, record=record, seed=seed, **_known(infer, options))
    if CELLS[cell].counts:
        counts = step(x, params, seed=seed, **_known(step, options)).counts
        counts.sum().backward()  # type: ignore[no-untyped-call]
        poisson_sample(counts.detach(), seed=seed, **_known(poisson_sample, options))


def _known(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function has."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def _problem(
    batch: int, neurons: int, pixels: int, cell: str, device: torch.device
) -> tuple[torch.Tensor, PoissonParams | GaussianParams]:
    """An input and parameters at which nothing overflows, with a gradient for each."""
    generator = torch.Generator("cpu").manual_seed(0)

    def constant(value: float, *shape: int) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.float32, device=device).requires_grad_()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float32, device="cpu", generator=generator).to(device)

    dictionary = (normal(pixels, neurons) * neurons**-0.5).requires_grad_()
    lead = (len(CELLS[cell].states),) if len(CELLS[cell].states) > 1 else ()
    parts = (dictionary, constant(0.0, pixels), constant(-3.0, neurons), constant(-2.0, *lead))
    start = constant(-1.0, *lead, neurons)
    if CELLS[cell].counts:
        return normal(batch, pixels), PoissonParams(*parts, start)
    activation: Literal["relu", "identity"] = "relu" if cell == "gaussian_relu" else "identity"
    return normal(batch, pixels), GaussianParams(*parts, start, activation)
