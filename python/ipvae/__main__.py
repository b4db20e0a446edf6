"""The command ``ipvae``, also ``python -m ipvae``; says what to install where the command line lacks it."""

from __future__ import annotations

import sys

from ipvae import extras

USER_ERROR = 2


def main() -> None:
    """Runs the command line; ``ipvae info`` answers without it too."""
    try:
        with extras.explained():
            from ipvae.cli import main as run

            run()
    except extras.MissingExtra as error:
        if sys.argv[1:] != ["info"]:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(USER_ERROR)
        print(extras.report())


if __name__ == "__main__":
    main()
