"""Two processes of torch.distributed: data-parallel gradients, and noise from generators of one state."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAECell, IPVAEConfig
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

import ipvae_kernels as ik

if not distributed.is_available():
    pytest.skip("torch is built without torch.distributed", allow_module_level=True)

WORLD = 2
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "poisson": IPVAE(IPVAEConfig(n_inputs=8, n_latents=12, init_scale=0.3)),
        "gaussian": IGVAE(IGVAEConfig(n_inputs=8, n_latents=12, init_scale=0.3)),
        "cell": IPVAECell(8, 12),
    }


def loss_of(model: torch.nn.Module, x: Tensor, offset: int) -> Tensor:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(inner, IPVAECell):
        result = model(x, seed=3, sample_offset=offset)
        return result.recon.mean() + result.kl.mean()
    return model(x, 4, seed=3, sample_offset=offset).loss


def gradients(model: torch.nn.Module, x: Tensor, offset: int = 0) -> list[Tensor]:
    loss_of(model, x, offset).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def a_rank(rank: int, world: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    rows = slice(3 * rank, 3 * rank + 3)
    for name, model in models().items():
        wrapped = DistributedDataParallel(model, find_unused_parameters=name == "gaussian")
        found[name] = gradients(wrapped, X[rows], 3 * rank)
    torch.manual_seed(0)  # what a script does, in every process
    model, rates = models()["poisson"], torch.zeros(3, 200)
    torch.manual_seed(0)
    found["elbo"] = model(X[:3], 4).recon.detach()
    found["infer"] = ik.infer(X[:3], model.params, 4).state.log_rate
    found["step"] = ik.step(X[:3], model.params).counts.detach()
    found["sample"] = ik.poisson_sample(rates)
    found["generator"] = ik.poisson_rsample(rates, generator=torch.Generator().manual_seed(1))
    found["explicit"] = ik.poisson_sample(rates, seed=5)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(run_ranks: Callable[[str, int], list[Any]]) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return run_ranks(__file__, WORLD)


@pytest.mark.parametrize("name", ["poisson", "gaussian", "cell"])
def test_data_parallel_gradients_are_those_of_the_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    whole = gradients(copy.deepcopy(models()[name]), X)
    assert len(whole) >= 5
    for found in ranks:
        for ours, expected in zip(found[name], whole, strict=True):
            assert float((ours - expected).norm()) <= 1e-6 * float(expected.norm())


@pytest.mark.parametrize("op", ["elbo", "infer", "step", "sample", "generator"])
def test_equal_generators_are_not_equal_noise(op: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (found[op] for found in ranks)
    assert not torch.equal(first, second)


def test_a_seed_that_is_given_is_that_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert torch.equal(ranks[0]["explicit"], ranks[1]["explicit"])
    assert torch.equal(ranks[0]["explicit"], ik.poisson_sample(torch.zeros(3, 200), seed=5))


def test_rank_0_draws_what_one_process_draws(ranks: list[dict[str, Any]]) -> None:
    drawn = ik.poisson_rsample(torch.zeros(3, 200), generator=torch.Generator().manual_seed(1))
    assert torch.equal(ranks[0]["generator"], drawn)


if __name__ == "__main__":
    a_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
