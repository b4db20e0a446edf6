"""T whole steps with a linear decoder: inference, and the training loss with its gradient."""

from .op import ElboResult, InferResult, elbo, infer
from .stretches import Interrupted

__all__ = ["ElboResult", "InferResult", "Interrupted", "elbo", "infer"]
