"""Choice: which entries of a recovery point are restored. Patterns are restic's, as a backup's are.

An entry is chosen when it is one of `paths` or below one (all are, without paths), when `include` or `iinclude` matches
it or a directory it is in (all do, without either), and when `exclude` and `iexclude` match neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from diskprep.errors import UsageError
from diskprep.source.selection import Pattern, Selection
from diskprep.source.source import display

Components = tuple[bytes, ...]


class Verdict(IntEnum):
    """`THROUGH`: a directory that is not chosen, but may hold what is."""

    LEAVE = 0
    THROUGH = 1
    TAKE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Paths are absolute. Raises UsageError."""

    paths: tuple[bytes, ...] = ()
    include: tuple[Pattern, ...] = ()
    iinclude: tuple[Pattern, ...] = ()
    exclude: tuple[Pattern, ...] = ()
    iexclude: tuple[Pattern, ...] = ()
    wanted: tuple[Components, ...] = field(init=False)
    _include: Selection = field(init=False, repr=False, compare=False)
    _exclude: Selection = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.startswith(b"/") or b"\0" in path or {b".", b".."} & set(path.split(b"/")):
                raise UsageError(f"{display(path)} is not an absolute path in a recovery point")
        wanted = tuple(dict.fromkeys(tuple(part for part in path.split(b"/") if part) for path in self.paths))
        object.__setattr__(self, "wanted", () if () in wanted else wanted)  # the root: everything
        object.__setattr__(self, "_include", Selection(exclude=self.include, iexclude=self.iinclude))
        object.__setattr__(self, "_exclude", Selection(exclude=self.exclude, iexclude=self.iexclude))

    @property
    def is_everything(self) -> bool:
        return not (self.wanted or self.include or self.iinclude or self._exclude.has_patterns)

    def judge(self, directory: Components, name: bytes, *, is_directory: bool) -> Verdict:
        """What becomes of an entry of a directory that is not left out itself."""
        here = (*directory, name)
        verdict = self._by_path(here, is_directory=is_directory) if self.wanted else Verdict.TAKE
        path = b"/" + b"/".join(here)
        if verdict is not Verdict.LEAVE and self._exclude.has_patterns and self._exclude.leaves_out(path):
            return Verdict.LEAVE
        if verdict is Verdict.TAKE and (self.include or self.iinclude) and not self._include.leaves_out(path):
            return Verdict.THROUGH if is_directory else Verdict.LEAVE
        return verdict

    def _by_path(self, here: Components, *, is_directory: bool) -> Verdict:
        found = Verdict.LEAVE
        for path in self.wanted:
            if here[: len(path)] == path:
                return Verdict.TAKE
            if is_directory and path[: len(here)] == here:
                found = Verdict.THROUGH
        return found

    def met(self, directory: Components, name: bytes) -> Sequence[int]:
        """Which of `wanted` an entry is."""
        here = (*directory, name)
        return [number for number, path in enumerate(self.wanted) if path == here]


EVERYTHING = Choice()
