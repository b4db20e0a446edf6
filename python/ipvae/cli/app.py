"""The command ``ipvae``: its commands, those of other packages, and how errors end it."""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

from ..extras import DISTRIBUTION, explained

with explained():
    import typer
    from typer.core import TyperGroup

P = ParamSpec("P")
R = TypeVar("R")

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143
ENTRY_POINTS = "ipvae.commands"


class Commands(TyperGroup):
    """The commands below, and those that installed packages offer as entry points of `ENTRY_POINTS`.

    They are looked up by name; what is behind one is imported when it is asked for.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Own commands in the order of this file, then the others."""
        return [*super().list_commands(ctx), *sorted(_offered().names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _offered().names:
            return own
        return typer.main.get_command(_offered()[cmd_name].load())


@functools.cache
def _offered() -> metadata.EntryPoints:
    return metadata.entry_points(group=ENTRY_POINTS)


app = typer.Typer(
    name="ipvae", cls=Commands, no_args_is_help=True, rich_markup_mode="rich",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def clear_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Ends a command in one line on stderr and exit code 2 where the user can help it, 130 on Ctrl-C.

    On SIGTERM it is 143, see `main`.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings(), explained():
                return command(*args, **kwargs)
        except KeyboardInterrupt as error:
            fail(str(error) or "interrupted", INTERRUPTED)
        except (ValueError, OSError, ImportError, MemoryError) as error:
            fail(str(error), USER_ERROR)
        except RuntimeError as error:
            # CheckpointError, DownloadError, TrainingError, BackendError; any other one is a bug.
            if type(error).__module__.partition(".")[0] not in ("ipvae", "ipvae_kernels"):
                raise
            fail(str(error), USER_ERROR)

    return wrapper


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows a warning of ours as one line that tells what to change, without file and line."""
    previous = warnings.formatwarning

    def plain(message: Any, category: type[Warning], *rest: Any, **options: Any) -> str:
        if category.__module__.partition(".")[0] not in ("ipvae", "ipvae_kernels"):
            return previous(message, category, *rest, **options)
        return f"warning: {message}\n"

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = previous


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with a line on stderr and an exit code."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = "; ".join(lines).replace(":;", ":")
    typer.echo(f"error: {text}" if code == USER_ERROR else text, err=True)
    raise typer.Exit(code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _ipvae(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """The iterative Poisson VAE: spiking inference of natural images and digits, fast.

    Start with [bold]ipvae demo[/]: it trains a model in minutes, draws what it learned and times it.
    """


def main() -> None:
    """Entry point of the ``ipvae`` command."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt:  # while modules load or Typer parses
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def _terminate(number: int, frame: object) -> NoReturn:
    """Ends like an exception does, so that no half-written file stays; training saves instead."""
    raise SystemExit(TERMINATED)
