"""Receipts: which packs of a job were proven in the vault already, so that an ingestion that was cut off goes on.

Small objects below `x-seed/receipts-JOB/`, sealed with the repository's data key: nobody else can make one. A receipt
names the seal it is for, and of each pack the version that the object had before it was read; it counts only while the
object still has it. Write order: a pack is proven, then its receipt; the certificate, then all receipts go.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from diskprep import clock
from diskprep.errors import DataDamaged, NotFound
from diskprep.repository import codec
from diskprep.repository.crypto import DataKey
from diskprep.store import Store, check_name

_PACKS = 256
_SECONDS = 60.0


class Proof(StrEnum):
    """How a pack was proven: read from the vault, or by the MD5 that the service keeps with it."""

    READ = "read"
    MD5 = "md5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """`version`: of the object when it was proven; `time`: when, RFC 3339."""

    version: str
    proof: Proof
    time: str


@dataclass(slots=True)
class Receipts:
    """Those of one job and seal. Read by many threads, added to by one."""

    vault: Store
    key: DataKey
    job_name: str
    seal_digest: str
    _known: dict[str, Receipt] = field(default_factory=dict)
    _new: dict[str, Receipt] = field(default_factory=dict)
    _written_s: float = field(default_factory=clock.monotonic_s)

    def load(self, *, after: str | None = None) -> None:
        """Read what earlier runs left; what is damaged, of another seal, or not made `after` this time (RFC 3339), is
        passed over."""
        for stored in list(self.vault.list(self._folder)):
            try:
                document = codec.decode_json(self.key.open(self.vault.read(stored.name)))
                if document["seal"] == self.seal_digest:
                    packs = document["packs"].items()
                    found = {
                        str(pack): Receipt(version=str(version), proof=Proof(proof), time=str(time))
                        for pack, (version, proof, time) in packs
                        if after is None or clock.parse_rfc3339(time) > clock.parse_rfc3339(after)
                    }
                    self._known.update(found)
            except (DataDamaged, NotFound, KeyError, TypeError, ValueError, AttributeError):
                continue

    def find(self, pack: str) -> Receipt | None:
        """The receipt of a pack, by its SHA-256 in hex."""
        return self._known.get(pack)

    def add(self, pack: str, receipt: Receipt) -> None:
        """Keep a further one; they are written together, once a minute or after some hundred."""
        if receipt.version and self._known.get(pack) != receipt:
            self._known[pack] = self._new[pack] = receipt
        if len(self._new) >= _PACKS or clock.monotonic_s() - self._written_s > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write those that are new."""
        if self._new:
            packs = {pack: [each.version, each.proof, each.time] for pack, each in self._new.items()}
            sealed = self.key.seal(codec.encode_json({"seal": self.seal_digest, "packs": packs}))
            self.vault.write(self._folder + hashlib.sha256(sealed).hexdigest(), [sealed])
            self._new.clear()
        self._written_s = clock.monotonic_s()

    def delete(self) -> None:
        """Remove all of this job: the certificate says it from now on."""
        for stored in list(self.vault.list(self._folder)):
            self.vault.delete(stored.name)

    @property
    def _folder(self) -> str:
        return check_name(f"x-seed/receipts-{self.job_name}") + "/"
