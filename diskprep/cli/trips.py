"""The further trips of a job, its repairs: which of them are over, what they brought, and which names are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diskprep import repair
from diskprep.errors import NotFound
from diskprep.importjob import states
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.lookup import is_same
from diskprep.importjob.model import Job
from diskprep.importjob.outcome import plan_repair, report
from diskprep.importjob.saved import load_job
from diskprep.repair import Repair
from diskprep.seed import Seed, Staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """Names of the repairs whose job was over when it was last seen, and the packs (object names) that they brought."""

    ended: frozenset[str]
    brought: frozenset[str]


def repairs_of(place: Staging, job_name: str) -> tuple[Repair, ...]:
    """The repairs of a job, and theirs, oldest first."""
    names, found = {job_name}, []
    for made in repair.find_repairs(place):
        if made.of in names:
            names.add(made.job_name)
            found.append(made)
    return tuple(found)


def look_at(repairs: Sequence[Repair]) -> Over:
    """What became of repairs, from the job.json of each: nobody is asked, and a drive in doubt brought nothing."""
    ended, brought = set(), set[str]()
    for made in repairs:
        try:
            job = load_job(made.staging).job
            placement = repair.placement(made.staging)
        except NotFound:
            continue
        if not states.is_open(job):
            ended.add(made.job_name)
            brought |= placement.keys() - plan_repair(report(job, {}), placement).packs.keys()
    return Over(ended=frozenset(ended), brought=frozenset(brought))


def names_of(found: Iterable[Job], seed: Seed) -> frozenset[str]:
    """The names of those of these jobs that are in the seed's resource group, or may be."""
    return frozenset(job.name.lower() for job in found if is_same(job, job.name, seed.resource_group))


def open_names(ledger: Ledger, seed: Seed) -> frozenset[str]:
    """The names of the ledger's open jobs in the seed's subscription and resource group."""
    group = str(key_of(seed)).rpartition("/")[0]
    return frozenset(
        name
        for key, entry in ledger.jobs().items()
        for own, _, name in [key.rpartition("/")]
        if entry.open and own == group
    )
