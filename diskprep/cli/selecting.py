"""The options that say what a backup leaves out; the same names and values as restic's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from diskprep.cli import inputs
from diskprep.source.selection import CACHEDIR_TAG, Pattern, Selection, parse_tag, read_patterns

Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", "-e", metavar="PATTERN", help="Leave out what matches; may be repeated."),
]
IExclude = Annotated[
    list[str] | None, typer.Option("--iexclude", metavar="PATTERN", help="The same, upper or lower case alike.")
]
ExcludeFile = Annotated[
    list[Path] | None, typer.Option("--exclude-file", metavar="FILE", help="Patterns from a file, one a line.")
]
IExcludeFile = Annotated[
    list[Path] | None, typer.Option("--iexclude-file", metavar="FILE", help="The same, upper or lower case alike.")
]
ExcludeIfPresent = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude-if-present",
        metavar="NAME[:HEADER]",
        help="Leave out what is in folders that hold NAME, if HEADER begins it.",
    ),
]
ExcludeCaches = Annotated[
    bool, typer.Option("--exclude-caches", help="Leave out what is in folders that a CACHEDIR.TAG marks.")
]
OneFileSystem = Annotated[
    bool, typer.Option("--one-file-system", "-x", help="Leave out what is on another file system than its source.")
]
ExcludeLargerThan = Annotated[
    str | None,
    typer.Option(
        "--exclude-larger-than", metavar="SIZE", help="Leave out longer files: 512M, 10G.", show_default=False
    ),
]


def selection(
    *,
    exclude: Sequence[str] | None = None,
    iexclude: Sequence[str] | None = None,
    exclude_file: Sequence[Path] | None = None,
    iexclude_file: Sequence[Path] | None = None,
    exclude_if_present: Sequence[str] | None = None,
    exclude_caches: bool = False,
    one_file_system: bool = False,
    exclude_larger_than: str | None = None,
) -> Selection:
    """What the options say. Patterns of files follow those of the command line. Raises UsageError."""
    tags = [parse_tag(os.fsencode(text)) for text in exclude_if_present or ()]
    return Selection(
        exclude=patterns("--exclude", exclude, exclude_file),
        iexclude=patterns("--iexclude", iexclude, iexclude_file),
        tags=(*tags, CACHEDIR_TAG) if exclude_caches else tuple(tags),
        larger_than_bytes=None if exclude_larger_than is None else inputs.size_bytes(exclude_larger_than),
        one_file_system=one_file_system,
    )


def patterns(option: str, texts: Sequence[str] | None, files: Sequence[Path] | None) -> tuple[Pattern, ...]:
    """The patterns of one option, then those of its files. Raises UsageError."""
    given = [Pattern(text=os.fsencode(text), origin=option) for text in texts or ()]
    return (*given, *(pattern for file in files or () for pattern in read_patterns(file)))
