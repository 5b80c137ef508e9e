"""The stand-in's regions. Addresses are invented, so that no real package ever goes to one; their faults are real:
regions that send packages elsewhere, an address with its columns shifted, one that is blank but for instructions.
"""

from __future__ import annotations

from typing import Any

_PREFIX = "/providers/Microsoft.ImportExport/locations/"
_ALL_CARRIERS = ["Blue Dart", "DHL", "FedEx", "TNT", "UPS"]


def _location(
    name: str,
    display_name: str,
    *,
    street: str,
    city: str,
    state: str,
    postal_code: str,
    country: str,
    recipient: str = "Import/Export stand-in",
    phone: str = "0000000000",
    carriers: list[str] | None = None,
    alternate: str = "",
) -> tuple[str, dict[str, Any]]:
    return name, {
        "id": _PREFIX + name,
        "type": "Microsoft.ImportExport/locations",
        "name": display_name,
        "properties": {
            "recipientName": recipient,
            "streetAddress1": street,
            "streetAddress2": "",
            "city": city,
            "stateOrProvince": state,
            "postalCode": postal_code,
            "countryOrRegion": country,
            "phone": phone,
            "supportedCarriers": carriers or _ALL_CARRIERS,
            "alternateLocations": [_PREFIX + (alternate or name)],
        },
    }


LOCATIONS: dict[str, dict[str, Any]] = dict(
    [
        _location(
            "eastus",
            "East US",
            street="1 Example Street",
            city="Exampleton",
            state="VA",
            postal_code="00001",
            country="USA",
        ),
        _location(
            "eastus2",
            "East US 2",
            street="1 Example Street",
            city="Exampleton",
            state="VA",
            postal_code="00001",
            country="USA",
            carriers=["FedEx"],
            alternate="eastus",
        ),
        _location(
            "westus",
            "West US",
            street="2 Example Road",
            city="Sampleville",
            state="CA",
            postal_code="00002",
            country="USA",
        ),
        _location(
            "westeurope",
            "West Europe",
            street="Voorbeeldstraat 3",
            city="Voorbeeldam",
            state="",
            postal_code="0000 AA",
            country="Netherlands",
        ),
        _location(
            "northeurope",
            "North Europe",
            street="4 Example Park",
            city="Baile Sampla",
            state="",
            postal_code="D00",
            country="Ireland",
            carriers=["FedEx"],
            alternate="westeurope",
        ),
        _location(
            "southeastasia",
            "Southeast Asia",
            street="5 Example Crescent",
            city="000005",
            state="Singapore",
            postal_code="Singapore (SG)",
            country="6500000000",
            phone="",
        ),
        _location(
            "australiaeast",
            "Australia East",
            recipient="Please contact the operators for a unique inbound ID before shipping",
            street="",
            city="",
            state="",
            postal_code="",
            country="",
            phone="",
        ),
    ]
)


def find(name: str) -> dict[str, Any] | None:
    """A location by its name or display name, without regard to case and spaces."""
    return LOCATIONS.get(name.lower().replace(" ", ""))


def carriers(name: str) -> tuple[str, ...]:
    """Who may bring a package for this location: to itself, or to where its packages are sent."""
    location = find(name)
    if location is None:
        return ()
    places = [location, *(find(alternate.rpartition("/")[2]) for alternate in _alternates(location))]
    found = [carrier for place in places if place is not None for carrier in place["properties"]["supportedCarriers"]]
    return tuple(sorted(set(found)))


def _alternates(location: dict[str, Any]) -> list[str]:
    found: list[str] = location["properties"]["alternateLocations"]
    return found
