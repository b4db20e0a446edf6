"""What a CUDA graph needs before it captures calls."""

from __future__ import annotations

from collections.abc import Callable

import torch

_TIMES = 3  # the first compiles and tunes, the others settle what torch's libraries set up lazily


def warmup(call: Callable[[], object]) -> None:
    """Runs what a CUDA graph is about to capture, so that its kernels are compiled and tuned.

    While a graph is captured nothing can be timed, and a kernel that was never run for these sizes says so.
    The calls are made on a stream of their own, as torch asks for. A backward counts: what is captured has to
    be called here.

        def step():
            loss = ipvae_kernels.elbo(x, params, 16, seed=seed, backend="triton", check=False).loss
            return torch.autograd.grad(loss, params.dictionary)

        ipvae_kernels.warmup(step)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            gradient = step()

    Without a GPU it only calls.

    Args:
        call: a function without arguments.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(call):
        raise TypeError(f"call: expected a function without arguments, found {type(call).__name__}")
    if not torch.cuda.is_available():
        call()
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_TIMES):
            call()
    torch.cuda.current_stream().wait_stream(stream)
