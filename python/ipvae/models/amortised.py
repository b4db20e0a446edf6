"""Amortised models, `PVAE` and `GVAE`: an encoder gives the posterior in one step.

From "Poisson variational autoencoder" (arXiv 2405.14473) and its released code. For an input x, the prior
u_0 that is learned, and the encoder's e(x):

    u   = C(u_0 + C(e(x), clamp_du), clamp_u)             C(v, c) = c - softplus(c - v)
    z   ~ Poisson(exp(u)), by an estimator of `ipvae_kernels.poisson_rsample`
    kl  = sum_k KL(Poisson(exp(u)) || Poisson(exp(u_0))), exact

and for normal latents mean = mean_0 + e_1(x), log sigma = c tanh((log sigma_0 + e_2(x)) / c), with the log
sigma of the prior clamped likewise. Reconstruction term and loss are those of iterative models of one step.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import ElboResult, InferResult, State, checks
from ipvae_kernels.cells import Draw
from ipvae_kernels.philox import KIND_LOSS, Stream
from ipvae_kernels.rollout.eager import RECORDS, Step, reconstruction_loss

from ..inputs import Inputs, whole
from .config import GVAEConfig, PVAEConfig
from .fixed_prior import EncoderVAE, GaussianPosterior, PoissonPosterior


class AmortisedVAE(EncoderVAE):
    """What the amortised models share; make one with `PVAE`, `GVAE` or `build_model`.

    Args:
        config: of the family.
        decoder: as in `VAE`.
        encoder: as in `EncoderVAE`.
    """

    iterative = False

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        """Latents as the decoder takes them, [B, K]; hard where there are no options."""
        raise NotImplementedError

    def _step(self, x: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any) -> Step:
        """What an iterative model would call its only step."""
        if check:
            checks.finite(x=x)
        state = self.posterior(x)
        code = self._draw(state, seed, offset, backend, check, **options)
        return Step([self.prior, state], [Draw(code, code, code)], [x - self._mean(code)], [])

    def forward(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        beta: float = 1.0,
        temperature: float | None = None,
        estimator: str | None = None,
        truncate: int | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> ElboResult:
        """The training loss, differentiable; as that of an iterative model of one step.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: None or 1.
            beta: weight of the KL.
            temperature: of the relaxed counts; None: the attribute. A `GVAE` has none and ignores it.
            estimator: of d(counts)/d(log rate); None: the configuration's. A `GVAE` has none.
            truncate: None; there is no sequence to cut.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: 0.
            backend: of `ipvae_kernels`, for the counts.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [1, B] and kl [1, B] in nats, and the posterior as a state.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        _one_step(steps)
        if truncate is not None:
            raise ValueError(
                f"truncate: expected None for a {self.cell}, which has no steps, found {truncate}"
            )
        x, beta = self._still(x), checks.number("beta", beta, 0.0)
        seed, offset = self._noise(x, seed, sample_offset)
        step = self._step(x, seed, offset, backend, check, **self._relaxed(estimator, temperature))
        recon = reconstruction_loss(step.errors[0], self.log_sigma)
        kl = self.kl(step.states[1], step.states[0]).sum(-1)
        loss = (recon + beta * kl).sum() * (256.0 / (x.shape[-1] * max(len(x), 1)))
        if check:
            checks.finite_result("the encoder, the decoder or the rates diverged", recon=recon, kl=kl)
        return ElboResult(loss, recon[None], kl[None], State(step.states[1], 1, seed, offset), {})

    @torch.no_grad()
    def infer(
        self,
        x: Inputs,
        steps: int | None = None,
        *,
        record: tuple[str, ...] = (),
        record_every: int = 1,
        state: State | None = None,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> InferResult:
        """Encodes and draws once, counts hard, no gradient; as one step of an iterative model.

        Args:
            x: [B, M], pixels unflattened if you like.
            steps: None or 1.
            record: names out of log_rate, counts, reconstruction, recon, kl, squared_error, spikes, zeros.
            record_every: 1.
            state: None; an encoder continues nothing.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: 0.
            backend: of `ipvae_kernels`, for the counts.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The posterior as a state, and the records, [1, B, ...] each.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        _one_step(steps)
        checks.integer("record_every", record_every, 1, 1)
        if state is not None:
            raise ValueError(f"state: expected None for a {self.cell}, whose encoder continues nothing")
        names = [checks.choice("record", name, RECORDS) for name in record]
        x = self._still(x)
        seed, offset = self._noise(x, seed, sample_offset)
        step = self._step(x, seed, offset, backend, check)
        x = checks.raised(x)  # records are float32 like the posterior
        # Of a cell, records want its divergence alone.
        records = {name: RECORDS[name](step, cast(Any, self), x, self.log_sigma)[None] for name in names}
        if check:
            checks.finite_result("the encoder, the decoder or the rates diverged", **records)
        return InferResult(State(step.states[1], 1, seed, offset), records)


def _one_step(steps: int | None) -> None:
    if steps is not None and whole("steps", steps) != 1:
        raise ValueError(f"steps: expected None or 1, an encoder infers in one, found {steps}")


class PVAE(PoissonPosterior, AmortisedVAE):
    """The amortised Poisson VAE (arXiv 2405.14473), with every estimator of the package.

    Example:
        >>> model = PVAE(PVAEConfig(n_inputs=784, input_shape=(1, 28, 28), encoder="conv"))
        >>> loss = model(torch.rand(8, 1, 28, 28), beta=1.0).loss
    """

    config: PVAEConfig
    config_class = PVAEConfig

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        draw = ipvae_kernels.poisson_rsample if options else ipvae_kernels.poisson_sample
        return draw(
            state, seed=seed, draw="loss", sample_offset=offset, backend=backend, check=check, **options
        )


class GVAE(GaussianPosterior, AmortisedVAE):
    """The ordinary VAE, with a residual posterior; with ``activation="relu"`` its latents are rectified."""

    config: GVAEConfig
    config_class = GVAEConfig

    def _draw(
        self, state: Tensor, seed: Tensor, offset: int, backend: str, check: bool, **options: Any
    ) -> Tensor:
        return self._activated(self._normal(state, seed, Stream(KIND_LOSS, sample_offset=offset)))
