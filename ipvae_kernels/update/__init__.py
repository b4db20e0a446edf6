"""The pointwise half of a step."""

from .op import log_rate_update

__all__ = ["log_rate_update"]
