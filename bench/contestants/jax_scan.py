"""The released loop in JAX: one compiled `lax.scan` over the steps, with JAX's random numbers."""

from __future__ import annotations

import itertools
import math
import os
import time
from typing import Any

from ipvae.experiments.baseline import FLOOR, RATE_FLOOR
from ipvae.models.base import SIGMA_CLAMP
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..problem import (
    BETA,
    GRAD_CLIP,
    LR,
    WEIGHT_DECAY,
    Output,
    Prepared,
    Problem,
    Settings,
    Unavailable,
    upstream,
)

BETAS, EPS = (0.9, 0.999), 1e-8


def prepare(problem: Problem, settings: Settings) -> Prepared:
    """Traces and compiles the whole case ahead of time; relaxed counts keep the largest released cut.

    Raises:
        Unavailable: JAX is not installed, or has no device of the kind asked for.
    """
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
    )  # or it takes most of a GPU's memory at once
    try:
        import jax
    except ImportError:
        raise Unavailable("JAX is not installed (pip install 'ipvae-kernels[bench]')") from None
    try:
        device = jax.devices("gpu" if problem.device == "cuda" else "cpu")[0]
    except RuntimeError as error:
        raise Unavailable(f"JAX: {error}") from error
    # In float32, as the others compute: on a GPU JAX would multiply in TF32.
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        function, arguments = _sampling(problem) if problem.x.numel() == 0 else _rollout(problem)
        keys = (jax.random.key(seed) for seed in itertools.count(1))
        begin = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments, next(keys)).compile()
        seconds = time.perf_counter() - begin
    carried = list(arguments)

    def run() -> Output:
        outputs, new = compiled(*carried, next(keys))
        jax.block_until_ready((outputs, new))
        if new is not None:
            carried[0] = new
        return {name: from_dlpack(value) for name, value in outputs.items()}

    return Prepared(run, problem, "lax.scan; JAX chooses its threads", seconds)


def _sampling(problem: Problem) -> tuple[Any, list[Any]]:
    import jax

    case, cut = problem.case, problem.arrivals[0]
    u, gradient = _array(problem.log_rate), _array(upstream(problem))

    def sample(u: Any, key: Any) -> tuple[dict[str, Any], None]:
        return {"counts": _draw(u, key, "hard", 0.0, 0)}, None

    def rsample(u: Any, gradient: Any, key: Any) -> tuple[dict[str, Any], None]:
        counts, pull = jax.vjp(lambda v: _draw(v, key, case.estimator, case.temperature, cut), u)
        return {"counts": counts, "gradient": pull(gradient)[0]}, None

    return (sample, [u]) if case.op == "sample" else (rsample, [u, gradient])


def _rollout(problem: Problem) -> tuple[Any, list[Any]]:
    import jax
    import jax.numpy as jnp

    case, layer = problem.case, problem.model.layer
    released = problem.model.config.kl == "released"
    clamp_u, clamp_du = (problem.model.clamps[name] for name in ("clamp_u", "clamp_du"))
    cut = max(problem.arrivals, default=0)
    x = _array(problem.x)
    params = {
        "phi": _array(layer.phi.weight), "dec_log_sigma": _array(layer.dec_log_sigma[0]),
        "log_bias": _array(layer.log_bias[0]), "log_lr": _array(layer.log_lr[0][0]),
        "u_init": _array(layer.u_init[0][0]),
    }  # fmt: skip

    def draw(u: Any, key: Any) -> Any:
        return _draw(u, key, case.estimator, case.temperature, cut)

    def rollout(p: dict[str, Any], key: Any) -> tuple[Any, dict[str, Any]]:
        log_sigma = SIGMA_CLAMP * jnp.tanh(p["dec_log_sigma"] / SIGMA_CLAMP)
        sigma = jnp.exp(log_sigma)
        constant = log_sigma.sum() + 0.5 * math.log(2.0 * math.pi) * x.shape[1]

        def step(prior: Any, key: Any) -> tuple[Any, tuple[Any, Any]]:
            first, second = jax.random.split(key)
            error = x - draw(prior, first) @ p["phi"].T
            change = jnp.exp(p["log_lr"]) * ((error / sigma**2) @ p["phi"] - jnp.exp(p["log_bias"]))
            change = clamp_du - jax.nn.softplus(clamp_du - jnp.maximum(change, FLOOR))
            u = clamp_u - jax.nn.softplus(clamp_u - jnp.maximum(prior + change, FLOOR))
            error = (x - draw(u, second) @ p["phi"].T) / sigma
            d = u - prior
            kl = jnp.exp(u if released else prior) * (1.0 + jnp.exp(d) * (d - 1.0))
            return u, (0.5 * (error**2).sum(-1) + constant, kl.sum(-1))

        start = jnp.broadcast_to(p["u_init"], (len(x), len(p["u_init"])))
        u, (recon, kl) = jax.lax.scan(step, start, jax.random.split(key, case.steps))
        loss = (recon + BETA * kl).mean() * (256.0 / x.shape[1])
        return loss, {"recon": recon, "kl": kl, "log_rate": u}

    def infer(p: dict[str, Any], key: Any) -> tuple[dict[str, Any], None]:
        return rollout(p, key)[1], None

    def train(optimiser: tuple[Any, Any, Any, Any], key: Any) -> tuple[dict[str, Any], Any]:
        count, p, mean, largest = optimiser
        (_, outputs), grads = jax.value_and_grad(rollout, has_aux=True)(p, key)
        outputs["gradient"] = grads["phi"]
        return outputs, _adamax(grads, count, p, mean, largest)

    if case.op == "infer":
        return infer, [params]
    zeros = jax.tree.map(jnp.zeros_like, params)
    return train, [(jnp.zeros(()), params, zeros, zeros)]


def _adamax(grads: Any, count: Any, p: Any, mean: Any, largest: Any) -> tuple[Any, Any, Any, Any]:
    """A step of the optimiser as torch.optim has it, after clipping the norm of the gradient."""
    import jax
    import jax.numpy as jnp

    norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
    scale = jnp.minimum(1.0, GRAD_CLIP / (norm + 1e-6))
    grads = jax.tree.map(lambda g, w: g * scale + WEIGHT_DECAY * w, grads, p)
    mean = jax.tree.map(lambda m, g: BETAS[0] * m + (1.0 - BETAS[0]) * g, mean, grads)
    largest = jax.tree.map(lambda v, g: jnp.maximum(BETAS[1] * v, jnp.abs(g) + EPS), largest, grads)
    count = count + 1
    rate = LR / (1.0 - BETAS[0] ** count)
    return count, jax.tree.map(lambda w, m, v: w - rate * m / v, p, mean, largest), mean, largest


def _draw(u: Any, key: Any, estimator: str, temperature: float, cut: int) -> Any:
    """Counts of log rates, differentiable unless hard; estimators as in `ipvae.experiments.baseline`."""
    import jax
    import jax.numpy as jnp

    rate = jnp.exp(u) + RATE_FLOOR
    if estimator in ("hard", "fini2"):
        counts = jax.random.poisson(key, jax.lax.stop_gradient(rate)).astype(u.dtype)
        if estimator == "hard":
            return counts
        slope = jax.lax.stop_gradient(0.5 * (counts + rate))
        return counts + slope * (u - jax.lax.stop_gradient(u))
    arrivals = jnp.cumsum(jax.random.exponential(key, (cut, *u.shape), u.dtype), 0)
    late = (1.0 - arrivals / rate) / temperature
    if estimator == "sigmoid":
        return jax.nn.sigmoid(late).sum(0)
    if estimator != "cubic":
        raise Unavailable(f"the JAX port has no estimator {estimator}")
    w = jnp.clip(0.5 * late + 0.5, 0.0, 1.0)
    return (w * w * (3.0 - 2.0 * w)).sum(0)


def _array(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().cpu().numpy())
