"""The command line: the only place that prints, asks and draws. One noun a module; errors become exit codes here."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import NoReturn

from diskprep.errors import DiskprepError, Interrupted


def main() -> NoReturn:
    """Entry point of the `diskprep` program."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    # The application pulls in every stage; it is loaded here so that importing this package costs nothing.
    application = importlib.import_module("diskprep.cli.application")
    output = importlib.import_module("diskprep.cli.output")
    try:
        sys.exit(application.run(sys.argv[1:]))
    except DiskprepError as error:
        output.print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        stopped = Interrupted("stopped", hint="give the same command again to go on")
        output.print_error(stopped)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        sys.exit(141)  # who read our output went away: 128 + SIGPIPE, as the shell has it


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
