"""How tree JSON spells names, strings and times: byte for byte as Go does, since a tree's id is the hash of its text.

A name is quoted twice: first as Go source text (`strconv.Quote` on the raw bytes), then as a JSON string. All other
strings are quoted as JSON only. Times are RFC 3339 in the local zone of the process, with the offset of that instant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_PLAIN_NAME = re.compile(rb"[ !#-%'-;=?-\[\]-~]+")  # printable ASCII without " & < > \
_NAME_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}
_JSON_ESCAPES = str.maketrans(
    {code: f"\\u{code:04x}" for code in (*range(0x20), *map(ord, "<>&\u2028\u2029"))}
    | {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
    | {0xDC80 + offset: "\\ufffd" for offset in range(0x80)}  # bytes that are not UTF-8, as surrogateescape has them
)
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(rf'\\(?:([abfnrtv"\\])|x({_HEX}{{2}})|u({_HEX}{{4}})|U({_HEX}{{8}})|([0-7]{{3}}))')
_ESCAPED = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))", re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NS = 10**9
_MAX_SECOND = 253402300799  # 9999-12-31T23:59:59Z
_MIN_SECOND = -62135596800  # 0001-01-01T00:00:00Z


def json_string(text: str) -> str:
    """`text` as Go's JSON string with its quotes; lone surrogates of surrogateescape become U+FFFD."""
    return f'"{text.translate(_JSON_ESCAPES)}"'


def quote_name(name: bytes) -> str:
    """A file name as it stands in a tree, with its quotes."""
    if _PLAIN_NAME.fullmatch(name):
        return f'"{name.decode()}"'
    text = name.decode("utf-8", "surrogateescape")
    return json_string("".join([_quote_sign(sign) for sign in text]))


def unquote_name(text: str) -> bytes:
    """The inverse of the first quoting, on the text that JSON has already unquoted. Raises ValueError."""
    if "\\" not in text:
        return text.encode("utf-8")
    parts: list[bytes] = []
    position = 0
    while position < len(text):
        start = text.find("\\", position)
        if start < 0:
            start = len(text)
        parts.append(text[position:start].encode("utf-8"))
        if start == len(text):
            break
        match = _ESCAPE.match(text, start)
        if match is None:
            raise ValueError("a name with an unknown escape")
        short, byte, unicode_4, unicode_8, octal = match.groups()
        if short is not None:
            parts.append(bytes((_ESCAPED[short],)))
        elif byte is not None:
            parts.append(bytes((int(byte, 16),)))
        elif octal is not None:
            parts.append(bytes((int(octal, 8),)))
        else:
            parts.append(chr(int(unicode_4 or unicode_8, 16)).encode("utf-8"))
        position = match.end()
    return b"".join(parts)


def format_time(time_ns: int) -> str:
    """Nanoseconds since the epoch as local time; years outside 1 to 9999 are clamped."""
    second, fraction_ns = divmod(time_ns, _SECOND_NS)
    text, zone = _format_second(min(max(second, _MIN_SECOND + 86400), _MAX_SECOND - 86400))
    if fraction_ns:
        return f"{text}.{f'{fraction_ns:09d}'.rstrip('0')}{zone}"
    return text + zone


def parse_time(text: str) -> int:
    """The inverse of `format_time`, for any zone. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("a malformed time")
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    base = datetime(max(year, 1), month, day, hour, minute, second, tzinfo=UTC) - _EPOCH
    seconds = base.days * 86400 + base.seconds
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10]) * 60
        seconds -= offset if match[8] == "+" else -offset
    return seconds * _SECOND_NS + int((match[7] or "").ljust(9, "0"))


@lru_cache(maxsize=4096)
def _format_second(second: int) -> tuple[str, str]:
    """Date and time of day, and the zone's suffix."""
    offset_s = _zone_offset_s(second // 900)
    local = _EPOCH + timedelta(seconds=second + offset_s)
    text = local.strftime("%m-%dT%H:%M:%S")
    if offset_s == 0:
        return f"{local.year:04d}-{text}", "Z"
    minutes = abs(offset_s) // 60
    return f"{local.year:04d}-{text}", f"{'+' if offset_s > 0 else '-'}{minutes // 60:02d}:{minutes % 60:02d}"


@lru_cache(maxsize=4096)
def _zone_offset_s(quarter_hour: int) -> int:
    """The local zone's offset in whole minutes, which is what the text can say: local mean times had odd seconds.

    Looked up by the quarter of an hour, on which zones change it; another offset would be the same moment all the same.
    """
    offset = (_EPOCH + timedelta(seconds=quarter_hour * 900)).astimezone().utcoffset()
    return int(offset.total_seconds() / 60) * 60 if offset is not None else 0


def _quote_sign(sign: str) -> str:
    code = ord(sign)
    if code in _NAME_ESCAPES:
        return _NAME_ESCAPES[code]
    if sign.isprintable():
        return sign
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
