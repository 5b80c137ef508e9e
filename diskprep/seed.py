"""Seed: one initial backup's trip, and the layout of the staging directory it lives in.

The staging holds all that a copy computer needs, so nothing but its path has to be carried over:

    seed.json            this value: the five inputs of the trip, and who may open what
    repository/          the backup, a restic repository (format v2)
    seal.json            what the repository held when staging ended, with digests
    plan.json            which pack travels on which disk
    job.json             the import job, once created
    journals/            a mirror of each disk's journal
    escrow/              each disk's recovery password, sealed; and the seed's private key, sealed by the data key
    repairs/JOB/         a further trip of packs that did not arrive: a staging of its own, without a repository

The recovery password of a disk is sealed to the seed's X25519 public key, so that a copy computer can prepare disks
without the passphrase and still leave no password in the clear behind.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, FormatTooNew, NotFound, UsageError

FORMAT = "diskprep-seed"
VERSION = 1

REPAIRS = "repairs"

#: The intersection of what the service's portals accept as a job's name (1 letter first, 3 to 24 signs).
JOB_NAME = re.compile(r"[a-z][a-z0-9-]{1,22}[a-z0-9]")
#: Container names as Blob storage has them: 3 to 63 lower-case letters, digits, single hyphens.
CONTAINER_NAME = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*")
ACCOUNT_NAME = re.compile(r"[a-z0-9]{3,24}")
SUBSCRIPTION_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The inputs of a trip. All text; `sources` are absolute paths; `escrow_public_key` is 32 bytes in hex."""

    job_name: str
    storage_account: str
    container: str
    subscription_id: str
    resource_group: str
    location: str
    hostname: str
    sources: tuple[str, ...]
    repository_id: str
    escrow_public_key: str
    created: str

    def __post_init__(self) -> None:
        for value, pattern, what in (
            (self.job_name, JOB_NAME, "job name: 3 to 24 lower-case letters, digits and hyphens, a letter first"),
            (self.container, CONTAINER_NAME, "container: 3 to 63 lower-case letters, digits and single hyphens"),
            (self.storage_account, ACCOUNT_NAME, "storage account: 3 to 24 lower-case letters and digits"),
            (self.subscription_id, SUBSCRIPTION_ID, "subscription: a UUID in lower case"),
            (self.escrow_public_key, re.compile(r"[0-9a-f]{64}"), "escrow key: 64 hexadecimal digits"),
        ):
            if not pattern.fullmatch(value):
                raise UsageError(f"{value!r} is not a valid {what}")


@dataclass(frozen=True, slots=True)
class Staging:
    """Paths inside a staging directory. Opening and creating directories is the callers' business.

    `whole`: the root of the staging that a repair belongs to. A repair has all files of a staging but the repository,
    which is the whole one's.
    """

    root: Path
    whole: Path | None = None

    @property
    def first(self) -> Staging:
        """The staging that holds the repository: this one, or the one that this is a repair of."""
        return self if self.whole is None else Staging(self.whole)

    @property
    def repairs(self) -> Path:
        """Where the repairs are, all beside each other; a repair's repairs too."""
        return self.first.root / REPAIRS

    @property
    def seed_file(self) -> Path:
        return self.root / "seed.json"

    @property
    def repository(self) -> Path:
        return self.first.root / "repository"

    @property
    def seal_file(self) -> Path:
        return self.root / "seal.json"

    @property
    def choices_file(self) -> Path:
        return self.first.root / "choices"

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def job_file(self) -> Path:
        return self.root / "job.json"

    @property
    def journals(self) -> Path:
        return self.root / "journals"

    @property
    def escrow(self) -> Path:
        return self.root / "escrow"


def parse_staging(argument: str) -> Staging:
    """`DIR`, or `s:DIR` as the original utility spells a staging location. A repair is told by where it lies."""
    root = Path(argument.removeprefix("s:")).absolute()
    try:
        inside = root.resolve()
    except (OSError, RuntimeError):  # a loop of links: whoever opens it will say so
        return Staging(root)
    above = inside.parent.parent
    named = inside.parent.name == REPAIRS and JOB_NAME.fullmatch(inside.name)
    return Staging(root, above) if named and durable.exists(Staging(above).seed_file) else Staging(root)


def save_seed(staging: Staging, seed: Seed) -> None:
    """Write seed.json durably; the trip exists from then on."""
    durable.write_json(staging.seed_file, {"format": FORMAT, "version": VERSION, **asdict(seed)})


def load_seed(staging: Staging) -> Seed:
    """The seed of a staging. Raises NotFound, DataDamaged or FormatTooNew."""
    try:
        document = durable.read_json(staging.seed_file)
    except NotFound:
        raise NotFound(
            f"{staging.root} is not a staging location: it has no seed.json",
            hint="name the directory that `diskprep stage` wrote",
        ) from None
    return _parse(document, staging.seed_file)


def _parse(document: dict[str, Any], path: Path) -> Seed:
    if document.pop("format", None) != FORMAT:
        raise DataDamaged(f"{path} is not a seed file")
    if document.pop("version", None) != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    sources = document.pop("sources", None)
    if not isinstance(sources, list) or not all(isinstance(value, str) for value in [*sources, *document.values()]):
        raise DataDamaged(f"{path} has a field of the wrong kind")
    try:
        return Seed(sources=tuple(sources), **document)
    except (TypeError, UsageError) as error:
        raise DataDamaged(f"{path} is damaged: {error}") from None
