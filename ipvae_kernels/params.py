"""Parameters and states that the public functions take; plain holders of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from . import _transforms


class StepParams(Protocol):
    """What the pointwise half of a step needs.

    Attributes:
        log_bias: [K]; exp of it is a constant inhibition per neuron.
        log_lr: []; exp of it is the step size.
    """

    @property
    def log_bias(self) -> Tensor:
        """[K]."""

    @property
    def log_lr(self) -> Tensor:
        """[]."""


@dataclass(frozen=True, eq=False)
class PoissonParams:
    """Parameters of the iterative Poisson VAE with a linear decoder (arXiv 2410.19315).

    Where all are of half precision, as a module's after ``.to(torch.bfloat16)``, and inputs too or float32,
    calls compute in float32 and return it; gradients have the dtypes of the tensors.

    Attributes:
        dictionary: decoder weights Phi, [M, K]; columns are features. None where ``infer`` and ``elbo`` are
            given a decoder.
        log_sigma: log standard deviation of each pixel (already soft-clamped), [M].
        log_bias: [K]; exp of it is a constant inhibition per neuron.
        log_lr: []; exp of it is the step size.
        log_rate_init: initial log rates, the prior at step 0, [K].
    """

    dictionary: Tensor | None
    log_sigma: Tensor
    log_bias: Tensor
    log_lr: Tensor
    log_rate_init: Tensor


@dataclass(frozen=True, eq=False)
class GaussianParams:
    """Parameters of the Gaussian relatives: iG-VAE ("identity") and iG-relu-VAE ("relu").

    Attributes:
        dictionary: decoder weights Phi, [M, K], or None.
        log_sigma: log standard deviation of each pixel (already soft-clamped), [M].
        log_bias: [K].
        log_lr: step sizes of mean and log sigma, [2].
        state_init: initial mean and log sigma, [2, K].
        activation: applied to the latents before the decoder.
    """

    dictionary: Tensor | None
    log_sigma: Tensor
    log_bias: Tensor
    log_lr: Tensor
    state_init: Tensor
    activation: Literal["identity", "relu"] = "identity"


@dataclass(frozen=True, eq=False)
class State:
    """Where a sequence stands: all that is needed to continue it with bit-identical results.

    Attributes:
        log_rate: [B, K]; for Gaussian models mean and log sigma, [2, B, K].
        step: global index of the next step.
        seed: int64 of shape [], an int, or None: drawn from torch's generator. One that an op returns is its
            own: filling the tensor that was passed as ``seed`` anew does not change it.
        sample_offset: global index of the first row of the batch.
    """

    log_rate: Tensor
    step: int = 0
    seed: Tensor | int | None = None
    sample_offset: int = 0

    def detach(self) -> State:
        """The state without the graph that made it: truncates the gradient between segments of training."""
        seed = self.seed.detach() if isinstance(self.seed, Tensor) else self.seed
        return replace(self, log_rate=self.log_rate.detach(), seed=seed)


for _holder in (PoissonParams, State):
    _transforms.register_holder(_holder)
_transforms.register_holder(GaussianParams, "activation")
