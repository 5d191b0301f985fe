"""The ``cipherward`` command. Each group of commands is one module with an ``app``; adding one is a line here.

Errors are printed as one line on standard error, what happened, why, and what to do, with a stable code; the
exit status is 0 only on success.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from cipherward import __version__
from cipherward.durable import explained
from cipherward.errors import CipherwardError, EnvironmentProblem

INTERRUPTED = 130
UNEXPECTED = 70


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cipherward {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Secure aggregation for hospitals that train one model together."""


def build() -> typer.Typer:
    """The whole command line. Groups are imported here and load heavy modules only in their commands."""
    from cipherward.cli import (
        accuracy,
        audit,
        bench,
        consortium,
        coordinator,
        demo,
        operator,
        site,
        study,
        threats,
    )

    app = typer.Typer(
        name="cipherward",
        callback=_common,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    demo.add_to(app)
    for module in (consortium, site, coordinator, operator, study, audit, bench, threats, accuracy):
        app.add_typer(module.app)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    # gRPC's own lines on standard error say less than our errors, and in the middle of them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        build()(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="cipherward")
    except SystemExit as stop:  # how typer ends a command, usage errors and Ctrl-C included
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except CipherwardError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: one line in the place of a traceback
        if os.environ.get("CIPHERWARD_DEBUG"):
            traceback.print_exc()
        if isinstance(error, OSError) and (problem := _of_machine(error)):
            print(f"error: {problem}", file=sys.stderr)  # noqa: T201
            return problem.exit_status
        line = f"error: CW-999 unexpected {type(error).__name__}, because {' '.join(str(error).split())}. "
        hint = "Run again with CIPHERWARD_DEBUG=1 for the traceback and report it."
        print(line + hint, file=sys.stderr)  # noqa: T201
        return UNEXPECTED
    return 0


def _of_machine(error: OSError) -> EnvironmentProblem | None:
    """What the operating system refused, if it says of which file or has no room: no defect of ours."""
    if error.filename is None and error.errno != errno.ENOSPC:
        return None
    place = "the output" if error.filename is None else os.fsdecode(error.filename)
    try:
        with explained("use", place):
            raise error
    except EnvironmentProblem as problem:
        return problem


if __name__ == "__main__":
    sys.exit(main())
