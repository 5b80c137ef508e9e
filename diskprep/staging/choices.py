"""Choices: what a seed was staged with, for the backups after it: what was left out, and how images were cut.

Kept as `choices` in the staging, sealed with the repository's data key, since patterns may name files. Written before
the seal, by the run that seals. A staging of an earlier version has none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, FormatTooNew, UsageError
from diskprep.repository.crypto import DataKey
from diskprep.seed import Staging
from diskprep.source.selection import CACHEDIR_TAG, Pattern, Selection, Tag
from diskprep.staging.blocks import BlockRule
from diskprep.staging.writer import BackupOptions

FORMAT = "diskprep-choices"
VERSION = 1
_ORIGIN = "the seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    selection: Selection
    block_rule: BlockRule | None

    def with_own(self, options: BackupOptions) -> BackupOptions:
        """`options` that repeat these choices. What they say themselves wins: their patterns come last, their sizes
        are taken; what is left out by tags or file systems is left out when either says so."""
        own = options.selection
        selection = Selection(
            exclude=_before(self.selection.exclude, own.exclude),
            iexclude=_before(self.selection.iexclude, own.iexclude),
            tags=tuple(dict.fromkeys((*self.selection.tags, *own.tags))),
            larger_than_bytes=self.selection.larger_than_bytes
            if own.larger_than_bytes is None
            else own.larger_than_bytes,
            one_file_system=self.selection.one_file_system or own.one_file_system,
        )
        return replace(options, selection=selection, block_rule=options.block_rule or self.block_rule)

    def described(self) -> tuple[str, ...]:
        """The options, but for patterns, as they would be given."""
        chosen = self.selection
        said = [
            f"--exclude-if-present {tag.name.decode(errors='replace')}" for tag in chosen.tags if tag != CACHEDIR_TAG
        ]
        said += ["--exclude-caches"] if CACHEDIR_TAG in chosen.tags else []
        said += ["--one-file-system"] if chosen.one_file_system else []
        if chosen.larger_than_bytes is not None:
            said.append(f"--exclude-larger-than {chosen.larger_than_bytes}")
        if self.block_rule is not None:
            said.append(f"--fixed-blocks {self.block_rule.block_bytes >> 10}k")
        return tuple(said)


def save(staging: Staging, key: DataKey, options: BackupOptions) -> None:
    """Write down what a staging was backed up with. Raises StorageFull, StorageUnavailable."""
    selection = options.selection
    document = {
        "format": FORMAT,
        "version": VERSION,
        "exclude": [os.fsdecode(pattern.text) for pattern in selection.exclude],
        "iexclude": [os.fsdecode(pattern.text) for pattern in selection.iexclude],
        "tags": [[os.fsdecode(tag.name), os.fsdecode(tag.header)] for tag in selection.tags],
        "larger_than_bytes": selection.larger_than_bytes,
        "one_file_system": selection.one_file_system,
        "block_bytes": None if options.block_rule is None else options.block_rule.block_bytes,
    }
    durable.write_file(staging.choices_file, key.seal(json.dumps(document).encode("ascii")))


def load(staging: Staging, key: DataKey) -> Choices | None:
    """What a staging was backed up with; None where nobody wrote it down. Raises DataDamaged, FormatTooNew,
    StorageUnavailable."""
    path = staging.choices_file
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise durable.storage_error(error, f"read {path}") from error
    try:
        document = json.loads(key.open(sealed))
        known = document["format"] == FORMAT
        if known and document["version"] != VERSION:
            raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
        if not known:
            raise ValueError("another format")
        return _parsed(document)
    except (DataDamaged, KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError):
        raise DataDamaged(f"{path} is damaged: how the seed was staged cannot be read") from None


def _parsed(document: dict[str, Any]) -> Choices:
    larger, blocks = document["larger_than_bytes"], document["block_bytes"]
    return Choices(
        selection=Selection(
            exclude=_patterns(document["exclude"]),
            iexclude=_patterns(document["iexclude"]),
            tags=tuple(Tag(name=os.fsencode(name), header=os.fsencode(header)) for name, header in document["tags"]),
            larger_than_bytes=None if larger is None else int(larger),
            one_file_system=bool(document["one_file_system"]),
        ),
        block_rule=None if blocks is None else BlockRule(block_bytes=int(blocks)),
    )


def _patterns(texts: Iterable[str]) -> tuple[Pattern, ...]:
    return tuple(Pattern(text=os.fsencode(text), origin=_ORIGIN) for text in texts)


def _before(seeded: Iterable[Pattern], own: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    """The seed's patterns, then those that are given now; one that is in both stands where it is given."""
    given = {pattern.text for pattern in own}
    return (*(pattern for pattern in seeded if pattern.text not in given), *own)
