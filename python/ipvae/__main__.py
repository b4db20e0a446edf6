"""``python -m ipvae``: the command line."""

from .cli import main

main()
