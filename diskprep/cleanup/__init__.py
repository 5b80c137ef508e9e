"""Cleanup: what may go once a vault is certified, as a value, and its execution.

Invariants: nothing is deleted that the certificate does not cover; right before deleting, everything is looked at
again: both copies of the certificate, every covered file in the vault with its size, and each object that is to go.
Nothing goes while a disk is outstanding: what it brings may be wanted, and what it overwrites may be in use.
Key files are not covered, for passphrases may be changed: the vault must have a whole one, whichever it is.
What is small and cannot be made again (journals, escrow, seed, seal, certificate) is never deleted.

With a grace period what lies in a directory is moved aside, and deleted by a later run; a blob container keeps deleted
blobs as its account's soft delete says. When nothing is left that may go, the vault is told: only then forget and prune
may begin.
"""

from __future__ import annotations

from diskprep.cleanup.looking import KeepsDeleted, Outstanding
from diskprep.cleanup.planning import CleanupPlan, Kept, Place, Removal, plan, plan_from_listings
from diskprep.cleanup.removing import run, undo

__all__ = [
    "CleanupPlan",
    "KeepsDeleted",
    "Kept",
    "Outstanding",
    "Place",
    "Removal",
    "plan",
    "plan_from_listings",
    "run",
    "undo",
]
