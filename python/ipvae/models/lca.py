"""The locally competitive algorithm, `LCA`: sparse coding that the iP-VAE is compared with.

From Rozell, Johnson, Baraniuk and Olshausen, "Sparse coding via thresholding and local competition in neural
circuits" (Neural Computation 20, 2008). Potentials u and activations a of an input x, with a dictionary Phi
of unit-length columns, in steps of length 1:

    a  = T(u)                          soft: sign(u) max(|u| - lambda, 0); hard: u where |u| > lambda, else 0
    u' = u + (Phi^T x - (Phi^T Phi - 1) a - u) / tau

whose rest is a minimum of the energy |x - Phi a|^2 / 2 + lambda |a|_1 (soft), or a local one of
|x - Phi a|^2 / 2 + lambda^2 / 2 |a|_0 (hard). The dictionary learns by the gradient of the first term at the
activations reached (Olshausen and Field, Nature 381, 1996), which are held constant.

The drive Phi^T x of a still input and the Gram matrix are formed once a call, so a step is one product
[B, K] x [K, K], and a second one with Phi where a record looks at the reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ipvae_kernels import ElboResult, State, checks

from ..inputs import Inputs
from .config_lca import LCAConfig
from .stepped import Start, SteppedVAE, Taken


class LCA(SteppedVAE):
    """Sparse coding by local competition: analog activations, deterministic.

    It has no law of latents and no divergence: records and losses of the KL are NaN, and samples of a prior
    are refused. Its loss is an energy, not a bound of a likelihood.

    Args:
        config: of the family.

    Attributes:
        phi: [M, K], the dictionary before its columns are brought to length 1.

    Example:
        >>> model = LCA(LCAConfig(n_inputs=256, n_latents=512, penalty=0.3))
        >>> code = model.encode(torch.randn(8, 256), steps=200)
    """

    config: LCAConfig
    config_class = LCAConfig
    n_states = 1
    spiking = False
    has_free_energy = False
    takes_motion = True

    def __init__(self, config: LCAConfig) -> None:
        super().__init__(config)
        self.phi = nn.Parameter(torch.zeros(config.n_inputs, config.n_latents, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the dictionary anew, from the configuration's seed alone: features of random directions."""
        if self.phi.is_meta:
            return
        generator = torch.Generator("cpu").manual_seed(self.config.seed)
        draw = torch.randn(self.phi.shape, generator=generator, dtype=torch.float32, device="cpu")
        self.phi.copy_(draw / draw.norm(dim=0))

    def _linear(self) -> Tensor:
        phi = checks.raised(self.phi)
        lengths: Tensor = torch.linalg.vector_norm(phi, dim=0)
        return phi / lengths.clamp(min=torch.finfo(phi.dtype).tiny)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that inputs take."""
        return self.phi

    @property
    def log_sigma(self) -> Tensor:
        """Zeros [M]: the energy weighs pixels alike."""
        return self.phi.new_zeros(self.config.n_inputs)

    @property
    def t_train(self) -> int:
        """Inference steps of a training update."""
        return self.config.t_train

    def set_annealing(self, *, temperature: float | None = None, eps: float | None = None) -> None:
        """Nothing to set."""

    def rates(self, log_rate: Inputs) -> Tensor:
        """Activations [..., B, K] of potentials, the state."""
        return self._thresholded(self._taken("log_rate", log_rate))

    def _thresholded(self, u: Tensor) -> Tensor:
        penalty = self.config.penalty
        if self.config.threshold == "soft":
            return nn.functional.softshrink(u, penalty)
        return nn.functional.hardshrink(u, penalty)

    def energy(self, x: Inputs, codes: Tensor) -> Tensor:
        """``|x - Phi a|^2 / 2`` plus the penalty, [B], of inputs [B, M] and activations [B, K]."""
        error = self.flatten(x) - self._mean(codes)
        return 0.5 * error.square().sum(-1) + self._penalty(codes)

    def _penalty(self, codes: Tensor) -> Tensor:
        penalty = self.config.penalty
        if self.config.threshold == "soft":
            return penalty * codes.abs().sum(-1)
        return 0.5 * penalty**2 * (codes != 0.0).sum(-1).to(codes.dtype)

    def _first(self, x: Tensor) -> Tensor:
        return x.new_zeros(self._state_shape(x.shape[-2]))

    def _recon(self, error: Tensor) -> Tensor:
        """Half the squared error, [B]: the energy has no other terms."""
        return 0.5 * error.square().sum(-1)

    @torch.no_grad()
    def _walk(
        self,
        start: Start,
        steps: int,
        backend: str,
        *,
        fresh: bool,
        truncate: int | None = None,
        **draws: Any,
    ) -> Iterator[Taken]:
        phi, u, tau = self.dictionary, start.state, self.config.tau
        gram = phi.T @ phi
        gram.diagonal().sub_(1.0)
        still = start.x @ phi if start.x.ndim == 2 else None
        none = start.x.new_full((start.x.shape[-2],), torch.nan)
        for t in range(steps):
            drive = start.frame(t) @ phi if still is None else still
            u = u + (torch.addmm(drive, self._thresholded(u), gram, alpha=-1.0) - u) / tau
            taken = Taken(u, none)
            if fresh:
                code = self._thresholded(u)
                taken = taken._replace(code=code, error=start.frame(t) - code @ phi.T)
            yield taken

    def forward(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        beta: float = 1.0,
        temperature: float | None = None,
        estimator: str | None = None,
        truncate: int | None = None,
        state: State | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> ElboResult:
        """The energy at the activations reached, whose gradient in the dictionary is that of the error.

        Args:
            x: [B, M] or [steps, B, M], pixels unflattened if you like.
            steps: T; None: the configuration's `t_train`.
            beta: of no effect: the weight of the penalty is the threshold, `penalty`.
            temperature: of no effect.
            estimator: None; nothing is drawn.
            truncate: None; no gradient passes the steps.
            state: to continue from; None: potentials of 0.
            seed: of no effect.
            sample_offset: of no effect.
            backend: of `ipvae_kernels`; plain PyTorch serves it.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], the mean energy times 256 / M; recon [1, B], half the squared error; kl [1, B], NaN; the
            potentials as a state.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        checks.number("beta", beta, 0.0)
        for name, value in (("estimator", estimator), ("truncate", truncate)):
            if value is not None:
                raise ValueError(f"{name}: expected None for an LCA, found {value!r}")
        how: dict[str, Any] = {"seed": seed, "sample_offset": sample_offset, "backend": backend}
        reached = self.infer(x, steps, state=state, check=check, **how).state
        x = checks.raised(self.flatten(x))
        codes, shown = self._thresholded(reached.log_rate), x[-1] if x.ndim == 3 else x
        recon = self._recon(shown - self._mean(codes))
        loss = (recon + self._penalty(codes)).sum() * (256.0 / (x.shape[-1] * max(len(recon), 1)))
        return ElboResult(loss, recon[None], torch.full_like(recon[None], torch.nan), reached, {})

    @property
    def prior(self) -> Tensor:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("prior: an LCA has no law of latents, so no prior and no samples of one")

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        return self.prior
