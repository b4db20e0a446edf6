"""The command line, ``ipvae demo | train | eval | infer | encode | stream | ...``: a file each.

PyTorch and Lightning are imported when a command runs, so that ``ipvae --help`` answers at once.
"""

from .app import app, clear_errors, main

from . import demo, train, evaluate, infer, encode, stream, plot, reproduce, plan, info  # isort: skip  (the order of the help)

__all__ = [
    "app",
    "clear_errors",
    "demo",
    "encode",
    "evaluate",
    "infer",
    "info",
    "main",
    "plan",
    "plot",
    "reproduce",
    "stream",
    "train",
]
