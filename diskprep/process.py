"""The door to other programs: every child process of diskprep starts here.

Children get a fixed PATH, a clean environment, no terminal input, and never a secret in argv or environment.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from diskprep.errors import DiskprepError, ToolMissing

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}

#: program -> Debian package that has it
PACKAGES = {
    "mkntfs": "ntfs-3g",
    "blkdiscard": "util-linux",
    "smartctl": "smartmontools",
}


def find(program: str) -> str | None:
    """Absolute path of `program` on the fixed search path, or None."""
    return shutil.which(program, path=SEARCH_PATH)


def require(program: str) -> str:
    """Absolute path of `program`; raises ToolMissing with the Debian package to install."""
    path = find(program)
    if path is None:
        package = PACKAGES.get(program, program)
        raise ToolMissing(f"the program {program} is missing", hint=f"apt-get install {package}")
    return path


def run(argv: Sequence[str], *, pass_fds: Sequence[int] = (), timeout_s: float = 600.0) -> str:
    """Run `argv[0]` (looked up by `require`) to its end and return what it printed on both streams.

    Raises ToolMissing when it does not exist and DiskprepError when it fails or outlasts `timeout_s`.
    """
    program = require(argv[0])
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            pass_fds=tuple(pass_fds),
            timeout=timeout_s,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise DiskprepError(f"{argv[0]} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise DiskprepError(f"cannot start {program}: {error.strerror}") from error
    if done.returncode:
        raise DiskprepError(f"{argv[0]} failed with exit status {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout
