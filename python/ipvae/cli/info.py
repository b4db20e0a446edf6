"""``ipvae info``."""

from __future__ import annotations

from typing import Annotated

from ..extras import explained
from .app import app, clear_errors

with explained():
    import typer


@app.command()
@clear_errors
def info(
    test: Annotated[
        bool, typer.Option("--test", help="Compare every schedule on this machine with eager PyTorch.")
    ] = False,
) -> None:
    """What is installed, which backends serve and why others do not. Paste it into bug reports.

    [bold]Example:[/] ipvae info
    """
    from ..extras import report

    typer.echo(report())
    if test:
        from ipvae_kernels import selftest

        if not selftest.report():
            raise typer.Exit(1)
