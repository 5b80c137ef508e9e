"""What a backup leaves out: the same entries as restic, which is run as the oracle."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from support import need
from typer.testing import CliRunner

from diskprep.cli import selecting
from diskprep.errors import UsageError
from diskprep.events import Event, Note
from diskprep.repository.keys import ScryptCost
from diskprep.repository.repository import create
from diskprep.secrets import Secret
from diskprep.source import OpenDirectory, display
from diskprep.source.selection import CACHEDIR_TAG, Pattern, Selection, Tag, parse_patterns, parse_tag, read_patterns
from diskprep.store.directory import DirectoryStore

_PASSPHRASE = "correct horse battery staple"
_FILES = (
    "readme.txt|Makefile|a b c.txt| leading|trailing |[brackets]|star*|back\\slash|!bang|#hash|$dollar|-dash|^caret"
    "|ümlaut|ÜMLAUT|Ünï€|日本|\U0001f600|o/alpha/x.o|o/alpha/X.O|o/beta/x.o|o/beta/keep.o|foo/bar|foo/q/bar|foo/q/r/bar"
    "|foo/q/baz|home/ann/cache/k|home/ann/cache/l/m|home/cache/k|home/bob/.cache/z|home/bob/doc/cache"
    "|home/bob/doc/notes~|src/build/out|src/lib/build/out|src/lib/code.c|src/lib/code.h|src/lib/core.1|src/lib/core.1a"
    "|deep/a/b/c/d/e/f/g|a/b|a/x/b|a/x/y/b|b/a/c|case/Thumbs.db|case/THUMBS.DB|case/thumbs.db|tag/plain/NOBACKUP|tag/plain/x"
    "|tag/plain/s/y|tag/two/NOBACKUP|tag/two/SKIP|tag/two/x|tag/long/NOBACKUP|tag/long/x|tag/folder/NOBACKUP/in|tag/folder/x"
    "|tag/cache/CACHEDIR.TAG|tag/cache/x|tag/false/CACHEDIR.TAG|tag/false/x|size/four|size/five"
)
_STRAYS = (b"stray-\xff", b"stray-\xfe\xfe", b"\xc3", b"o/\xe2\x82.o", b"\xff/below")
_CONTENTS = {
    "tag/long/NOBACKUP": b"please: leave this out",
    "tag/cache/CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55\nmore",
    "tag/false/CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc5",
    "size/four": b"1234",
    "size/five": b"12345",
}


class Oracle:
    """A tree with many kinds of names, and what restic keeps of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        for name in map(os.fsencode, _FILES.split("|")):
            self._write(name, _CONTENTS.get(os.fsdecode(name), b""))
        for name in _STRAYS:
            self._write(name, b"")
        (self.root / "empty").mkdir()
        (self.root / "link.o").symlink_to("foo")
        (folder / "repository").mkdir()
        (folder / "passphrase").write_text(_PASSPHRASE)
        store = DirectoryStore(folder / "repository")
        create(store, Secret(_PASSPHRASE), cost=ScryptCost(n=16, r=1, p=1))
        self._program: list[str | Path] = [
            need("restic"),
            "-r",
            folder / "repository",
            "-p",
            folder / "passphrase",
            "--no-cache",
        ]

    def kept(self, *options: str | bytes) -> list[bytes]:
        """The paths that restic backs up with `options`."""
        summary = json.loads(self._restic("backup", "--json", "--force", *options, self.root).splitlines()[-1])
        paths = self._restic("ls", summary["snapshot_id"]).splitlines()[1:]
        return sorted(path for path in paths if (path + b"/").startswith(os.fsencode(self.root) + b"/"))

    def _restic(self, *arguments: Any) -> bytes:
        done = subprocess.run([*self._program, *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _write(self, name: bytes, content: bytes) -> None:
        path = os.path.join(os.fsencode(self.root), name)  # noqa: PTH118 - bytes
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(content)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"))


def walk(selection: Selection, root: Path) -> list[bytes]:
    """The paths of a source that a selection keeps, as a backup asks it."""
    found: list[bytes] = []
    pending = [os.fsencode(root)] if not selection.leaves_out(os.fsencode(root)) else []
    while pending:
        path = pending.pop()
        found.append(path)
        opened = OpenDirectory.at(path)
        items = opened.list()
        stay = selection.marked(opened, [item.name for item in items], path=path)
        opened.close()
        for item in items:
            below = path + b"/" + item.name
            if selection.leaves_out(below) or (stay is not None and item.name not in stay):
                continue
            if item.is_directory:
                pending.append(below)
            elif not item.is_regular or os.lstat(below).st_size <= (selection.larger_than_bytes or 1 << 60):
                found.append(below)
    return sorted(found)


def exclude(*texts: bytes) -> Selection:
    return Selection(exclude=tuple(Pattern(text=text) for text in texts))


@pytest.mark.parametrize(
    "patterns",
    [
        "*.o|readme.txt",
        "foo/",
        "foo//bar/.|./o/../case",
        "{root}/foo|{root}/src/build",
        "/foo|foo/q",
        "src/*/build|o/*/x.o",
        "foo/**/bar",
        "{root}/**/build",
        "{root}/home/**/cache|{root}/home/**",
        "{root}/home/**/cache/**",
        "home/**/cache/**|a/**/**/**",
        "**/a/**/b|deep/**/c/**/g",
        "{root}/a/**/b/**/**|{root}/**/**/lib/**",
        "{root}/*/*/x.o|{root}/s*",
        "?umlaut|[^a-zA-Z]mlaut|??",
        "core.[0-9]|code.[!c]|x.[O-O]",
        "[[]brackets]|star\\*|back\\\\slash|\\!bang|[$]dollar|[\\-]dash|[\\^x]caret",
        "[\u0430-\u044f]*|[日-本]本|[ü-ÿ]mlaut|[^\U0001f600]",
        "*€|Ün*|*.*~|*t*~|**.txt|s**r*",
        " leading|trailing |a b c.txt",
        b"stray-\xff|\xc3|o/*\x82.o".decode("utf-8", "surrogateescape"),
        "stray-??|\ufffd|stray-[\ufffd]",
        "[\u0080-\uffff]*",
        "{root}/*|!{root}/foo|!{root}/o|*.o",
        "*.o|!keep.o|!x.?|o/beta|!beta",
        "!foo|foo|!foo/q|q|!r",
        "home|!home/ann|!cache",
        "o/*|!o/**/keep.o",
        "**|!{root}/**|bar",
        "!*|case|!**|o",
    ],
)
def test_patterns_leave_out_what_restic_leaves_out(oracle: Oracle, patterns: str) -> None:
    texts = [os.fsencode(text.replace("{root}", str(oracle.root))) for text in patterns.split("|")]
    kept = oracle.kept(*(b"--exclude=" + text for text in texts))
    assert 0 < len(kept) < len(_everything(oracle)) or any(text.startswith(b"!") for text in texts)
    assert walk(exclude(*texts), oracle.root) == kept


@pytest.mark.parametrize("patterns", ["/", "/**", "**", "*", "{root}/**", ".|..||!|o/\\*"])
def test_everything_or_nothing_is_left_out_as_restic_does_it(oracle: Oracle, patterns: str) -> None:
    texts = [os.fsencode(text.replace("{root}", str(oracle.root))) for text in patterns.split("|")]
    kept = oracle.kept(*(b"--exclude=" + text for text in texts))
    assert kept in ([], _everything(oracle))
    assert walk(exclude(*texts), oracle.root) == kept


@pytest.mark.parametrize(
    ("options", "some"),
    [
        (["--iexclude=THUMBS.db", "--iexclude=O/Alpha/*.O", "--iexclude=ümLAUT", "--iexclude=ÜNÏ€"], True),
        ([b"--iexclude=STRAY-\xfe", "--iexclude=[a-C]"], True),
        (["--iexclude=FOO", "--iexclude=HOME", "--exclude=!foo", "--iexclude=!Home/BOB", "--iexclude=!home"], True),
        (["--exclude-if-present=NOBACKUP"], True),
        (["--exclude-if-present=NOBACKUP:please: leave", "--exclude-if-present=SKIP"], True),
        (["--exclude-if-present=NOBACKUP", "--exclude-if-present=SKIP:", "--exclude=tag/long/NOBACKUP"], True),
        (["--exclude-if-present=NOBACKUP:nothing like it"], False),
        (["--exclude-caches", "--exclude-larger-than=4"], True),
        (["--exclude-larger-than=1k"], False),
    ],
)
def test_options_leave_out_what_restic_leaves_out(oracle: Oracle, options: list[str | bytes], some: bool) -> None:
    kept = oracle.kept(*options)
    assert (len(kept) < len(_everything(oracle))) is some
    assert walk(_selection(*options), oracle.root) == kept


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf# a comment\r\n\r\n   foo/**/bar\t\r\n\xc2\xa0readme.txt\xe3\x80\x80\n#hash\n\\#hash",
        b"$$dollar\n${HERE}/o/*\n!$HERE/o/beta\n*.tx$LETTER\nHOME$$\nstray-\xff",
        "ümlaut\nfoo\n".encode("utf-16"),
    ],
)
def test_files_of_patterns_are_read_as_restic_reads_them(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("HERE", str(oracle.root))
    monkeypatch.setenv("LETTER", "t")
    (tmp_path / "patterns").write_bytes(content)
    for option in ("--exclude-file", "--iexclude-file"):
        options = ["--exclude=!foo", f"{option}={tmp_path / 'patterns'}"]
        kept = oracle.kept(*options)
        assert 0 < len(kept) < len(_everything(oracle))
        assert walk(_selection(*options), oracle.root) == kept


_APPLICATION = typer.Typer()


@_APPLICATION.command()
def _command(
    *,
    exclude: selecting.Exclude = None,
    iexclude: selecting.IExclude = None,
    exclude_file: selecting.ExcludeFile = None,
    iexclude_file: selecting.IExcludeFile = None,
    exclude_if_present: selecting.ExcludeIfPresent = None,
    exclude_caches: selecting.ExcludeCaches = False,
    one_file_system: selecting.OneFileSystem = False,
    exclude_larger_than: selecting.ExcludeLargerThan = None,
) -> None:
    _RESULTS.append(
        selecting.selection(
            exclude=exclude,
            iexclude=iexclude,
            exclude_file=exclude_file,
            iexclude_file=iexclude_file,
            exclude_if_present=exclude_if_present,
            exclude_caches=exclude_caches,
            one_file_system=one_file_system,
            exclude_larger_than=exclude_larger_than,
        )
    )


_RESULTS: list[Selection] = []


def _selection(*options: str | bytes) -> Selection:
    """What the command line makes of `options`."""
    result = CliRunner().invoke(_APPLICATION, [os.fsdecode(option) for option in options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return _RESULTS.pop()


def _everything(oracle: Oracle) -> list[bytes]:
    return walk(Selection(), oracle.root)


def test_the_command_line_takes_all_options_together() -> None:
    options = "-e *.o -e !x.o --iexclude A --exclude-if-present T:h:i --exclude-caches -x --exclude-larger-than 2k"
    selection = _selection(*options.split())
    assert selection == Selection(
        exclude=(Pattern(text=b"*.o"), Pattern(text=b"!x.o")),
        iexclude=(Pattern(text=b"A", origin="--iexclude"),),
        tags=(Tag(name=b"T", header=b"h:i"), CACHEDIR_TAG),
        larger_than_bytes=2048,
        one_file_system=True,
    )
    assert _selection() == Selection()


def test_patterns_are_described_as_they_were_given() -> None:
    selection = _selection("-e", "a//b/", "-e", "!ü", b"-e\xff", "--iexclude", "ICase")
    assert selection.described() == ("a//b/", "!ü", "\ufffd", "ICase")


def test_a_selection_without_effect_says_so() -> None:
    assert not Selection().has_patterns
    assert not exclude(b"", b"!a", b"!*").has_patterns
    assert exclude(b"!a", b"b").has_patterns
    assert not exclude(b"*").leaves_out(b"/")


def test_a_selection_can_be_sent_to_another_process() -> None:
    selection = exclude(b"[a-c]*", b"/x/**/y")
    assert selection.leaves_out(b"/x/y")
    twin = pickle.loads(pickle.dumps(selection))
    assert twin == selection
    assert [twin.leaves_out(path) for path in (b"/x/q/y", b"/bee", b"/x")] == [True, True, False]


@pytest.mark.parametrize(
    "glob", ["[", "[]", "[]a]", "[a", "[a-", "[a-]", "[-a]", "[^]", "[^", "a\\", "[\\", "x/[a/b]", "[\\]"]
)
@pytest.mark.parametrize("prefix", ["", "*", "!", "ok/", "{root}/**/"])
def test_a_malformed_pattern_is_refused_with_its_place(glob: str, prefix: str) -> None:
    text = os.fsencode(prefix + glob)
    with pytest.raises(UsageError, match=r"^--exclude: the pattern ") as caught:
        Pattern(text=text)
    assert display(text) in caught.value.message
    with pytest.raises(UsageError, match=r"^ex, line 3: "):
        parse_patterns(b"# fine\nfine\n" + text, file="ex", environment={})


@pytest.mark.parametrize("text", [b"[\xff]", b"[a-\xff]", b"a\0b"])
def test_bytes_that_cannot_be_a_pattern_are_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match="malformed"):
        Pattern(text=text)


def test_a_variable_that_is_not_set_is_refused() -> None:
    assert parse_patterns(b"$E/x\n${A B}$", file="ex", environment={b"E": b"", b"A B": b"$E"}) == (
        Pattern(text=b"/x", origin="ex, line 1"),
        Pattern(text=b"$E$", origin="ex, line 2"),
    )
    for line, name in ((b"a/$NONE/*", "$NONE"), (b"${NONE}x", "${NONE}"), (b"$1", "$1"), (b"${", "${"), (b"${}", "${")):
        with pytest.raises(UsageError, match="ex, line 2") as caught:
            parse_patterns(b"\n" + line, file="ex", environment={b"N": b"x"})
        assert f" {name} in the pattern" in caught.value.message


def test_a_file_of_patterns_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"cannot read {tmp_path}/none: No such file"):
        read_patterns(tmp_path / "none")


def test_a_tag_file_has_a_name_and_perhaps_a_header() -> None:
    assert parse_tag(b"NAME") == parse_tag(b"NAME:") == Tag(name=b"NAME")
    assert parse_tag(b"N\xff:a:b") == Tag(name=b"N\xff", header=b"a:b")
    for text in (b"", b":header", b"folder/NAME"):
        with pytest.raises(UsageError, match="names no tag file"):
            parse_tag(text)


def test_a_tag_that_cannot_be_read_leaves_out_nothing_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(CACHEDIR_TAG.header)
    (tmp_path / "CACHEDIR.TAG").symlink_to("target")
    (tmp_path / "short").write_bytes(b"he")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    tags = (CACHEDIR_TAG, *(Tag(name=name, header=b"head") for name in (b"short", b"fifo", b"folder", b"missing")))
    told: list[Event] = []
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    names = {item.name for item in opened.list()}
    assert Selection(tags=tags).marked(opened, names, path=b"/shown", emit=told.append) is None
    notes = [event.text for event in told if isinstance(event, Note)]
    assert [note.partition(" leaves out nothing: ")[0] for note in notes] == [
        f"/shown/{name}" for name in ("CACHEDIR.TAG", "short", "fifo", "folder")
    ]
    for name in (b"fifo", b"folder", b"CACHEDIR.TAG"):  # without a header any entry will do
        assert Selection(tags=(Tag(name=name),)).marked(opened, names, path=b"/shown") == frozenset({name})
    opened.close()


def test_a_glob_takes_no_longer_the_more_stars_it_has() -> None:
    path = b"/" + b"a" * 255
    assert not exclude(b"*a" * 40 + b"*b").leaves_out(path)
    assert exclude(b"*a" * 40 + b"*").leaves_out(path)


def test_very_deep_paths_are_no_matter() -> None:
    path = b"/top" + b"/d" * 5000 + b"/leaf"
    assert exclude(b"top/**/leaf").leaves_out(path)
    assert not exclude(b"/d/**/leaf").leaves_out(path)


# -- against a plain reading of the rules: one component at a time, every widening of `**` tried


def _go_match(glob: str, name: str) -> bool:
    """Go's path/filepath.Match, for globs that are well-formed."""
    if not glob:
        return not name
    if glob[0] == "*":
        return any(_go_match(glob[1:], name[at:]) for at in range(len(name) + 1))
    if not name:
        return False
    if glob[0] == "[":
        negated, at, within = glob[1] == "^", 1 + (glob[1] == "^"), False
        first = at
        while glob[at] != "]" or at == first:
            at += glob[at] == "\\"
            low = high = glob[at]
            at += 1
            if glob[at] == "-":
                at += 1 + (glob[at + 1] == "\\")
                high = glob[at]
                at += 1
            within |= low <= ("\ufffd" if "\udc80" <= name[0] <= "\udcff" else name[0]) <= high
        return within is not negated and _go_match(glob[at + 1 :], name[1:])
    at = glob[0] == "\\"
    return (glob[0] == "?" or glob[at] == name[0]) and _go_match(glob[at + 1 :], name[1:])


def _restic_match(parts: list[str], path: list[str]) -> bool:
    if "**" in parts:
        at = parts.index("**")
        widths = range(len(path) - len(parts) + 2)
        return any(_restic_match(parts[:at] + ["*"] * width + parts[at + 1 :], path) for width in widths)
    offsets: Sequence[int] = [0] if parts[:1] == ["/"] else range(1, len(path) - len(parts) + 1)
    return 0 < len(parts) <= len(path) and any(
        all(a == b if "/" in (a, b) else _go_match(a, b) for a, b in zip(parts, path[offset:], strict=False))
        for offset in offsets
    )


def _restic_leaves_out(patterns: list[str], path: str) -> bool:
    verdict = False
    for pattern in patterns:
        parts = pattern.removeprefix("!").split("/")
        if _restic_match(parts if parts[0] else ["/", *parts[1:]], ["/", *path.split("/")[1:]]):
            verdict = not pattern.startswith("!")
    return verdict


_SIGNS = "ab\u00fc\u20ac\udcc3\ufffd"
_NAMES = st.text("ab\u00fc\u20ac", min_size=1, max_size=4)
_GLOBS = st.lists(
    st.sampled_from(
        [*"ab?*\u00fc\u20ac\udcc3", "\\a", "\\*", "[a]", "[^b]", "[a-\u00fc]", "[^\ufffd]", "[\\b-\u20ac\ufffd]"]
    ),
    min_size=1,
    max_size=6,
).map("".join)


@given(glob=_GLOBS, name=st.text(_SIGNS, min_size=1, max_size=6))
def test_a_component_matches_as_in_go(glob: str, name: str) -> None:
    assume(glob != "**")
    selection = exclude(glob.encode("utf-8", "surrogateescape"))
    stored = name.encode("utf-8", "surrogateescape")
    assume(stored.decode("utf-8", "surrogateescape") == name)
    assert selection.leaves_out(b"/" + stored) is _go_match(glob, name)


_PARTS = st.sampled_from(["a", "b", "c", "*", "?", "[ab]", "a*", "**", "**"])
_PATTERNS = st.builds(
    lambda sign, root, parts: sign + root + "/".join(parts),
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/"]),
    st.lists(_PARTS, min_size=1, max_size=5),
)


@given(
    patterns=st.lists(_PATTERNS, min_size=1, max_size=5),
    paths=st.lists(st.lists(st.sampled_from(["a", "b", "c", "ab"]), min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_a_path_is_left_out_as_in_restic(patterns: list[str], paths: list[list[str]]) -> None:
    selection = exclude(*map(str.encode, patterns))
    for path in paths:
        for depth in range(1, len(path) + 1):
            above = "/" + "/".join(path[:depth])
            expected = _restic_leaves_out(patterns, above)
            assert selection.leaves_out(above.encode()) is expected, above
            if expected:
                break  # nothing below it is asked for
