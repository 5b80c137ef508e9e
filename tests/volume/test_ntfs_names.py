"""Names that Windows cannot open, or would take for another, are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.errors import UsageError
from diskprep.volume.ntfs import names

GOOD = ["a", "repository/data/ab/" + "0" * 64, "ä/ö", "x.y.z", ".hidden", "a b", "com10", "console", "nul-", "-L"]
BAD = [
    *("", "/a", "a/", "a//b", ".", "..", "a/../b", "a:b", "x*y", "q?", 'q"', "<", ">", "|", "a\\b", "a\nb", "a\0"),
    *("dot.", "space ", "con", "CON", "Con.txt", "nul .txt", "aux/b", "COM1", "lpt9.log", "com¹", "conin$", "prn"),
    *("n" * 256, "/".join(["d" * 60] * 5), "\ud800", "$MFT", "$Extend/x", "System Volume Information/x"),
    *("system volume information", "SYSTEM VOLUME INFORMATION/FVE2"),
]


@pytest.mark.parametrize("path", GOOD)
def test_ordinary_names_are_allowed(path: str) -> None:
    names.check(path)


@pytest.mark.parametrize("path", BAD)
def test_names_that_windows_does_not_take_are_refused(path: str) -> None:
    with pytest.raises(names.NameNotAllowed):
        names.check(path)
    assert issubclass(names.NameNotAllowed, UsageError)


@pytest.mark.parametrize(
    "paths",
    [["a", "a"], ["a", "A"], ["ä", "Ä"], ["d/x", "D/y"], ["d", "d/x"], ["d/x", "D"], ["d/X", "d/x"], ["\u017f", "S"]],
)
def test_names_that_windows_takes_for_the_same_are_refused(paths: list[str]) -> None:
    with pytest.raises(names.NameNotAllowed):
        names.check_collisions({}, paths)


def test_a_name_that_is_on_the_volume_is_refused_and_its_directory_is_not() -> None:
    existing = {"D": ("d", True), "D/X": ("d/x", False)}
    names.check_collisions(existing, ["d/y", "e/x"])
    for path in ("d/x", "d/X", "D/y", "d"):
        with pytest.raises(names.NameNotAllowed):
            names.check_collisions(existing, [path])


@given(st.text(max_size=40))
def test_any_text_is_allowed_or_refused_and_nothing_else(path: str) -> None:
    try:
        names.check(path)
    except names.NameNotAllowed:
        return
    assert path == path.strip("/")
    assert not set(path) & set('<>:"|?*\\\0')
