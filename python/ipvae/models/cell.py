"""One step of an iterative Poisson VAE as a module, for loops of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

import ipvae_kernels
from ipvae_kernels import Decoder, PoissonParams, Prepared, State, StepResult, checks
from ipvae_kernels.rollout.decoders import as_decoder
from ipvae_kernels.rollout.step import one_frame
from ipvae_kernels.rollout.task import unprepared

from .packed import forget, packed_once

# Its exponential, the least normal number of float32, vanishes beside any drive.
NO_BIAS = -87.0
RECORD = ("counts", "reconstruction", "recon", "kl")
# As those of `IPVAEConfig`, which says why.
_INIT_SCALE, _INIT_LOG_BIAS, _INIT_LOG_RATE = 1e-4, -3.0, 0.5


class IPVAECell(nn.Module):
    """One step of inference (arXiv 2410.19315): a frame and a state in, the next state and spikes out.

    In training mode a step is differentiable in everything (`ipvae_kernels.step`), the state included, so
    that whatever a loop does between its steps can be trained; `state.detach()` truncates the gradient. In
    eval mode counts are hard and there is no gradient: steps are those of `ipvae_kernels.infer`, bit for bit
    its results over the same frames, and a dictionary is packed once, until it changes.

    Args:
        n_inputs: M, pixels of a frame.
        n_latents: K, neurons.
        decoder: None: a dictionary of the cell's own, [M, K]. Else a module from codes [B, K] to means
            [B, M], each row by itself, or another `ipvae_kernels.Decoder`.
        bias: whether each neuron has a constant inhibition, exp(log_bias).
        clamp_u: soft ceiling of the log rates.
        clamp_du: soft ceiling of their updates.
        n_inner: updates a step, 1..256.
        beta_inner: weight of the pull towards the state before the step; in force where n_inner > 1.
        decay: weight of a pull of the log rates towards 0: a leaky membrane.
        drive: what drives an update, "paper", "sampled" or "expected", see `ipvae_kernels.infer`.
        kl: "exact", or "released": the formula of the released code.
        single_draw: the fresh draw of a step also drives the next update.
        estimator: of the gradient of counts in training mode, see `ipvae_kernels.poisson_rsample`.
        temperature: of the relaxation, where the estimator has one.
        n_arrivals: keep the first n arrivals only; None keeps all.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        dictionary: Phi, [M, K], or None beside a decoder.
        log_sigma: log standard deviation of each pixel, [M].
        log_bias: [K]; without ``bias`` no parameter but a constant.
        log_lr: []; exp of it is the step size.
        log_rate_init: the log rates before the first step, [K].

    Raises:
        TypeError, ValueError: an argument is not as described; what a step alone uses, by the first step.

    Example:
        >>> cell, state = IPVAECell(256, 512), None
        >>> for frame in frames:  # [B, 256] each
        ...     state, counts, *_ = cell(frame, state)
    """

    dictionary: nn.Parameter | None
    log_bias: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_latents: int,
        *,
        decoder: nn.Module | Decoder | None = None,
        bias: bool = True,
        clamp_u: float = 10.0,
        clamp_du: float = 10.0,
        n_inner: int = 1,
        beta_inner: float = 1.0,
        decay: float = 0.0,
        drive: str = "paper",
        kl: str = "exact",
        single_draw: bool = False,
        estimator: str = "fini2",
        temperature: float = 0.1,
        n_arrivals: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        m = checks.integer("n_inputs", n_inputs, 1, 2**31)
        k = checks.integer("n_latents", n_latents, 1, 2**31)
        if decoder is not None:
            as_decoder(decoder)  # refuses what is none
        self.decoder = decoder
        self.clamp_u, self.clamp_du, self.kl = clamp_u, clamp_du, kl
        self.n_inner, self.beta_inner, self.single_draw = n_inner, beta_inner, single_draw
        self.decay, self.drive = decay, drive
        self.estimator, self.temperature, self.n_arrivals = estimator, temperature, n_arrivals

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.register_parameter("dictionary", None if decoder is not None else parameter(m, k))
        self.log_sigma, self.log_lr, self.log_rate_init = parameter(m), parameter(), parameter(k)
        if checks.flag("bias", bias):
            self.log_bias = parameter(k)
        else:
            absent = torch.full((k,), NO_BIAS, device=device, dtype=dtype)
            self.register_buffer("log_bias", absent, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws dictionary and initial log rates anew, from torch's generator; the others are constants."""
        if self.dictionary is not None:
            nn.init.normal_(self.dictionary, std=_INIT_SCALE)
        nn.init.uniform_(self.log_rate_init, -_INIT_LOG_RATE, _INIT_LOG_RATE)
        nn.init.zeros_(self.log_sigma)
        nn.init.zeros_(self.log_lr)
        if isinstance(self.log_bias, nn.Parameter):
            nn.init.constant_(self.log_bias, _INIT_LOG_BIAS)

    @classmethod
    def from_params(cls, params: PoissonParams | Prepared, **options: Any) -> Self:
        """A cell of given parameters, such as ``model.params``; it shares their memory.

        Args:
            params: with a dictionary, or without one and a ``decoder`` among the options.
            options: of the class, but sizes, ``bias``, ``device`` and ``dtype``. The clamps are not in the
                parameters: those of a model are ``**model.clamps``.

        Raises:
            TypeError, ValueError: for other parameters, for changed ones where they were prepared, and for a
                dictionary beside a decoder or neither.
        """
        own = unprepared(params)
        if not isinstance(own, PoissonParams):
            raise TypeError(f"params: expected PoissonParams, found {type(own).__name__}")
        if (own.dictionary is None) != (options.get("decoder") is not None):
            found = "neither" if own.dictionary is None else "both"
            raise ValueError(f"params.dictionary: expected a dictionary or a decoder, found {found}")
        sizes = (own.log_sigma.numel(), own.log_bias.numel())
        cell = cls(*sizes, bias=True, device="meta", dtype=None, **options)
        for name in ("dictionary", "log_sigma", "log_bias", "log_lr", "log_rate_init"):
            given = getattr(own, name)
            setattr(cell, name, None if given is None else nn.Parameter(given.detach()))
        return cell

    @property
    def params(self) -> PoissonParams:
        """The parameters as `ipvae_kernels` takes them."""
        return PoissonParams(self.dictionary, self.log_sigma, self.log_bias, self.log_lr, self.log_rate_init)

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        seed: int | Tensor | None = None,
        sample_offset: int | None = None,
        backend: str = "auto",
        check: bool = True,
    ) -> StepResult:
        """A step.

        Args:
            x: a frame, [B, M], of the dtype of the parameters.
            state: that of the step before; None: the first step.
            seed: of the noise; None: that of the state, or at the first step drawn from torch's generator.
            sample_offset: global index of the first row; None: that of the state, or 0. Batches that share a
                seed need it.
            backend: of `ipvae_kernels`.
            check: raise where an input or a result is not finite; costs a pass over each.

        Returns:
            The state, counts [B, K], reconstruction [B, M], and recon and kl, [B] each, in nats.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        options: dict[str, Any] = {
            "decoder": self.decoder, "state": state, "seed": seed, "sample_offset": sample_offset,
            "n_inner": self.n_inner, "beta_inner": self.beta_inner, "decay": self.decay, "drive": self.drive,
            "clamp_u": self.clamp_u, "clamp_du": self.clamp_du, "kl": self.kl,
            "single_draw": self.single_draw, "backend": backend, "check": check,
        }  # fmt: skip
        if self.training:
            return ipvae_kernels.step(
                x, self.params, estimator=self.estimator, temperature=self.temperature,
                n_arrivals=self.n_arrivals, **options,
            )  # fmt: skip
        one_frame(x)
        params = (
            self.params if self.decoder is not None else packed_once(self, lambda: self.params, self.drive)
        )
        result = ipvae_kernels.infer(x, params, 1, record=RECORD, **options)
        return StepResult(result.state, *(result.records[name][0] for name in RECORD))

    def extra_repr(self) -> str:
        """The sizes."""
        return f"n_inputs={self.log_sigma.numel()}, n_latents={self.log_bias.numel()}"

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, and forgets what was packed."""
        forget(self)
        return super().train(mode)
