"""Where a package goes, by whom, and what to see to before it is sent.

The service's records are known to be dirty: blank fields, columns shifted by one, line ends within a line,
instructions where the recipient should be. An address that does not look like one is never handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from diskprep.errors import NotFound, ServiceError, UsageError
from diskprep.importjob.model import DRIVES_LIMIT, Address, Location, ReturnAddress, ReturnShipping
from diskprep.importjob.regions import region_of
from diskprep.importjob.service import ImportService

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_LOOKUPS_LIMIT = 8
_LINE_LIMIT_CHARS = 200
_WANTED = ("recipient_name", "street_address1", "city", "postal_code", "country_or_region")
#: Countries whose addresses have no postal code.
_WITHOUT_POSTAL_CODE = ("hong kong", "united arab emirates", "uae", "ireland")


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the package goes: the address of `region`, which may not be the job's, and the carriers it takes."""

    address: Address
    carriers: tuple[str, ...]
    region: str


def shipping_address(service: ImportService, location: str) -> Destination:
    """Where packages for a region go now; a region that is closed names others, of which the first usable one is taken.

    Raises NotFound for a region the service does not have, and ServiceError when no address of it can be used: a
    blank or garbled one must not be printed on a label.
    """
    refused: ServiceError | None = None
    for region in _candidates(service, location):
        try:
            check_address(region.address, region.display_name)
        except ServiceError as error:
            refused = refused or error
            continue
        return Destination(address=region.address, carriers=region.carriers, region=region.name)
    raise refused or ServiceError(
        f"the service names no datacenter that takes packages for {location!a}: its regions refer to each other",
        hint="ask Azure support where to ship",
    )


def check_address(address: Address, region: str) -> None:
    """Raise ServiceError, with what the service says instead, unless every field looks like what it should be."""
    lines = asdict(address)
    wrong = [name for name in _WANTED if not lines[name].strip()]
    if address.country_or_region.strip().lower() in _WITHOUT_POSTAL_CODE:
        wrong = [name for name in wrong if name != "postal_code"]
    wrong += [name for name, line in lines.items() if not line.isprintable() or len(line) > _LINE_LIMIT_CHARS]
    wrong += [name for name in ("city", "country_or_region") if not any(sign.isalpha() for sign in lines[name])]
    wrong += [name for name in ("country_or_region",) if any(sign.isdigit() for sign in lines[name])]
    wrong += [name for name in ("postal_code",) if lines[name].strip() and not any(map(str.isdigit, lines[name]))]
    wrong += [name for name in ("phone",) if lines[name].strip() and not any(map(str.isdigit, lines[name]))]
    wrong += [name for name in _WANTED[1:] if "@" in lines[name]]
    if wrong:
        fields = ", ".join(dict.fromkeys(name.replace("_", " ") for name in wrong))
        said = "".join(sign if sign.isprintable() else " " for sign in address.recipient_name).strip()
        raise ServiceError(
            f"the service's address for {region} cannot be used: {fields}"
            + (f"; it says: {said[:_LINE_LIMIT_CHARS]}" if said else ""),
            hint="ask Azure support where to ship; do not send the package to this address",
        )


def check_return(address: ReturnAddress | None, shipping: ReturnShipping | None = None) -> None:
    """Raise UsageError unless every field of the way back can stand on a label."""
    fields = {**(asdict(address) if address else {}), **(asdict(shipping) if shipping else {})}
    for name, text in fields.items():
        said = name.replace("_", " ")
        if not text.isprintable():
            raise UsageError(f"the {said} of the way back has a line end or another sign that cannot be printed")
        if len(text) > _LINE_LIMIT_CHARS:
            raise UsageError(f"the {said} of the way back is longer than {_LINE_LIMIT_CHARS} characters")
    if address is not None and not _EMAIL.fullmatch(address.email.strip()):
        raise UsageError(f"{address.email!a} is not an e-mail address", hint="the datacenter's operators write to it")


def serves(carrier: str, carriers: Sequence[str]) -> bool:
    """Whether a carrier is one of those that the service names; where it names none, any is."""
    return not carriers or _plain(carrier) in map(_plain, carriers)


def checklist(seed_location: str, destination: Destination) -> tuple[str, ...]:
    """What to see to before the package leaves, as sentences, for the region that it goes to.

    `seed_location` is the job's region; where the package goes elsewhere, the list says so first.
    """
    region = region_of(destination.region)
    lines = []
    if not is_same_region(seed_location, destination.region):
        lines.append(
            f"The datacenter of {seed_location} takes no packages now: this one goes to {destination.region}. "
            "The data ends up in the account's own region all the same."
        )
    lines += [
        "Take the address from the packing slip, every line of it: the recipient's line may hold an instruction.",
        f"One job, one package, one tracking number: all disks of the job, at most {DRIVES_LIMIT}, none of another.",
        "Send bare SATA disks alone: no enclosures, no USB sticks, no cables, no power supplies, no adaptors.",
        "Put each disk into an anti-static bag and pad it on all sides; nothing may touch in the box.",
        "Compare the serial number on each disk's label with the packing slip, and put the slip inside.",
        "Do not attach a disk to another computer after it was sealed: what changes the manifest makes it worthless.",
        "Keep BitLocker's recovery passwords, the passphrase and the staging out of the package.",
        *region.rules,
        *_carrier_lines(destination.carriers, region.return_carrier),
        "Enter the tracking number as soon as the carrier has it (`diskprep job ship`): the service deletes a job "
        "without one after two weeks, and a package without a job is not unpacked.",
        "Ship across a border with the customs papers that used computer parts need; the service fills in none.",
    ]
    return tuple(lines)


def _carrier_lines(carriers: Sequence[str], return_carrier: str) -> Iterator[str]:
    if carriers:
        yield f"Carriers that the service names for this datacenter: {', '.join(carriers)}."
    back = return_carrier if not carriers or return_carrier in carriers else ""
    if back:
        yield f"The disks come back with {back}, on an account of yours there: give its number with the job."
    else:
        yield "The disks come back on an account of yours with one of these carriers: give its number with the job."
    yield (
        "The account must allow the way back (domestic or international, as it is for you), and should be with the "
        "carrier that brings the package."
    )


def _candidates(service: ImportService, location: str) -> Iterator[Location]:
    """Regions that take packages for `location`, nearest in the service's own order first."""
    waiting, seen = [location], set[str]()
    while waiting and len(seen) < _LOOKUPS_LIMIT:
        name = waiting.pop(0)
        if _plain(name) in seen:
            continue
        try:
            region = service.location(name)
        except NotFound:
            if not seen:
                raise
            seen.add(_plain(name))
            continue
        seen |= {_plain(name), _plain(region.name)}
        if not region.alternates or any(is_same_region(region.name, other) for other in region.alternates):
            yield region
            continue
        waiting += [other for other in region.alternates if _plain(other) not in seen]


def is_same_region(one: str, other: str) -> bool:
    """Whether two names are of one region: "West Europe" and "westeurope" are."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return "".join(name.split()).lower()
