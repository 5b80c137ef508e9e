"""Hooks: the user's programs around a snapshot, for example to put a database into a state that can be copied."""

from __future__ import annotations

import shlex

from diskprep import process
from diskprep.errors import DiskprepError, UsageError
from diskprep.view.model import Hooks

_TIMEOUT_S = 3600.0


class HookRun:
    """The hooks of one run: `post` follows `pre` whatever happens, and once only."""

    def __init__(self, hooks: Hooks) -> None:
        """Raises UsageError when a command line cannot be split or its program does not exist."""
        self._pre, self._post = _split("--pre-hook", hooks.pre), _split("--post-hook", hooks.post)
        self._owed = False

    @property
    def has_pre(self) -> bool:
        return bool(self._pre)

    @property
    def has_any(self) -> bool:
        return bool(self._pre or self._post)

    @property
    def owed(self) -> bool:
        """Whether post is still to be run."""
        return self._owed

    def pre(self) -> None:
        """Raises DiskprepError with the output when it fails; then post is not run. One that was interrupted may have
        done its work, so post is."""
        self._owed = True
        try:
            _run("--pre-hook", self._pre)
        except DiskprepError:
            self._owed = False
            raise

    def post(self) -> None:
        """Run it unless it was run before. Raises DiskprepError with the output when it fails."""
        if self._owed:
            self._owed = False
            _run("--post-hook", self._post)


def _split(option: str, line: str) -> list[str]:
    try:
        argv = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{option} {line!r} cannot be split into words: {error}") from None
    if argv and process.find(argv[0]) is None:
        raise UsageError(f"{option}: there is no program {argv[0]}", hint="give its absolute path")
    return argv


def _run(option: str, argv: list[str]) -> None:
    if not argv:
        return
    try:
        process.run(argv, timeout_s=_TIMEOUT_S)
    except DiskprepError as error:
        hint = (
            "nothing was taken; mend it, then give the same command again"
            if option == "--pre-hook"
            else ("see whether what --pre-hook did is still in effect")
        )
        raise DiskprepError(f"{option}: {error.message}", hint=hint) from None
