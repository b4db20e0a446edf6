"""Many steps of a model of the authors' code at once, handed out one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import GaussianParams, PoissonParams, State

from ..parameters import gaussian_params, poisson_params

# Records of a window: 64 MiB in float32.
RECORD_ENTRIES = 2**24
_OF_LOSS = ("log_rate", "counts", "reconstruction", "kl_per_neuron")
_OF_INFERENCE = ("log_rate", "counts", "reconstruction", "recon")

States = tuple[Tensor, ...]


def parameters(layer: Any) -> PoissonParams | GaussianParams:
    """The parameters of a layer of theirs; gradients flow through."""
    dictionary, log_sigma = layer.phi.weight, layer.get_dec_log_sigma()[0]
    if len(layer.u_init) == 1:
        return poisson_params(layer, dictionary, log_sigma)
    if layer.activation is None:
        return gaussian_params(layer, dictionary, log_sigma, "identity")
    return gaussian_params(layer, dictionary * layer.activation.log_gain.exp(), log_sigma, "relu")


def options(layer: Any) -> dict[str, Any]:
    """The constants in force: the clamps as far as they have opened, inner iterations and their leak."""
    states = range(len(layer.u_init))
    clamps = {f"clamp_{which}": tuple(float(layer.get_c(which, i)) for i in states) for which in ("u", "du")}
    single = len(states) == 1
    return {
        **{name: values[0] if single else values for name, values in clamps.items()},
        "n_inner": layer._cfg.n_iters_inner,
        "beta_inner": float(layer.beta_inner),
        "kl": "released",
        "check": False,  # theirs goes on with NaN
    }


@dataclass
class Step:
    """What a step leaves in a model.

    Attributes:
        u: the state after it, one [B, K] for each of its numbers.
        samples: the fresh draw, [B, K].
        mean: of the pixels, [B, M].
        recon: [B], nats.
        kl: [B, K], nats; None: to be made from the states.
    """

    u: States
    samples: Tensor
    mean: Tensor
    recon: Tensor
    kl: Tensor | None


@dataclass
class Window:
    """Steps that were computed at once.

    Attributes:
        key: what they were computed for; another one makes them void.
        time: of the first, by the model's clock.
        frames: the input of each, or one for all.
        seen: a copy of what they held, [B, M] or [n, B, M]: a loop may fill one tensor anew for every step.
        left: what the steps that were not handed out yet left.
        log_sigma: of the pixels, [1, M].
        taken: how many were handed out.
        current: the state that the model has to be in for the next to be taken.
        versions: of its tensors, which nobody may have written to.
    """

    key: tuple[Any, ...]
    time: int
    frames: Sequence[Tensor]
    seen: Tensor
    left: deque[Step]
    log_sigma: Tensor
    taken: int = 0
    current: States | None = field(default=None, repr=False)
    versions: tuple[int, ...] = ()

    def stand(self, state: States) -> None:
        """Takes this for the state of the model."""
        self.current, self.versions = state, versions(state)

    def continues(self, state: States) -> bool:
        """Whether the model is where this window left it."""
        return state is self.current and versions(state) == self.versions

    def takes(self, x: Tensor, i: int) -> bool:
        """Whether a step was computed for this input; one with a gradient has to be the same tensor."""
        still = self.seen.dim() == 2
        own, seen = self.frames[0 if still else i], self.seen if still else self.seen[i]
        if x.requires_grad and torch.is_grad_enabled() and x is not own:
            return False
        alike = x.shape == seen.shape and x.dtype == seen.dtype and x.device == seen.device
        return alike and bool(torch.equal(x, seen))


def versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each was written to, as far as torch counts it."""
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)


def longest(x: Tensor, latents: int) -> int:
    """Steps whose records take 64 MiB, at least 1."""
    return max(1, RECORD_ENTRIES // max(1, x.shape[0] * (2 * x.shape[1] + 3 * latents)))


def compute(
    layer: Any,
    x: Tensor,
    n: int,
    u: States,
    at: tuple[int, Tensor],
    relaxed: dict[str, Any] | None,
    params: Any,
) -> deque[Step]:
    """n steps of a layer of theirs.

    Args:
        layer: theirs.
        x: [B, M] or [n, B, M].
        n: steps.
        u: the state to start from.
        at: index of the first step in the noise, and its seed.
        relaxed: how counts are relaxed, for `elbo`; None: hard ones, or normals without gradient, by `infer`.
        params: of the layer, or what `prepare` made of them.
    """
    start = u[0].contiguous() if len(u) == 1 else torch.stack(u)
    state = State(start, *at)
    how = options(layer)
    if relaxed is None:
        found = ipvae_kernels.infer(x, params, n, state=state, record=_OF_INFERENCE, **how)
        recon = found.records["recon"].unbind()
        kl: Sequence[Tensor | None] = [None] * n
        state = found.state
    else:
        loss = ipvae_kernels.elbo(x, params, n, state=state, record=_OF_LOSS, **relaxed, **how)
        recon, kl, state = loss.recon.unbind(), loss.records["kl_per_neuron"].unbind(), loss.state
        found = loss  # type: ignore[assignment]
    log_rates = [
        *found.records["log_rate"].unbind()[:-1],
        state.log_rate,
    ]  # the last goes on in the fused graph
    counts, means = found.records["counts"].unbind(), found.records["reconstruction"].unbind()
    return deque(
        Step((log_rates[i],) if len(u) == 1 else log_rates[i].unbind(), counts[i], means[i], recon[i], kl[i])
        for i in range(n)
    )
