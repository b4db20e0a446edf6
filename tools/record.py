"""Records what the authors' code computes, for ``python -m ipvae_kernels.replay``.

    python tools/record.py FILE... --trajectories CHECKOUT --estimators CHECKOUT --out FOLDER

Each FILE is a recorded run (or a file of estimators). Its inputs, parameters and draws are given to the code
in a checkout of hadivafaii/IterativeVAE (or hadivafaii/PoissonGradientEstimation), in float64. What that
computes is written to a file of the same name in FOLDER, and printed is how far that is from what FILE held.

Nothing of theirs is copied or rewritten. While it runs, its sources of random numbers return the recorded
draws, and ``Tensor.float``, which would round counts to float32, does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from ipvae_bench.contestants import authors
from numpy.typing import NDArray
from torch import Tensor

from ipvae_kernels.replay import relative_error

Arrays = dict[str, NDArray[Any]]


@contextlib.contextmanager
def recorded_draws(draws: Sequence[Tensor]) -> Iterator[None]:
    """Their samplers return the draws, one after the other; the exponentials recorded are of rate 1."""
    given = iter(draws)

    def exponentials(self: Any, shape: tuple[int, ...]) -> Tensor:
        draw = next(given)
        assert draw.shape[:1] == shape
        scaled: Tensor = draw / self.rate
        return scaled

    with contextlib.ExitStack() as patches:
        for owner, name, replacement in (
            (torch.distributions.Exponential, "rsample", exponentials),
            (torch.distributions.Normal, "rsample", lambda self: self.loc + self.scale * next(given)),
            (torch, "poisson", lambda rate: next(given)),
            (Tensor, "float", lambda self: self),
        ):
            patches.enter_context(mock.patch.object(owner, name, replacement))
        yield
    assert next(given, None) is None


def layer_of(meta: dict[str, Any], arrays: dict[str, Tensor]) -> Any:
    """Their layer with the recorded settings and parameters."""
    layers = authors.load("main.layers")
    poisson = meta["kind"] == "poisson"
    config = SimpleNamespace(
        type=meta["kind"], t_train=meta["T"], n_iters_outer=1, n_iters_inner=meta["n_inner"], inf_type="grad",
        beta_inner=meta["beta_inner"], latent_act=meta["latent_act"], len=1 if poisson else 2,
        init_scale=None, fit_prior=True, seed=0, prior_log_dist="cte", clamp_prior=-2.0,
        clamp_u=meta["clamp_u"][0] if poisson else meta["clamp_u"],
        clamp_du=meta["clamp_du"][0] if poisson else meta["clamp_du"],
    )  # fmt: skip
    layer = (layers.PoissonLayer if poisson else layers.GaussianLayer)(meta["M"], meta["K"], config).double()
    layer.temp.fill_(meta["temperature"])
    if meta["n_exp"] is not None:
        layer.n_exp.fill_(meta["n_exp"])
    with torch.no_grad():
        layer.phi.weight.copy_(arrays["weight"])
        layer.dec_log_sigma.copy_(arrays["dec_log_sigma"][None])
        layer.log_bias.copy_(arrays["log_bias"][None])
        for of_state in range(config.len):
            layer.log_lr[of_state].copy_(arrays["log_lr"][of_state])
            layer.u_init[of_state].copy_(arrays["u_init"][of_state][None])
    return layer


def trajectory(recorded: Arrays) -> Arrays:
    """What their layer computes from a recorded run's inputs, parameters and draws."""
    meta = json.loads(str(recorded["meta"]))
    arrays = {name: torch.as_tensor(array) for name, array in recorded.items() if array.dtype.kind == "f"}
    draws = next(arrays[name] for name in ("exp_noise", "spikes", "normal_noise") if name in arrays)
    layer, steps = layer_of(meta, arrays), []
    with recorded_draws(list(draws.flatten(0, 1))):
        for t in range(meta["T"]):
            x = arrays["x"][t] if meta["moving_input"] else arrays["x"]
            layer.time = t
            with watched(layer) as samples:
                layer(x)
                layer.generate()
            posterior, prior = torch.stack(layer.u), torch.stack(layer.u_prior)
            steps.append(
                {
                    "u": posterior.squeeze(0),
                    "z_infer": torch.stack(samples[:-1]),
                    "z_generate": samples[-1],
                    "recon_mean": layer.conditional.loc,
                    "loss_recon": layer.loss_recon(x),
                    "loss_kl": layer.loss_kl(),
                    "loss_kl_exact": exact_kl(posterior[0], prior[0]),
                }
            )
    computed = {name: torch.stack([step[name] for step in steps]) for name in steps[0]}
    terms = computed["loss_recon"] + meta["beta_outer"] * computed["loss_kl"].sum(-1)
    computed["loss"] = terms.mean() * (256 / meta["M"])
    if "grad_weight" in recorded:
        computed["loss"].backward()  # type: ignore[no-untyped-call]
        computed |= gradients(layer)
    return {name: tensor.detach().numpy() for name, tensor in computed.items() if name in recorded}


@contextlib.contextmanager
def watched(layer: Any) -> Iterator[list[Tensor]]:
    """The samples that a layer draws within."""
    samples: list[Tensor] = []
    update = layer.update_inference_state

    def keep(temperature: float | None = None) -> None:
        update(temperature)
        samples.append(layer.samples)

    with mock.patch.object(layer, "update_inference_state", keep):
        yield samples


def exact_kl(posterior: Tensor, prior: Tensor) -> Tensor:
    """The KL between Poisson distributions, which their code has not: see ``kl`` in the README."""
    d = posterior - prior
    return torch.exp(prior) * (1 + torch.exp(d) * (d - 1))


def gradients(layer: Any) -> dict[str, Tensor]:
    """Of the layer's parameters, by the names of a recorded run."""
    return {
        "grad_weight": layer.phi.weight.grad,
        "grad_dec_log_sigma": layer.dec_log_sigma.grad[0],
        "grad_log_bias": layer.log_bias.grad[0],
        "grad_log_lr": torch.cat([parameter.grad for parameter in layer.log_lr]),
        "grad_u_init": torch.cat([parameter.grad for parameter in layer.u_init]),
    }


def estimators(recorded: Arrays) -> Arrays:
    """What their estimators compute from the recorded log rates and draws."""
    theirs = importlib.import_module("poisson_grad_estimators")

    exponentials, of_gumbel = (torch.as_tensor(recorded[name]) for name in ("exp_noise", "gsm_exponential"))
    computed = {}
    for case in json.loads(str(recorded["cases"])):
        family, name, temperature = case.split("/")
        u = torch.as_tensor(recorded["log_rate"]).requires_grad_()
        if family == "gsm":
            gumbel = theirs.GumbelSoftmaxPoisson(u, float(temperature), "fixed", int(name))
            with mock.patch.object(Tensor, "exponential_", lambda self: self.copy_(of_gumbel)):
                z = gumbel.aggregate_samples(gumbel.rsample())
        else:
            with recorded_draws([exponentials]):
                z = theirs.EATPoisson(u, float(temperature), name, n_exp=len(exponentials)).rsample()
        (gradient,) = torch.autograd.grad(z.sum(), u)
        computed[f"{case}/z"], computed[f"{case}/dz_dlog_rate"] = z.detach().numpy(), gradient.numpy()
    return computed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--trajectories", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--estimators", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    sys.path.append(str(options.estimators))
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.files:
        with np.load(path, allow_pickle=False) as archive:
            recorded = dict(archive)
        with authors.importable(options.trajectories):
            computed = estimators(recorded) if "cases" in recorded else trajectory(recorded)
        errors = [
            relative_error(torch.as_tensor(array), torch.as_tensor(recorded[name]))
            for name, array in computed.items()
        ]
        print(f"{path.name}: {len(errors)} arrays computed again, largest relative error {max(errors):.1e}")
        np.savez_compressed(options.out / path.name, **(recorded | computed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
