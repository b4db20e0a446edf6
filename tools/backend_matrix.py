"""What each backend serves, found by calling: the tables of docs/backends.md.

    python tools/backend_matrix.py           # prints the page
    python tools/backend_matrix.py --write   # writes it

The calls are small. A GPU's backends are asked whether they take a call, which needs no GPU: eager code then
computes it. That they compute the same is what the tests are for.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ipvae_kernels as ik
from ipvae_kernels.backend import choice, compiled, cuda, triton
from ipvae_kernels.poisson.estimators import ESTIMATORS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backends.md"
BACKENDS = ("cpu", "cuda", "triton", "eager", "autograd")
B, M, K, T = 3, 8, 8, 2
Call = Callable[[str], object]
# What follows it in the page is written here.
MARK = "<!-- Below: python tools/backend_matrix.py --write -->\n"


def params(dtype: torch.dtype = torch.float32, decoder: bool = False) -> ik.PoissonParams:
    """Of a small Poisson model."""
    generator = torch.Generator().manual_seed(0)
    dictionary = None if decoder else 0.1 * torch.randn(M, K, generator=generator, dtype=dtype)
    zeros = torch.zeros(K, dtype=dtype)
    if dictionary is not None:
        dictionary.requires_grad_()
    return ik.PoissonParams(dictionary, torch.zeros(M, dtype=dtype), zeros - 3, zeros[0], zeros)


def gaussian(decoder: bool = False) -> ik.GaussianParams:
    """Of a small Gaussian model."""
    poisson = params(decoder=decoder)
    state = torch.zeros(2, K)
    return ik.GaussianParams(poisson.dictionary, poisson.log_sigma, poisson.log_bias, torch.zeros(2), state)


def twice(loss: Tensor, of: Tensor) -> Tensor:
    """A second derivative."""
    (first,) = torch.autograd.grad(loss, of, create_graph=True)
    return torch.autograd.grad(first.square().sum(), of)[0]


def calls() -> dict[str, Call]:
    """What is asked of each backend, by the name of its row."""
    x, u, module = torch.zeros(B, M), torch.zeros(B, K), nn.Linear(K, M, bias=False)
    wide = torch.float64
    log_rate = torch.zeros(B, K, requires_grad=True)

    def rsample(*estimators: str, **options: Any) -> Call:
        return lambda backend: [
            ik.poisson_rsample(u, estimator=name, seed=0, backend=backend, **options) for name in estimators
        ]

    def update(dtype: torch.dtype = torch.float32) -> Call:
        at = u.to(dtype)
        return lambda backend: ik.log_rate_update(at, at, at, params(dtype), backend=backend)

    def infer(of: Any, like: Tensor = x, **options: Any) -> Call:
        return lambda backend: ik.infer(like, of, T, seed=0, backend=backend, **options)

    def elbo(of: Any, like: Tensor = x, **options: Any) -> Call:
        return lambda backend: ik.elbo(like, of, T, seed=0, backend=backend, **options).loss.backward()  # type: ignore[no-untyped-call]

    def elbo_twice(backend: str) -> Tensor:
        of = params()
        assert of.dictionary is not None
        return twice(ik.elbo(x, of, T, seed=0, backend=backend).loss, of.dictionary)

    def mapped(backend: str) -> Tensor:
        seeds, frames = torch.arange(2), torch.zeros(2, B, M)
        of = params()

        def one(frame: Tensor, seed: Tensor) -> Tensor:
            return ik.infer(frame, of, T, seed=seed, backend=backend, check=False).state.log_rate

        return torch.vmap(one)(frames, seeds)

    arrivals = [name for name in ESTIMATORS if name not in ("hard", "gumbel", "fini2", "fini3")]
    return {
        "`poisson_sample`": lambda backend: ik.poisson_sample(u, seed=0, backend=backend),
        "`poisson_sample` in float64": lambda backend: ik.poisson_sample(u.to(wide), seed=0, backend=backend),
        f"`poisson_rsample`: {', '.join(arrivals)}": rsample(*arrivals),
        "`poisson_rsample`: fini2, fini3": rsample("fini2", "fini3"),
        "`poisson_rsample`: gumbel": rsample("gumbel", upper_bound=5),
        "`poisson_rsample`, second derivative": lambda backend: twice(
            ik.poisson_rsample(log_rate, seed=0, backend=backend).square().sum(), log_rate
        ),
        "`log_rate_update`": update(),
        "`log_rate_update` in float64": update(wide),
        "`step`": lambda backend: ik.step(x, params(), seed=0, backend=backend).recon.sum().backward(),  # type: ignore[no-untyped-call]
        "`infer`": infer(params()),
        "`infer`: Gaussian models": infer(gaussian()),
        "`infer` in float64": infer(params(wide), x.to(wide)),
        "`infer`: `decoder=` a module": infer(params(decoder=True), decoder=module),
        "`infer`: Gaussian, `decoder=` a module": infer(gaussian(decoder=True), decoder=module),
        "`infer` under `torch.vmap`, a seed a row": mapped,
        "`elbo`": elbo(params()),
        "`elbo`: Gaussian models": elbo(gaussian()),
        "`elbo`: gumbel": elbo(params(), estimator="gumbel"),
        "`elbo` in float64": elbo(params(wide), x.to(wide)),
        "`elbo`: `checkpoint=`, `truncate=`": elbo(params(), checkpoint=1, truncate=1),
        "`elbo`: `decoder=` a module": elbo(params(decoder=True), decoder=module),
        "`elbo`, second derivative": elbo_twice,
    }


@contextlib.contextmanager
def as_if_there() -> Iterator[None]:
    """Has the GPU's backends take what they would on a GPU, and eager code compute it."""

    def implementation(package: str, backend: str, *tensors: Tensor) -> ModuleType:
        served = choice.resolve(backend, tensors)
        return importlib.import_module(f"{package}.{served if served == 'cpu' else 'eager'}")

    with contextlib.ExitStack() as stack:
        for module in (cuda, triton):
            stack.enter_context(mock.patch.object(module, "reason", return_value=None))
            stack.enter_context(mock.patch.object(module, "unserved", compiled.not_float32))
        stack.enter_context(mock.patch.object(choice, "implementation", implementation))
        yield


def refusal(call: Call, backend: str) -> str | None:
    """Why a backend does not serve a call, as its error says; None where it does."""
    try:
        call(backend)
    except (ik.BackendError, NotImplementedError) as error:
        found = re.sub(r"^backend '\w+' cannot serve: |\. Choose backend=.*$", "", str(error))
        return found.partition("; ")[0]
    return None


def served() -> str:
    """The table of calls and backends, with the reasons below."""
    rows: list[str] = []
    reasons: dict[str, int] = {}
    with as_if_there():
        for name, call in calls().items():
            cells = []
            for backend in BACKENDS:
                why = refusal(call, backend)
                number = 0 if why is None else reasons.setdefault(why, len(reasons) + 1)
                cells.append(f"no\N{NO-BREAK SPACE}({number})" if number else "yes")
            rows.append(f"| {name} | {' | '.join(cells)} |")
    head = [
        f"| call | {' | '.join(f'`{name}`' for name in BACKENDS)} |",
        f"| --- |{' --- |' * len(BACKENDS)}",
    ]
    notes = [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join(["## What is served", "", *head, *rows, "", *notes, ""])


def options() -> str:
    """The table of options and the ops that take them, with their defaults."""
    ops = (ik.poisson_sample, ik.poisson_rsample, ik.log_rate_update, ik.step, ik.infer, ik.elbo)
    signatures = {op.__name__: inspect.signature(op).parameters for op in ops}
    names = dict.fromkeys(
        name for found in signatures.values() for name, p in found.items() if p.kind is p.KEYWORD_ONLY
    )
    head = [f"| option | {' | '.join(f'`{op}`' for op in signatures)} |", f"| --- |{' --- |' * len(ops)}"]
    rows = []
    for name in names:
        cells = [f"`{found[name].default!r}`" if name in found else "" for found in signatures.values()]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    text = "An option's default, where an op has it; what it means is in the [API](api/ipvae_kernels.md)."
    return "\n".join(["## Options", "", text, "", *head, *rows, ""])


def page() -> str:
    """All of docs/backends.md."""
    prose, _, _ = PAGE.read_text().partition(MARK)
    return "\n".join([prose + MARK, served(), options()])


def main() -> None:
    """Prints the page or writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write docs/backends.md")
    if parser.parse_args().write:
        PAGE.write_text(page())
    else:
        print(page())


if __name__ == "__main__":
    main()
