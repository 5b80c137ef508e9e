"""Reading XML that comes from outside: an event at a time, without entities or DTDs, within limits.

Invariant: no more memory is used than one portion, one element's text and the reader's own values. Input is fed in
small portions and refused when a megabyte of it ends no element (one endless attribute or text); names that the parser
would remember are limited too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import NoReturn
from xml.parsers import expat

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged

DEPTH_LIMIT = 16
TEXT_LIMIT_CHARS = 1 << 16
_NAMES_LIMIT = 256  # of elements and attributes, all different ones of a document
_PORTION_BYTES = 1 << 16
_STILL_LIMIT_BYTES = 1 << 20

#: What a reader is told: `start(path, attributes)`, `end(path, text)`; a path is the tags from the root, joined by `/`.
Start = Callable[[str, dict[str, str]], None]
End = Callable[[str, str], None]


class _Target:
    """Receives the parser's events, keeps the path and the text of the innermost element."""

    __slots__ = ("_chars", "_end", "_names", "_path", "_start", "_text", "events")

    def __init__(self, start: Start, end: End) -> None:
        self._start, self._end = start, end
        self._path: list[str] = []
        self._names: set[str] = set()
        self._text = ""
        self.events = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        path = self._path
        if len(path) == DEPTH_LIMIT:
            raise DataDamaged("elements are nested too deeply")
        if tag not in self._names or not self._names.issuperset(attributes):
            self._remember({tag, *attributes})
        self.events += 1
        self._text = ""
        place = f"{path[-1]}/{tag}" if path else tag
        path.append(place)
        self._start(place, attributes)

    def data(self, text: str) -> None:
        if len(self._text) + len(text) > TEXT_LIMIT_CHARS:
            raise DataDamaged("an element's text is too long")
        self._text += text

    def end(self, _tag: str) -> None:
        self.events += 1
        text, self._text = self._text, ""
        self._end(self._path.pop(), text.strip())

    def namespace(self, prefix: str | None, uri: str | None) -> None:
        self._remember({f"{prefix} {uri}"})

    def _remember(self, names: set[str]) -> None:
        self._names |= names
        if len(self._names) > _NAMES_LIMIT:
            raise DataDamaged("it has too many different names")


def parse(data: Buffer, what: str, start: Start, end: End, *, limit_bytes: int) -> None:
    """Call `start` and `end` for each element of `data`. Raises DataDamaged; `what` names the document in messages."""
    for _ in read((data,), what, start, end, limit_bytes=limit_bytes):
        pass


def read(chunks: Iterable[Buffer], what: str, start: Start, end: End, *, limit_bytes: int) -> Iterator[None]:
    """As `parse`, of a document that comes in chunks of any size, and gives back control after each 64 KiB of it.

    It has ended, and is one whole document, when the iterator is exhausted.
    """
    target = _Target(start, end)
    parser = _parser(target)
    fed = still = 0
    for portion in _portions(chunks):
        fed += len(portion)
        if fed > limit_bytes:
            raise DataDamaged(f"{what} has more than {limit_bytes} bytes, which is the limit")
        before = target.events
        _feed(parser, portion, what, final=False)
        still = 0 if target.events > before else still + len(portion)
        if still >= _STILL_LIMIT_BYTES:
            raise DataDamaged(f"{what}: one value is larger than a megabyte")
        yield
    _feed(parser, b"", what, final=True)


def _parser(target: _Target) -> expat.XMLParserType:
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = target.start
    parser.EndElementHandler = target.end
    parser.CharacterDataHandler = target.data
    parser.StartNamespaceDeclHandler = target.namespace
    parser.StartDoctypeDeclHandler = _no_doctype
    return parser


def _no_doctype(*_declaration: object) -> NoReturn:
    """Without a document type there are no entities but the five of XML itself."""
    raise DataDamaged("it has a document type declaration")


def _feed(parser: expat.XMLParserType, portion: Buffer, what: str, *, final: bool) -> None:
    try:
        parser.Parse(portion, final)
    except (expat.ExpatError, ValueError, LookupError) as error:
        # The exception is dropped on purpose: its text may quote the document, which may hold a signature.
        raise DataDamaged(f"{what} is not acceptable XML ({type(error).__name__})") from None
    except DataDamaged as error:
        raise DataDamaged(f"{what}: {error.message}") from None


def _portions(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        for offset in range(0, len(view), _PORTION_BYTES):
            yield view[offset : offset + _PORTION_BYTES]


def element(tag: str, text: str, attributes: str = "") -> str:
    """`<tag attributes>text</tag>`; `attributes` is ready-made, with a leading space."""
    return f"<{tag}{attributes}>{escape(text)}</{tag}>"


def attribute(name: str, value: str | int) -> str:
    """` name="value"`."""
    return f' {name}="{escape(str(value))}"'


def check_characters(text: str, what: str) -> str:
    """Return `text`; raise DataDamaged when XML 1.0 cannot hold it, or a terminal or a path should not."""
    if not text.isprintable():
        raise DataDamaged(f"{what} has a character that does not belong there: {text!a}")
    return text
