"""Secrets: passphrases, recovery passwords and keys, wrapped so that they cannot be printed by accident.

Invariants: a Secret never shows its value in repr, str, format or a pickle; values enter through files, descriptors,
commands or a prompt, never through argv or the environment.
"""

from __future__ import annotations

import codecs
import os
import secrets as _random
import stat
import unicodedata
from pathlib import Path
from typing import AnyStr, Generic, NoReturn

from diskprep.errors import UsageError

PASSPHRASE_MIN_CHARS = 16
PASSPHRASE_MAX_BYTES = 1 << 20
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 signs that survive handwriting: no l, o, 0, 1
#: What restic takes off both ends; str.strip() would take the separators 1C to 1F too.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_UNTYPABLE = ("Cc", "Cs", "Zl", "Zp")
_WIDE_MARKS = ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_WITHOUT_MODES = {"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "cifs", "smb3", "vboxsf", "drvfs"}


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
    """Return `passphrase`. Raises UsageError when it has fewer than 16 characters, or cannot be given in every way:
    white space at its ends is lost in a file, and a line end, a control character or a stray byte in a prompt."""
    value = passphrase.reveal()
    if value.strip(_WHITE_SPACE) != value:
        raise UsageError("the passphrase begins or ends with white space", hint="a passphrase file would lose it")
    if any(unicodedata.category(sign) in _UNTYPABLE for sign in value):
        raise UsageError(
            "the passphrase has a line end, a control character, or bytes that are not text in UTF-8",
            hint="choose one that can be typed: in need it is the only way in",
        )
    if len(value) < PASSPHRASE_MIN_CHARS:
        raise UsageError(
            f"the passphrase has fewer than {PASSPHRASE_MIN_CHARS} characters",
            hint="choose a longer one; it protects the only copy while it travels",
        )
    return passphrase


def parse_passphrase(content: bytes, origin: str) -> Secret[str]:
    """The passphrase in the bytes that `origin` delivered, taken as restic takes it: without the white space around it,
    and otherwise as it is, also bytes that are not UTF-8. Raises UsageError when it is empty or much too long."""
    if len(content) > PASSPHRASE_MAX_BYTES:
        raise UsageError(f"{origin} has more than {PASSPHRASE_MAX_BYTES} bytes: that is no passphrase")
    value = content.decode("utf-8", "surrogateescape").strip(_WHITE_SPACE)
    if not value:
        raise UsageError(f"{origin} is empty")
    return Secret(value)


def read_passphrase_file(path: Path) -> Secret[str]:
    """The passphrase in `path`. Raises UsageError."""
    try:
        with path.open("rb") as stream:
            content = stream.read(PASSPHRASE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the passphrase file {path}: {error.strerror}") from None
    return parse_passphrase(_unmarked(content, f"the passphrase file {path}"), f"the passphrase file {path}")


def read_passphrase_fd(descriptor: int) -> Secret[str]:
    """The passphrase that an open descriptor delivers up to its end. Raises UsageError."""
    origin = f"what descriptor {descriptor} delivers"
    try:
        # The next file that is opened must not become standard input.
        with os.fdopen(descriptor, "rb", closefd=descriptor > 2) as stream:
            content = stream.read(PASSPHRASE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is none"
        raise UsageError(f"cannot read the passphrase from descriptor {descriptor}: {reason}") from None
    return parse_passphrase(_unmarked(content, origin), origin)


def is_open_to_others(path: Path) -> bool:
    """Whether somebody but its owner may read a file. Pipes and files without modes of their own are not meant."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o077:
            return False
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    kinds = {line.partition(" - ")[2].split(" ")[0] for line in mounts if line.split(" ")[2] == device}
    return not kinds & _WITHOUT_MODES


def _unmarked(content: bytes, origin: str) -> bytes:
    """Text of editors that put a byte order mark first: without it, in UTF-8."""
    for mark, encoding in _WIDE_MARKS:
        if content.startswith(mark):
            try:
                return content.removeprefix(mark).decode(encoding).encode("utf-8")
            except UnicodeError:
                raise UsageError(f"{origin} is not the text that its byte order mark announces") from None
    return content.removeprefix(codecs.BOM_UTF8)
