"""The command line: ``ipvae demo | train | eval | infer | stream | convert | plot | info``, a file each.

PyTorch and Lightning are imported when a command runs, so that ``ipvae --help`` answers at once.
"""

from .app import app, clear_errors, main

from . import demo, train, evaluate, infer, stream, plot, info  # isort: skip  (the order of the help)

__all__ = ["app", "clear_errors", "demo", "evaluate", "infer", "info", "main", "plot", "stream", "train"]
