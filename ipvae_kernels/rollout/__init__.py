"""T whole steps: inference, and the training loss with its gradient."""

from .decoders import Decoded, Decoder, LinearDecoder
from .estimates import Estimate, estimate
from .op import ElboResult, InferResult, elbo, infer
from .prepared import Prepared, prepare
from .step import StepResult, step
from .stretches import Interrupted

__all__ = [
    "Decoded",
    "Decoder",
    "ElboResult",
    "Estimate",
    "InferResult",
    "Interrupted",
    "LinearDecoder",
    "Prepared",
    "StepResult",
    "elbo",
    "estimate",
    "infer",
    "prepare",
    "step",
]
