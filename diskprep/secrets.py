"""Secrets: passphrases, recovery passwords and keys, wrapped so that they cannot be printed by accident.

Invariants: a Secret never shows its value in repr, str, format or a pickle; values enter through files, descriptors,
commands or a prompt, never through argv or the environment.
"""

from __future__ import annotations

import os
import secrets as _random
from pathlib import Path
from typing import AnyStr, Generic, NoReturn

from diskprep.errors import UsageError

PASSPHRASE_MIN_CHARS = 16
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 signs that survive handwriting: no l, o, 0, 1


class Secret(Generic[AnyStr]):
    """A str or bytes value that only `reveal()` shows."""

    __slots__ = ("_value",)

    def __init__(self, value: AnyStr) -> None:
        self._value: AnyStr = value

    def reveal(self) -> AnyStr:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = self._value, other.reveal()
        if isinstance(mine, str) and isinstance(theirs, str):
            return _random.compare_digest(mine.encode(), theirs.encode())
        if isinstance(mine, bytes) and isinstance(theirs, bytes):
            return _random.compare_digest(mine, theirs)
        return False

    __hash__ = None  # type: ignore[assignment]  # a hash would be one more place to leak into

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")


def generate_passphrase() -> Secret[str]:
    """A new passphrase of 160 random bits, in eight groups of four signs."""
    signs = "".join(_random.choice(_ALPHABET) for _ in range(32))
    return Secret("-".join(signs[i : i + 4] for i in range(0, 32, 4)))


def check_new_passphrase(passphrase: Secret[str]) -> Secret[str]:
    """Return `passphrase`; raise UsageError when it is shorter than 16 characters."""
    if len(passphrase.reveal()) < PASSPHRASE_MIN_CHARS:
        raise UsageError(
            f"the passphrase has fewer than {PASSPHRASE_MIN_CHARS} characters",
            hint="choose a longer one; it protects the only copy while it travels",
        )
    return passphrase


def read_passphrase_file(path: Path) -> Secret[str]:
    """The passphrase in `path`, without its final newline."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the passphrase file {path} is not text in UTF-8") from None
    return Secret(text.removesuffix("\n").removesuffix("\r"))


def read_passphrase_fd(descriptor: int) -> Secret[str]:
    """The passphrase that an open descriptor delivers up to its end, without its final newline."""
    try:
        with os.fdopen(descriptor, "rb") as stream:
            text = stream.read(65536).decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the passphrase from descriptor {descriptor}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"what descriptor {descriptor} delivers is not text in UTF-8") from None
    return Secret(text.removesuffix("\n").removesuffix("\r"))
