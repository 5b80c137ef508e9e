"""What a job's state means and allows. A table, no I/O.

The published texts contradict each other about cancelling (any time before Packaging; Creating and Shipping; Creating
alone). The service takes it as a wish in all of them, so it is offered up to Transferring and the state that results is
shown. Source: "Retrieving state information for an Import/Export job".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from diskprep.errors import JobConflict
from diskprep.importjob.model import Job, JobState

#: A job that has no tracking number is deleted this long after it was created or last updated.
SHIPPING_DEADLINE = timedelta(days=14)


class Action(StrEnum):
    """What may be asked of a job."""

    SHIP = "be shipped"
    KEEP_ALIVE = "be kept alive"
    CANCEL = "be cancelled"
    DELETE = "be deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """A state in words, and what it allows."""

    says: str
    allows: frozenset[Action] = frozenset()
    open: bool = True  # the job's drives belong to it


_SHIP_CANCEL = frozenset({Action.SHIP, Action.CANCEL})

STATES: Mapping[JobState, Meaning] = {
    JobState.CREATING: Meaning(
        says="waits for the tracking number",
        allows=frozenset(Action),
    ),
    JobState.SHIPPING: Meaning(
        says="the package is on its way",
        allows=_SHIP_CANCEL,
    ),
    JobState.RECEIVED: Meaning(
        says="all drives are in the datacenter",
        allows=frozenset({Action.CANCEL}),
    ),
    JobState.TRANSFERRING: Meaning(
        says="drives are being copied",
        allows=frozenset({Action.CANCEL}),
    ),
    JobState.PACKAGING: Meaning(
        says="drives are being packed for the way back",
    ),
    JobState.COMPLETED: Meaning(
        says="done, the drives are on their way back", allows=frozenset({Action.DELETE}), open=False
    ),
    JobState.CLOSED: Meaning(
        says="ended with errors: see the copy logs", allows=frozenset({Action.DELETE}), open=False
    ),
    JobState.FAULTED: Meaning(says="stuck: the datacenter's operators will get in touch"),
}


def describe(state: JobState | str) -> str:
    """The state in words; a state that is not known is given as it is."""
    return STATES[state].says if isinstance(state, JobState) else f"in state {state!a}"


def is_open(job: Job) -> bool:
    """Whether the job still holds its drives; a state that is not known counts as open."""
    return not isinstance(job.state, JobState) or STATES[job.state].open


def check(job: Job, action: Action) -> None:
    """Raise JobConflict when the job's state does not allow `action`. In an unknown state the service decides."""
    if isinstance(job.state, JobState) and action not in STATES[job.state].allows:
        raise JobConflict(
            f"import job {job.name} is {job.state}: {describe(job.state)}; it cannot {action} now",
            hint="`diskprep job show` tells where it is",
        )
