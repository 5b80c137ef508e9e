"""The command line: the only place that prints, asks and draws. One noun a module; errors become exit codes here."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
from typing import NoReturn

from diskprep import interrupts
from diskprep.errors import DiskprepError, Interrupted, StorageUnavailable

_NO_READER = 141  # 128 + SIGPIPE, as the shell has it


def main() -> NoReturn:
    """Entry point of the `diskprep` program."""
    _open_standard_streams()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks for a status line, and must not end what has none yet
    interrupts.install()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # memory holds keys
    try:
        # The application pulls in the stages; it is loaded here so that importing this package costs nothing.
        with interrupts.held():
            output = importlib.import_module("diskprep.cli.output")
            application = importlib.import_module("diskprep.cli.application")
        code = application.run(sys.argv[1:])
        sys.stdout.flush()
    except DiskprepError as error:
        code = output.print_error(error)
    except KeyboardInterrupt:
        code = output.print_error(Interrupted("stopped", hint="give the same command again to go on"))
    except BrokenPipeError:
        code = _NO_READER
    except OSError as error:  # of our own output, or one that a package should have translated
        code = output.print_error(StorageUnavailable(str(error)))
    _leave(code)


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 that were closed would be given to the next file that is opened: a journal, or a disk."""
    with contextlib.suppress(OSError):  # in a bare chroot without /dev there is nothing to fill them with
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115


def _leave(code: int) -> NoReturn:
    """Exit with `code`, whatever becomes of output that nobody takes."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or the interpreter complains at its end
    sys.exit(code)
