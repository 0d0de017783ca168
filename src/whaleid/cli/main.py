"""The `whaleid` command: its groups, and how errors reach the user. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from whaleid.cli import data, ensemble, export, identify, kaggle, kernel, masks, report, review, training
from whaleid.utils.errors import WhaleidError

app = typer.Typer(
    help="Which individual is this? From a competition's photographs to a scored submission.\n\n"
    "`whaleid leaderboard` runs every stage. Each stage is also a command, and runs again only when its inputs have "
    "changed. An error is one line and exit code 2; `--debug` also shows the traceback.\n\n"
    "Example: whaleid leaderboard -c sample",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["--help", "-h"]},
)
for module in (ensemble, identify, export, review, report, training, data, masks, kernel, kaggle):
    module.register(app)

MOVED = {
    "sample": "data sample",
    "fetch": "data download",
    "folds": "data folds",
    "kernel-push": "kaggle push",
    "kernel-status": "kaggle status",
    "kernel-output": "kaggle output",
    "submit": "kaggle submit",
    "scores": "kaggle scores",
}
"""Old command -> new one."""


def main() -> None:
    """Run the command. A user's error is one line and exit code 2; the traceback is shown only under --debug."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        if arguments and arguments[0] in MOVED:
            raise WhaleidError(f"'whaleid {arguments[0]}' is now 'whaleid {MOVED[arguments[0]]}'")
        app(args=arguments)
    except WhaleidError as error:
        _end(str(error), debug)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        place = f"{error.filename}: " if error.filename else ""
        todo = "free some space" if full else "change the permissions"
        _end(f"{place}{os.strerror(error.errno or 0)}; {todo}, or choose another folder with --work (WORK=)", debug)


def _end(message: str, debug: bool) -> NoReturn:
    """Print one line and exit with code 2; under --debug, after the traceback of the error being handled."""
    from whaleid.kaggle.credentials import masked

    if debug:
        print(masked(traceback.format_exc()), end="", file=sys.stderr)
    print(masked(f"error: {message}"), file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        from whaleid import __version__

        print(f"whaleid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    pass
