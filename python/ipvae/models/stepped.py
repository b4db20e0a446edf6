"""What models share whose steps are composed in Python, of ops and calls of a decoder: `SteppedVAE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ipvae_kernels import ElboResult, InferResult, State, checks
from ipvae_kernels.rollout.decoders import Decoder, LinearDecoder, as_decoder
from ipvae_kernels.rollout.eager import RECORDS, WITHOUT_DRAW, reconstruction_loss

from ..inputs import Inputs, whole
from .base import VAE


class Taken(NamedTuple):
    """One step.

    Attributes:
        state: after it.
        kl: [B], nats.
        code: of the fresh draw of the step, [B, K]; None where none was asked for.
        error: x less its mean, [B, M]; likewise.
    """

    state: Tensor
    kl: Tensor
    code: Tensor | None = None
    error: Tensor | None = None


class Start(NamedTuple):
    """Where steps begin.

    Attributes:
        x: [B, M] or [T, B, M].
        state: before the first.
        first: global index of the first.
        seed: int64, [].
        offset: global index of the first row.
    """

    x: Tensor
    state: Tensor
    first: int
    seed: Tensor
    offset: int

    def frame(self, t: int) -> Tensor:
        """The input of step t of the call."""
        return self.x[t] if self.x.ndim == 3 else self.x


class SteppedVAE(VAE):
    """Inference and training by a loop over `_walk`, which the families write.

    Attributes:
        takes_motion: whether an input may be a frame for each step.
        last_alone: whether the loss is that of the last step, or the mean over all.
    """

    iterative = True
    takes_motion: ClassVar[bool] = False
    last_alone: ClassVar[bool] = False

    def _first(self, x: Tensor) -> Tensor:
        """The state before the first step, for inputs [B, M] or [T, B, M]."""
        raise NotImplementedError

    def _state_shape(self, rows: int) -> tuple[int, ...]:
        """Of a state."""
        lead = (self.n_states,) if self.n_states > 1 else ()
        return (*lead, rows, self.config.n_latents)

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
        """The steps.

        Args:
            start: where they begin.
            steps: their number.
            backend: of `ipvae_kernels`.
            fresh: whether the fresh draw of each is wanted.
            truncate: cut the gradient after every so many.
            draws: estimator, temperature, n_arrivals of counts in training; none: hard ones.
        """
        raise NotImplementedError

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        """How latents are drawn and differentiated in training."""
        raise NotImplementedError

    def _recon(self, error: Tensor) -> Tensor:
        """Reconstruction term, [B], nats, of errors [B, M]."""
        return reconstruction_loss(error, self.log_sigma)

    def _precision(self) -> Tensor:
        """1 / var of the pixels, [M]."""
        return torch.exp(-2.0 * self.log_sigma)

    def _decoder(self) -> Decoder:
        return (
            LinearDecoder(checks.raised(self._linear()))
            if self.decoder is None
            else as_decoder(self.flat_decoder())
        )

    def _begin(
        self, x: Inputs, steps: int | None, state: State | None, seed: int | Tensor | None,
        sample_offset: int | None, check: bool,
    ) -> tuple[Start, int]:  # fmt: skip
        """Where to begin, and how many steps to take."""
        x, steps = self.flatten(x), self.t_train if steps is None else whole("steps", steps)
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, found {steps}")
        if x.ndim == 3 and not self.takes_motion:
            raise ValueError(
                f"x: expected still inputs [B, {x.shape[-1]}] for a {self.cell}, found {list(x.shape)}"
            )
        if x.ndim not in (2, 3) or (x.ndim == 3 and len(x) != steps):
            raise ValueError(f"x: expected [B, M], or [steps = {steps}, B, M], found {list(x.shape)}")
        if check:
            checks.finite(x=x)
        rows, first = x.shape[-2], 0
        if state is not None:
            checks.shape("state.log_rate", state.log_rate, self._state_shape(rows), "that of a state")
            seed = state.seed if seed is None else seed
            sample_offset = state.sample_offset if sample_offset is None else sample_offset
            first = state.step
        first, offset = checks.stream(first, steps, sample_offset or 0, rows)
        before = self._first(x) if state is None else state.log_rate
        # A model in half precision computes in float32, as the fused rollouts do.
        seed = checks.seed(seed, x.device)
        return Start(checks.raised(x), checks.raised(before), first, seed, offset), steps

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
        """The training loss, differentiable through all steps.

        Args:
            x: [B, M], pixels unflattened if you like; or [steps, B, M] where the family takes moving input.
            steps: T; None: the configuration's `t_train`.
            beta: weight of the KL in the loss.
            temperature: of the relaxed counts; None: the attribute. Normals have none and ignore it.
            estimator: of d(counts)/d(log rate); None: the configuration's. Normals have none.
            truncate: cut the gradient after every so many steps, where the family does; None: never.
            state: to continue from; None: the first state.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            loss [], recon [T, B] and kl [T, B] of each step in nats, and the state.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        beta, draws = checks.number("beta", beta, 0.0), self._draw_options(estimator, temperature)
        if truncate is not None:
            truncate = self._truncate(checks.integer("truncate", truncate, 1, 2**32))
        start, steps = self._begin(x, steps, state, seed, sample_offset, check)
        recons, kls, last = [], [], start.state
        for step in self._walk(start, steps, backend, fresh=True, truncate=truncate, **draws):
            assert step.error is not None
            recons.append(self._recon(step.error))
            kls.append(step.kl)
            last = step.state
        recon, kl = torch.stack(recons), torch.stack(kls)
        if check:
            checks.finite_result("the steps diverged; is the step size reasonable?", recon=recon, kl=kl)
        counted = slice(-1, None) if self.last_alone else slice(None)
        loss = recon[counted] + beta * kl[counted]
        loss = loss.sum() * (256.0 / (start.x.shape[-1] * max(loss.numel(), 1)))
        return ElboResult(loss, recon, kl, State(last, start.first + steps, start.seed, start.offset), {})

    def _truncate(self, truncate: int) -> int:
        """The number, of a family that cuts gradients."""
        raise ValueError(
            f"truncate: expected None for a {self.cell}, whose gradient runs through all steps, found "
            f"{truncate}"
        )

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
        """Steps without gradient, counts hard; memory grows with `steps` by what is recorded alone.

        Args:
            x: [B, M], pixels unflattened if you like; or [steps, B, M] where the family takes moving input.
            steps: T; None: the configuration's `t_train`.
            record: names out of log_rate (the state), counts (what is decoded), reconstruction, recon, kl,
                squared_error, spikes, zeros.
            record_every: keep every so manyth step.
            state: to continue from, bit for bit; None: the first state.
            seed: of the noise; None: drawn from torch's generator.
            sample_offset: global index of the first row; None: the state's, or 0.
            backend: of `ipvae_kernels`.
            check: raise where an input or the result is not finite; False saves a pass over each.

        Returns:
            The state, and the records, [R, B, ...] each.

        Raises:
            TypeError, ValueError: an argument is not as described.
        """
        names = [checks.choice("record", name, RECORDS) for name in record]
        record_every = checks.integer("record_every", record_every, 1, 2**32)
        start, steps = self._begin(x, steps, state, seed, sample_offset, check)
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        fresh, last = any(name not in WITHOUT_DRAW for name in names), start.state
        for t, step in enumerate(self._walk(start, steps, backend, fresh=fresh)):
            last = step.state
            if (start.first + t + 1) % record_every == 0:
                for name in names:
                    rows[name].append(_RECORDED[name](self, step, start.frame(t)))
        records = {name: self._stacked(name, found, start) for name, found in rows.items()}
        if check:
            told = {} if self.has_free_energy else {"kl"}  # there it is NaN
            shown = {name: found for name, found in records.items() if name not in told}
            checks.finite_result("the steps diverged", **{"state": last, **shown})
        return InferResult(State(last, start.first + steps, start.seed, start.offset), records)

    def _stacked(self, name: str, rows: list[Tensor], start: Start) -> Tensor:
        """Records [R, ...], where R may be 0."""
        if rows:
            return torch.stack(rows)
        batch, pixels = start.x.shape[-2:]
        codes = (batch, self.config.n_latents)
        wide = {"log_rate": start.state.shape, "counts": codes, "reconstruction": (batch, pixels)}
        return start.x.new_empty((0, *wide.get(name, (batch,))))


def _code(step: Taken) -> Tensor:
    assert step.code is not None
    return step.code


def _error(step: Taken) -> Tensor:
    assert step.error is not None
    return step.error


_RECORDED: dict[str, Callable[[SteppedVAE, Taken, Tensor], Tensor]] = {
    "log_rate": lambda model, step, x: step.state,
    "counts": lambda model, step, x: _code(step),
    "reconstruction": lambda model, step, x: x - _error(step),
    "recon": lambda model, step, x: model._recon(_error(step)),
    "kl": lambda model, step, x: step.kl,
    "squared_error": lambda model, step, x: _error(step).square().sum(-1),
    "spikes": lambda model, step, x: _code(step).abs().sum(-1),
    "zeros": lambda model, step, x: (_code(step) == 0.0).to(x.dtype).mean(-1),
}
"""What can be recorded of a step, by the names of `ipvae_kernels.infer`."""
