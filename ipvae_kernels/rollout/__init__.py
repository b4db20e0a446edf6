"""T whole steps: inference, and the training loss with its gradient."""

from .decoders import Decoded, Decoder, LinearDecoder
from .estimates import Estimate, estimate
from .op import ElboResult, InferResult, elbo, infer
from .prepared import Prepared, prepare
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
    "elbo",
    "estimate",
    "infer",
    "prepare",
]
