"""Metadata and properties files: the published form, read strictly."""

from __future__ import annotations

import base64
import resource
import time
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.errors import DataDamaged
from diskprep.exchange import properties as p
from diskprep.store import METADATA_LIMIT_BYTES, ContentProperties

PUBLISHED_METADATA = b"""<?xml version="1.0" encoding="UTF-8"?>
<Metadata><UploadMethod>x</UploadMethod><DataSetName>y</DataSetName></Metadata>"""
PUBLISHED_PROPERTIES = b"""<?xml version="1.0" encoding="UTF-8"?>
<Properties><Content-Type>application/octet-stream</Content-Type><Content-MD5>Q2hlY2sgaXQgb3V0LiBPSw==</Content-MD5>
<Content-Encoding/><Content-Language/><Cache-Control>no-cache, max-age=5</Cache-Control></Properties>"""


def test_the_published_forms_are_read() -> None:
    assert p.parse_metadata(PUBLISHED_METADATA) == {"UploadMethod": "x", "DataSetName": "y"}
    assert p.parse_properties(PUBLISHED_PROPERTIES) == ContentProperties(
        content_type="application/octet-stream",
        content_md5=b"Check it out. OK",
        cache_control="no-cache, max-age=5",
    )


def test_what_only_exports_have_is_passed_over() -> None:
    extra = b"<Last-Modified>Wed</Last-Modified><Etag>0x1</Etag><Content-Length>5</Content-Length></Properties>"
    data = PUBLISHED_PROPERTIES.replace(b"</Properties>", extra)
    assert p.parse_properties(data) == p.parse_properties(PUBLISHED_PROPERTIES)


def written(root: str, values: dict[str, str]) -> bytes:
    document = ET.Element(root)
    for name, value in values.items():
        ET.SubElement(document, name).text = value
    return ET.tostring(document)


_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip)


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True), _TEXT, max_size=6))
def test_all_metadata_that_a_blob_can_keep_is_read(metadata: dict[str, str]) -> None:
    assert p.parse_metadata(written("Metadata", metadata)) == metadata


@given(_TEXT, _TEXT, _TEXT, _TEXT, st.none() | st.binary(min_size=16, max_size=16))
def test_all_properties_that_a_blob_can_keep_are_read(
    kind: str, coding: str, tongue: str, cache: str, md5: bytes | None
) -> None:
    value = ContentProperties(
        content_type=kind, content_encoding=coding, content_language=tongue, cache_control=cache, content_md5=md5
    )
    values = {
        "Content-Type": kind,
        "Content-MD5": base64.b64encode(md5 or b"").decode(),
        "Content-Encoding": coding,
        "Content-Language": tongue,
        "Cache-Control": cache,
    }
    assert p.parse_properties(written("Properties", values)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<Properties/>",
        b"<Metadata><a>1</a><a>2</a></Metadata>",
        b"<Metadata><a>1</a><A>2</A></Metadata>",
        b"<Metadata><a><b/></a></Metadata>",
        b'<Metadata><a x="1">1</a></Metadata>',
        b"<Metadata><a-b>1</a-b></Metadata>",
        b"<Metadata><a>two\nlines</a></Metadata>",
        b'<Metadata xmlns="u"><a>1</a></Metadata>',
        b"<Metadata><a>1\r\nX-Injected: 2</a></Metadata>",
        "<Metadata><a>é</a></Metadata>".encode(),
        b"<Metadata><a>" + b"x" * (METADATA_LIMIT_BYTES + 1) + b"</a></Metadata>",
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Metadata><a>&e;</a></Metadata>',
        b"<Metadata>" + b"".join(b"<a%d/>" % number for number in range(1000)) + b"</Metadata>",
        b"<Metadata>" + b" " * (64 << 10) + b"</Metadata>",
    ],
)
def test_what_no_metadata_file_is_is_refused(data: bytes) -> None:
    with pytest.raises(DataDamaged):
        p.parse_metadata(data)


@pytest.mark.parametrize(
    "inside",
    [
        b"<Content-MD5>?</Content-MD5>",
        b"<Content-MD5>" + base64.b64encode(b"short") + b"</Content-MD5>",
        b"<Content-Type>a\nb</Content-Type>",
        b"<Content-Type>" + b"x" * 1025 + b"</Content-Type>",
        b"<Content-Type>a</Content-Type><Content-Type>a</Content-Type>",
        b"<Content-Kind>a</Content-Kind>",
        b"<Content-Type><a/></Content-Type>",
    ],
)
def test_what_no_properties_file_is_is_refused(inside: bytes) -> None:
    with pytest.raises(DataDamaged):
        p.parse_properties(b"<Properties>" + inside + b"</Properties>")


@pytest.mark.parametrize("parse", [p.parse_metadata, p.parse_properties])
def test_large_documents_are_refused_at_once(parse: Callable[[bytes], object]) -> None:
    data = b"<Metadata><a>" + b"x" * (100 << 20)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(DataDamaged):
        parse(data)
    assert time.process_time() - started < 0.25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10
