"""What may go wrong in the stand-in, on order: to practise with, and to test what people are told.

A fault of a drive is one of the datacenter's reading, not of the disk: the image is never written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DriveFault(StrEnum):
    """What happens to one drive of a package."""

    LOST = "lost"  # it is not in the package, and never turns up
    LATE = "late"  # it is not in the package, and turns up with a later `receive`
    UNREADABLE = "unreadable"  # the disk does not spin up
    WRONG_SERIAL = "wrong-serial"  # another serial number is read from it than the job says
    WRONG_KEY = "wrong-key"  # the job's recovery password does not open it
    MANIFEST_EDITED = "manifest-edited"  # the manifest is not the one whose hash the job has
    BLOCKS_DAMAGED = "blocks-damaged"  # some blocks are not what the manifest says
    FILE_MISSING = "file-missing"  # a file that the manifest names is not there


class ServiceFault(StrEnum):
    """What the management interface does to a number of requests."""

    THROTTLED = "throttled"  # 429 with Retry-After
    UNAVAILABLE = "unavailable"  # 503
    ANSWER_LOST = "answer-lost"  # the request is carried out, and the connection ends without an answer
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 - 401, as for a token that is too old
    UNREGISTERED = "unregistered"  # 409 to all calls on jobs, until the provider is registered


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveFaults:
    """What is wrong with one drive while it is read. `blocks` and `files`: how many of each are struck."""

    faults: frozenset[DriveFault] = frozenset()
    blocks: int = 1
    files: int = 1


NO_FAULTS = DriveFaults()
