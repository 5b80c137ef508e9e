"""Reading XML that comes from outside: an event at a time, without entities or DTDs, within limits.

Invariant: no more memory is used than one element's text and the reader's own values; input is fed in small portions
and refused when a portion of a megabyte ends no element (one endless attribute or text).
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from xml.etree.ElementTree import ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from diskprep.errors import DataDamaged

DEPTH_LIMIT = 16
TEXT_LIMIT_CHARS = 1 << 16
_PORTION_BYTES = 1 << 16
_STILL_LIMIT_BYTES = 1 << 20

#: What a reader is told: `start(path, attributes)`, `end(path, text)`; a path is the tags from the root, joined by `/`.
Start = Callable[[str, dict[str, str]], None]
End = Callable[[str, str], None]


class _Target:
    """Receives the parser's events, keeps the path and the text of the innermost element."""

    def __init__(self, start: Start, end: End) -> None:
        self._start, self._end = start, end
        self._path: list[str] = []
        self._text: list[str] = []
        self._chars = 0
        self.events = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._path) == DEPTH_LIMIT:
            raise DataDamaged("elements are nested too deeply")
        self.events += 1
        self._path.append(f"{self._path[-1]}/{tag}" if self._path else tag)
        self._text, self._chars = [], 0
        self._start(self._path[-1], attributes)

    def data(self, text: str) -> None:
        self._chars += len(text)
        if self._chars > TEXT_LIMIT_CHARS:
            raise DataDamaged("an element's text is too long")
        self._text.append(text)

    def end(self, _tag: str) -> None:
        self.events += 1
        self._end(self._path.pop(), "".join(self._text).strip())
        self._text, self._chars = [], 0

    def close(self) -> None:
        return None


def parse(data: bytes, what: str, start: Start, end: End, *, limit_bytes: int) -> None:
    """Call `start` and `end` for each element of `data`. Raises DataDamaged; `what` names the document in messages."""
    if len(data) > limit_bytes:
        raise DataDamaged(f"{what} has {len(data)} bytes; the limit is {limit_bytes}")
    target = _Target(start, end)
    parser = DefusedXMLParser(target=target, forbid_dtd=True)
    still = 0
    try:
        for offset in range(0, len(data), _PORTION_BYTES):
            before = target.events
            parser.feed(data[offset : offset + _PORTION_BYTES])
            still = 0 if target.events > before else still + _PORTION_BYTES
            if still >= _STILL_LIMIT_BYTES:
                raise DataDamaged("one value is larger than a megabyte")
        parser.close()
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        # The exception is dropped on purpose: its text may quote the document, which may hold a signature.
        raise DataDamaged(f"{what} is not acceptable XML ({type(error).__name__})") from None
    except DataDamaged as error:
        raise DataDamaged(f"{what}: {error.message}") from None


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
