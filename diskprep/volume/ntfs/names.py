"""Names that NTFS and Windows both take.

The file system itself takes more than Windows can open; a name that Windows would refuse, change or mix up with
another is refused here, before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from diskprep.errors import UsageError

COMPONENT_MAX_UNITS = 255
PATH_MAX_UNITS = 256  # 260 with drive, backslash and end: what programs without long paths open
_FORBIDDEN = re.compile(r'[\x00-\x1f"*/:<>?\\|]')
_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"]
)
_SYSTEM_FOLDERS = frozenset(["SYSTEM VOLUME INFORMATION"])


class NameNotAllowed(UsageError):
    """A path that cannot be on an NTFS volume that Windows is to read."""


def fold(path: str) -> str:
    """What two paths have in common when Windows takes them for the same file."""
    if path.isascii():
        return path.upper()
    return "".join(upper if len(upper := sign.upper()) == 1 else sign for sign in path)


def check(path: str) -> None:
    """Raise NameNotAllowed unless `path`, with forward slashes, is allowed below the root of the volume."""
    components = path.split("/")
    if units(path) > PATH_MAX_UNITS:
        raise NameNotAllowed(f"the path {path[:60]!r}... is longer than {PATH_MAX_UNITS} characters")
    for component in components:
        reason = _objection(component)
        if reason:
            raise NameNotAllowed(f"the path {path!r} cannot be on an NTFS volume: {reason}")
    if components[0].startswith("$") or fold(components[0]) in _SYSTEM_FOLDERS:
        raise NameNotAllowed(f"the path {path!r} is the system's own")


def check_collisions(existing: dict[str, tuple[str, bool]], files: Iterable[str]) -> None:
    """Raise NameNotAllowed when a new file meets another, or a directory, but for case.

    `existing`: folded path -> (path, is a directory) of what is on the volume; it is not changed.
    """
    taken = dict(existing)
    for path in files:
        components = path.split("/")
        for depth in range(1, len(components) + 1):
            name, is_directory = "/".join(components[:depth]), depth < len(components)
            known = taken.setdefault(fold(name), (name, is_directory)) if is_directory else taken.get(fold(name))
            if known is None:
                taken[fold(name)] = (name, False)
            elif known != (name, True) or not is_directory:
                raise NameNotAllowed(f"the path {path!r} collides with {known[0]!r} on the volume")


def units(text: str) -> int:
    """Length in UTF-16 units; raises NameNotAllowed for text that is none."""
    try:
        return len(text.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        raise NameNotAllowed(f"the path {text!r} is not text") from None


def _objection(name: str) -> str:
    if not name or name in (".", ".."):
        return "a component is empty, . or .."
    if _FORBIDDEN.search(name):
        return "it has a character that Windows forbids"
    if name[-1] in ". ":
        return "a component ends with a dot or a space"
    if fold(name.partition(".")[0].rstrip(" ")) in _DEVICES:
        return "it has the name of a device"
    if units(name) > COMPONENT_MAX_UNITS:
        return f"a component is longer than {COMPONENT_MAX_UNITS} characters"
    return ""
