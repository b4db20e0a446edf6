"""``python -m ipvae_kernels`` prints what is installed and which backends serve; ``--test`` tries them."""

import argparse
import sys

from . import selftest
from .info import report

parser = argparse.ArgumentParser(prog="python -m ipvae_kernels", description=__doc__)
parser.add_argument("--test", action="store_true", help="compare every schedule on this machine with eager")
arguments = parser.parse_args()
print(report())
if arguments.test:
    sys.exit(0 if selftest.report() else 1)
