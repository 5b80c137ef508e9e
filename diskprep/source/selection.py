"""Selection: which entries of a source a backup leaves out, by restic's rules.

A pattern is matched component by component against the absolute original path. A path is left out when the last pattern
that matches it, or a directory it is in, is not negated; case-sensitive and case-insensitive patterns are two lists
that know nothing of each other. Names are bytes; in one that is not UTF-8 each stray byte counts as a character.

Patterns are compiled once. Which of them an entry's name could complete depends on its directory only; that is found
when a directory is first met, and kept for some thousands of them. So an entry costs a few comparisons of its name,
however many patterns there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, groupby
from pathlib import Path
from typing import NamedTuple

from diskprep.errors import UsageError
from diskprep.events import Emit, Note, silent
from diskprep.source.reader import EntryUnreadable, OpenDirectory
from diskprep.source.source import display, public_path

_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_VARIABLE = re.compile(rb"\$(?:\{([^}]+)\}|([*#$@!?\-0-9]|[A-Za-z_][A-Za-z0-9_]*)|(\{))")
_PLACES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One pattern as it was given; `origin` says where, for messages. Raises UsageError when it is malformed."""

    text: bytes
    origin: str = "--exclude"

    def __post_init__(self) -> None:
        try:
            _rule(self.text)
        except ValueError as error:
            raise UsageError(
                f"{self.origin}: the pattern {display(self.text)} is malformed: {error}",
                hint="a backslash before *, ?, [ or \\ takes its meaning away",
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A directory that holds an entry `name`, whose content begins with `header`, is left out but for that entry. An
    empty header is met by any entry, even a directory."""

    name: bytes
    header: bytes = b""


CACHEDIR_TAG = Tag(name=b"CACHEDIR.TAG", header=b"Signature: 8a477f597d28d172789f06886806bc55")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a backup leaves out; nothing by default. Threads may share it.

    `exclude` and `iexclude` (the latter match in any case): in each the last pattern that matches decides.
    `larger_than_bytes`: regular files longer than this are left out. `one_file_system`: entries on another device than
    their source are left out, but a directory is kept, empty, where the other device begins.
    """

    exclude: tuple[Pattern, ...] = ()
    iexclude: tuple[Pattern, ...] = ()
    tags: tuple[Tag, ...] = ()
    larger_than_bytes: int | None = None
    one_file_system: bool = False
    _lists: tuple[_Rules, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = _Rules((pattern.text for pattern in self.exclude), any_case=False)
        folded = _Rules((_lower(pattern.text) for pattern in self.iexclude), any_case=True)
        object.__setattr__(self, "_lists", tuple(rules for rules in (exact, folded) if rules.effective))

    @property
    def has_patterns(self) -> bool:
        """Whether `leaves_out` can ever be true."""
        return bool(self._lists)

    def leaves_out(self, path: bytes) -> bool:
        """Whether a pattern leaves out the entry at `path`, absolute and clean. Holds for a source as well, and for any
        entry whose directory is not left out; below one that is, nothing is to be asked. The root never is left out.
        Fastest when asked for the entries of one directory after the other."""
        for rules in self._lists:  # noqa: SIM110 - called for every entry; a generator doubles its time
            if rules.leave_out(path):
                return True
        return False

    def marked(
        self, directory: OpenDirectory, names: Collection[bytes], *, path: bytes, emit: Emit = silent
    ) -> frozenset[bytes] | None:
        """What stays of a directory that holds a tag: the tag, or nothing when two tags leave out each other; None when
        no tag marks it. `names` are all its entries, left out or not; `path` is for notes on tags that mark nothing.
        A tag with a header is a regular file, never a symlink. Raises StorageUnavailable."""
        found = {tag.name for tag in self.tags if tag.name in names and _begins(directory, tag, path, emit)}
        return (frozenset(found) if len(found) == 1 else frozenset()) if found else None

    def described(self) -> tuple[str, ...]:
        """The patterns as they were given, for the snapshot's `excludes`."""
        return tuple(public_path(pattern.text) for pattern in (*self.exclude, *self.iexclude))


def parse_tag(text: bytes, *, origin: str = "--exclude-if-present") -> Tag:
    """The tag in `NAME[:HEADER]`. Raises UsageError."""
    name, _, header = text.partition(b":")
    if not name or b"/" in name:
        raise UsageError(
            f"{origin}: {display(text)} names no tag file", hint="write it as NAME or NAME:HEADER, without a folder"
        )
    return Tag(name=name, header=header)


def read_patterns(path: Path) -> tuple[Pattern, ...]:
    """The patterns in a file, as `parse_patterns` has them, with this process's environment. Raises UsageError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {display(os.fsencode(path))}: {error.strerror}") from None
    return parse_patterns(content, file=display(os.fsencode(path)), environment=os.environb)


def parse_patterns(content: bytes, *, file: str, environment: Mapping[bytes, bytes]) -> tuple[Pattern, ...]:
    """One pattern a line, without the white space around it; no empty lines, no lines that begin with `#`. `$NAME` and
    `${NAME}` stand for the environment's value, `$$` for a dollar sign. UTF-8 or any bytes; UTF-16 with a byte order
    mark. Raises UsageError for a malformed pattern and for a variable that is not set, with file and line."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", "replace").encode()
    patterns = []
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = _bytes(_text(raw).strip(_SPACE))
        if line and not line.startswith(b"#"):
            origin = f"{file}, line {number}"
            patterns.append(Pattern(text=_expand(line, origin, environment), origin=origin))
    return tuple(patterns)


def _expand(line: bytes, origin: str, environment: Mapping[bytes, bytes]) -> bytes:
    def value(match: re.Match[bytes]) -> bytes:
        name = match[1] or match[2] or b""
        if name == b"$":
            return name
        if name not in environment:
            # restic takes it as empty, which can turn $CACHE/* into /*.
            raise UsageError(
                f"{origin}: {display(match[0])} in the pattern {display(line)} names no variable that is set",
                hint="set it, or write $$ for a dollar sign",
            )
        return environment[name]

    return _VARIABLE.sub(value, line)


def _begins(directory: OpenDirectory, tag: Tag, path: bytes, emit: Emit) -> bool:
    if not tag.header:
        return True
    buffer = bytearray(len(tag.header))
    try:
        file = directory.file(tag.name)
        try:
            file.read_into(memoryview(buffer), 0)
        finally:
            file.close()
    except EntryUnreadable as error:
        reason = error.message
    else:
        if buffer == tag.header:
            return True
        reason = "it does not begin as a tag does"
    shown = display(path.rstrip(b"/") + b"/" + tag.name)
    emit(Note(stage="stage", text=f"{shown} leaves out nothing: {reason}"))
    return False


# -- one component of a pattern


class _Part(NamedTuple):
    """`value` is all of a name, its beginning, its end, or a regular expression for its text."""

    kind: str
    value: bytes


_WHOLE, _BEGINNING, _END, _EXPRESSION = "whole", "beginning", "end", "expression"
_ANY_NAME = _Part(_BEGINNING, b"")


class _Names:
    """Names that match at least one of some parts."""

    __slots__ = ("_beginnings", "_ends", "_expression", "_whole")

    def __init__(self, parts: Iterable[_Part]) -> None:
        values: dict[str, list[bytes]] = {kind: [] for kind in (_WHOLE, _BEGINNING, _END, _EXPRESSION)}
        for part in parts:
            values[part.kind].append(part.value)
        self._whole = frozenset(values[_WHOLE])
        self._beginnings, self._ends = tuple(values[_BEGINNING]), tuple(values[_END])
        expressions = "|".join(f"(?:{_text(value)})" for value in values[_EXPRESSION])
        self._expression = re.compile(expressions, re.DOTALL) if expressions else None

    def has(self, name: bytes) -> bool:
        return (
            name in self._whole
            or name.endswith(self._ends)
            or name.startswith(self._beginnings)
            or (self._expression is not None and self._expression.fullmatch(_text(name)) is not None)
        )


def _part(glob: str) -> _Part:
    """Raises ValueError with what is wrong."""
    chunks: list[tuple[str | None, str]] = [("", "")]  # between stars: the literal text (None: it is none), expression
    at = 0
    while at < len(glob):
        sign = glob[at]
        at += 1
        literal, expression = chunks[-1]
        if sign == "*":
            if expression or len(chunks) == 1:  # two stars are one
                chunks.append(("", ""))
            continue
        if sign == "?":
            chunks[-1] = None, expression + "."
        elif sign == "[":
            characters, at = _class(glob, at)
            chunks[-1] = None, expression + characters
        else:
            if sign == "\\":
                if at == len(glob):
                    raise ValueError("a backslash stands at the end of a component")
                sign = glob[at]
                at += 1
            chunks[-1] = None if literal is None else literal + sign, expression + re.escape(sign)
    (first, head), *others = chunks
    if not others:
        return _Part(_EXPRESSION, _bytes(head)) if first is None else _Part(_WHOLE, _bytes(first))
    *inner, (last, tail) = others
    if not inner and first is not None and last == "":
        return _Part(_BEGINNING, _bytes(first))
    if not inner and first == "" and last is not None:
        return _Part(_END, _bytes(last))
    # Atomic: where a chunk first matches is as good as any later place, and long names take no longer.
    return _Part(_EXPRESSION, _bytes(head + "".join(f"(?>.*?{chunk})" for _, chunk in inner) + ".*" + tail))


def _class(glob: str, at: int) -> tuple[str, int]:
    """The expression for a class whose first character is at `at`, and where it ends."""
    negated = glob.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and glob.startswith("]", at)):
        low, at = _class_character(glob, at)
        high = low
        if glob.startswith("-", at):
            high, at = _class_character(glob, at + 1)
        ranges.append((low, high))
    members = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges if low <= high)
    if any(low <= "\ufffd" <= high for low, high in ranges):
        members += "\udc80-\udcff"  # what stray bytes are taken for
    if not members:
        return ("." if negated else "(?!)"), at + 1
    return f"[{'^' if negated else ''}{members}]", at + 1


def _class_character(glob: str, at: int) -> tuple[str, int]:
    if glob.startswith(("-", "]"), at):
        raise ValueError(f"{glob[at]} stands in a class where a character must be")
    at += glob.startswith("\\", at)
    if at == len(glob):
        raise ValueError("a class is not closed")
    if "\udc80" <= glob[at] <= "\udcff":
        raise ValueError("a class holds bytes that are not UTF-8")
    return glob[at], at + 1


# -- whole patterns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """A pattern, taken apart. `rooted`: its first component is an entry of the root. In `parts`, None stands for any
    number of components; `names` recognise the others."""

    negated: bool
    rooted: bool
    parts: tuple[_Part | None, ...]
    names: tuple[_Names, ...]

    @property
    def head(self) -> tuple[bytes, ...] | None:
        """What must be above the last component, if just this must; None: it takes more to say."""
        head = tuple(part.value for part in self.parts[:-1] if part is not None and part.kind == _WHOLE)
        return head if len(head) == len(self.parts) - 1 and self.parts[-1] is not None else None

    @property
    def needs(self) -> frozenset[bytes]:
        """Components without which a directory has no entry that completes the pattern."""
        fixed = [part for part in self.parts if part is not None]
        return frozenset(part.value for part in fixed[:-1] if part.kind == _WHOLE)

    def completions(self, directory: tuple[bytes, ...]) -> Iterable[_Part]:
        """What the name of an entry of `directory`, given by its components, must match for the pattern to match."""
        if self.parts.count(None) > 1:
            return self._wide_completions(directory)
        star = self.parts.index(None) if None in self.parts else -1
        tail, last = self.names[star + 1 : -1], self.parts[-1]
        above = len(directory) - len(tail)
        if last is None or above < 0 or not _match(tail, directory, above):
            return ()
        if star < 0:
            return (last,) if above == 0 or not self.rooted else ()
        room = above - star + 1
        offsets = range(min(room, 1) if self.rooted else room)
        return (last,) if any(_match(self.names[:star], directory, offset) for offset in offsets) else ()

    def _wide_completions(self, directory: tuple[bytes, ...]) -> set[_Part]:
        """With several `**`. restic widens them from left to right, each by no more than would make the pattern, with
        one component for each `**` still to come, as long as the path; so the path must have some components to spare,
        and /a/**/b/** leaves out what is in /a/b, but not /a/b itself."""
        depth = len(directory) + 1
        spare = depth - len(self.parts) + (not self.rooted)
        found: set[_Part] = set()
        for offset in (0,) if self.rooted else range(depth):
            # How many components can be taken so far, and the part that the entry's name must match, if any.
            taken: set[tuple[int, _Part | None]] = {(offset, None)}
            stars = fixed = 0
            for part, names in zip(self.parts, self.names, strict=True):
                if part is None:
                    stars += 1
                    limit = min(depth, offset + fixed + spare + stars)
                    taken = {(end, wanted) for count, wanted in taken for end in range(count, limit + 1)}
                else:
                    fixed += 1
                    taken = {
                        (count + 1, part if count == depth - 1 else None)
                        for count, _ in taken
                        if count < depth and (count == depth - 1 or names.has(directory[count]))
                    }
            found |= {wanted or _ANY_NAME for count, wanted in taken if count > offset}
        return found


def _match(names: Sequence[_Names], components: tuple[bytes, ...], offset: int) -> bool:
    return all(map(_Names.has, names, components[offset:]))


def _rule(text: bytes) -> _Rule:
    """Raises ValueError with what is wrong."""
    if b"\0" in text:
        raise ValueError("it holds a NUL")
    negated = text.startswith(b"!")
    clean = os.path.normpath(_text(text[negated:]))
    rooted = clean.startswith("/")
    globs = clean.strip("/").split("/") if clean.strip("/") else ["**"]  # the root: everything
    parts = [None if glob == "**" else _part(glob) for glob in globs]
    if parts.count(None) == 1 and parts[-1] is None:
        parts.pop()
    elif parts.count(None) == 1 and parts[0] is None:
        parts.pop(0)
        rooted = False
    if not parts:
        parts, rooted = [_ANY_NAME], False
    names = tuple(_Names([part] if part else []) for part in parts)
    return _Rule(negated=negated, rooted=rooted, parts=tuple(parts), names=names)


class _Group:
    """Patterns in a row that are all negated, or all not: which of them matches makes no difference."""

    def __init__(self, rules: Iterable[_Rule]) -> None:
        self._anywhere: dict[_Part, None] = {}
        self._rooted: dict[tuple[bytes, ...], list[_Part]] = {}
        self._relative: dict[tuple[bytes, ...], list[_Part]] = {}
        self._others: list[tuple[frozenset[bytes], _Rule]] = []
        self._known: dict[tuple[_Part, ...], _Names] = {}
        for rule in rules:
            head, last = rule.head, rule.parts[-1]
            if head is None or last is None:
                self._others.append((rule.needs, rule))
            elif head or rule.rooted:
                (self._rooted if rule.rooted else self._relative).setdefault(head, []).append(last)
            else:
                self._anywhere[last] = None
        self._lengths = sorted({len(head) for head in self._relative})

    def names(self, directory: tuple[bytes, ...]) -> _Names | None:
        """The names of a directory's entries that match; None when there can be none. Names that match only because the
        directory does may be wanting."""
        parts = list(self._rooted.get(directory, ()))
        for length in self._lengths:
            parts += self._relative.get(directory[-length:], ())
        if self._others:
            components = frozenset(directory)
            for needs, rule in self._others:
                if needs <= components:
                    parts += rule.completions(directory)
        if not parts and not self._anywhere:
            return None
        key = tuple(parts)
        names = self._known.get(key)
        if names is None:
            if len(self._known) >= _PLACES:
                self._known.clear()
            names = self._known[key] = _Names(self._anywhere | dict.fromkeys(parts))
        return names


class _Place:
    """A directory: the last group that matches it (-1: none), and the names that later groups match in it, the last
    group first."""

    __slots__ = ("components", "group", "names")

    def __init__(self, components: tuple[bytes, ...], group: int, groups: tuple[_Group, ...]) -> None:
        self.components, self.group = components, group
        candidates = ((index, groups[index].names(components)) for index in range(len(groups) - 1, group, -1))
        self.names = tuple((index, names) for index, names in candidates if names is not None)

    def group_of(self, name: bytes) -> int:
        for index, names in self.names:
            if names.has(name):
                return index
        return self.group


class _Rules:
    """One list of patterns, as groups: the first leaves out, the second takes back, and so on."""

    def __init__(self, patterns: Iterable[bytes], *, any_case: bool) -> None:
        rules = [_rule(text) for text in patterns if text]
        rules = list(dropwhile(lambda rule: rule.negated, rules))  # nothing to take back yet
        self._any_case = any_case
        self._groups = tuple(_Group(group) for _, group in groupby(rules, key=lambda rule: rule.negated))
        self._places: dict[bytes, _Place] = {}

    @property
    def effective(self) -> bool:
        return bool(self._groups)

    def leave_out(self, path: bytes) -> bool:
        if self._any_case:
            path = _lower(path)
        directory, _, name = path.rpartition(b"/")
        group = (self._places.get(directory) or self._enter(directory)).group_of(name)
        return group >= 0 and group & 1 == 0 and name != b""

    def _enter(self, directory: bytes) -> _Place:
        way = []
        place = None
        while place is None and directory:
            way.append(directory)
            directory = directory.rpartition(b"/")[0]
            place = self._places.get(directory)
        if place is None:
            place = self._places[b""] = _Place((), -1, self._groups)
        for path in reversed(way):
            name = path.rpartition(b"/")[2]
            place = _Place((*place.components, name), place.group_of(name), self._groups)
            if len(self._places) >= _PLACES:
                self._places.clear()
            self._places[path] = place
        return place


class _Lower(dict[int, int]):
    """A character's lower-case form, one for one; stray bytes all become U+FFFD. Filled as it is asked."""

    def __missing__(self, code: int) -> int:
        return self.setdefault(code, 0xFFFD if 0xDC80 <= code <= 0xDCFF else ord(chr(code).lower()[0]))


_LOWER = _Lower()


def _lower(path: bytes) -> bytes:
    return path.lower() if path.isascii() else _text(path).translate(_LOWER).encode()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
