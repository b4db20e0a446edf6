"""``python -m ipvae_kernels`` prints what is installed and which backends serve."""

from .info import report

print(report())
