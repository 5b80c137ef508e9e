"""`$filter` of a list of jobs: the state and the type, as the service's older interface had them.

    state eq 'Creating' or state eq 'Shipping'      jobType eq 'Import' and state ne 'Closed'

Words are compared without regard to case, a field may be written with `properties/` before it, `and` binds more
closely than `or`, and there are no brackets. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from diskprep.datacenter.lifecycle import StoredJob
from diskprep.datacenter.refusal import Refusal

Test = Callable[[StoredJob], bool]

_LIMIT_CHARS = 1024
_CLAUSE = re.compile(r"\s*(?:properties/)?(state|jobtype|type)\s+(eq|ne)\s+'([A-Za-z]{1,32})'\s*", re.IGNORECASE)
_JOINT = re.compile(r"(and|or)\b", re.IGNORECASE)


def parse_filter(text: str) -> Test:
    """What a job must be to be listed. Raises Refusal (InvalidFilter)."""
    any_of: list[list[Test]] = [[]]
    position, joint = 0, "and"
    while joint:
        clause = _CLAUSE.match(text, position)
        if clause is None or len(text) > _LIMIT_CHARS:
            raise Refusal(
                "InvalidFilter", "$filter compares state or jobType with a word, by eq or ne", target="$filter"
            )
        if joint.lower() == "or":
            any_of.append([])
        any_of[-1].append(_test(*clause.groups()))
        position = clause.end()
        found = _JOINT.match(text, position)
        joint = found.group() if found else ""
        position = found.end() if found else position
    if position != len(text):
        raise Refusal("InvalidFilter", "$filter goes on after its end", target="$filter")
    return lambda job: any(all(test(job) for test in all_of) for all_of in any_of)


def _test(field: str, comparison: str, value: str) -> Test:
    name = "state" if field.lower() == "state" else "jobType"
    wanted = comparison.lower() == "eq"
    return lambda job: (str(job.properties[name]).lower() == value.lower()) is wanted
