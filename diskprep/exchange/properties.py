"""Metadata and properties files: XML files of a drive that say what is kept with a blob beside its content.

    <Metadata><Name>value</Name>...</Metadata>
    <Properties><Content-Type/><Content-MD5/><Content-Encoding/><Content-Language/><Cache-Control/></Properties>

Last-Modified, Etag and Content-Length come with exported drives only, and are passed over.
Source: the service's published "Import/Export service metadata and properties file format".
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange import xml
from diskprep.store import ContentProperties, check_metadata, check_properties

SIZE_LIMIT_BYTES = 64 << 10
_TAGS = ("Content-Type", "Content-MD5", "Content-Encoding", "Content-Language", "Cache-Control")
_EXPORT_ONLY = frozenset({"Last-Modified", "Etag", "Content-Length"})


def parse_metadata(data: Buffer) -> dict[str, str]:
    """Read a metadata file. Raises DataDamaged."""
    metadata = _values(data, "Metadata")
    check_metadata(metadata)
    return metadata


def parse_properties(data: Buffer) -> ContentProperties:
    """Read a properties file; what is empty is not set. Raises DataDamaged."""
    values = _values(data, "Properties")
    if unknown := values.keys() - _EXPORT_ONLY - set(_TAGS):
        raise DataDamaged(f"a blob has no property {min(unknown)!a}")
    properties = ContentProperties(
        content_type=values.get("Content-Type", ""),
        content_encoding=values.get("Content-Encoding", ""),
        content_language=values.get("Content-Language", ""),
        cache_control=values.get("Cache-Control", ""),
    )
    if values.get("Content-MD5"):
        try:
            digest = base64.b64decode(values["Content-MD5"], validate=True)
        except (binascii.Error, ValueError):
            raise DataDamaged("Content-MD5 is not Base64") from None
        properties = replace(properties, content_md5=digest)
    return check_properties(properties)


def _values(data: Buffer, root: str) -> dict[str, str]:
    """The text of each element under `root`, all of them different and without anything inside."""
    values: dict[str, str] = {}
    seen: set[str] = set()

    def start(path: str, attributes: dict[str, str]) -> None:
        parts = path.split("/")
        if parts[0] != root or len(parts) > 2 or attributes:
            raise DataDamaged(f"an element {parts[-1]!a} does not belong there")
        if path in seen:
            raise DataDamaged(f"{parts[-1]} is given twice")
        seen.add(path)

    def end(path: str, text: str) -> None:
        tag = path.removeprefix(f"{root}/")
        if tag != path:
            values[tag] = text

    xml.parse(data, f"the file with {root.lower()}", start, end, limit_bytes=SIZE_LIMIT_BYTES)
    return values
