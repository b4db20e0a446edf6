"""The authors' models and trainers (hadivafaii/IterativeVAE) on this package's kernels, by one line."""

from .accelerate import AccelerationWarning, accelerate, deaccelerate

__all__ = ["AccelerationWarning", "accelerate", "deaccelerate"]
