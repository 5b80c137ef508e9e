"""What is special about sending disks to a region of the service. A table, no I/O.

Source: the service's published requirements and FAQ, and its location records as recorded (they change: the carriers
that the service itself names for a region go first).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region's own rules, as sentences. `return_carrier`: empty where no rule is known."""

    return_carrier: str = ""
    rules: tuple[str, ...] = ()


_INBOUND_ID = (
    "Ask Azure support for the inbound ID of this package before it is sent, and write it on the label: "
    "without it the datacenter refuses the package."
)
_INDIA_RULES = (
    "Book the pickup with the carrier and get the driver's ID: the datacenter lets nobody in without it.",
    "Put a delivery challan letter into the package; customs and the datacenter ask for it.",
)
_FEDEX = Region(return_carrier="FedEx")
_FEDEX_INBOUND = Region(return_carrier="FedEx", rules=(_INBOUND_ID,))
_DHL = Region(return_carrier="DHL")
_DHL_INBOUND = Region(return_carrier="DHL", rules=(_INBOUND_ID,))
_INDIA = Region(return_carrier="DHL", rules=_INDIA_RULES)
_IRELAND = Region(
    return_carrier="FedEx",
    rules=("FedEx does not collect for a delivery within Ireland: from there, send with another carrier.",),
)
_OTHER = Region()

#: By the name without blanks, in lower case. What is missing here is treated as _OTHER.
REGIONS: Mapping[str, Region] = {
    **dict.fromkeys(
        (
            "eastus",
            "eastus2",
            "westus",
            "westus2",
            "centralus",
            "northcentralus",
            "southcentralus",
            "westcentralus",
            "usgoviowa",
            "usgovvirginia",
            "usdodeast",
            "usdodcentral",
        ),
        _FEDEX,
    ),
    "northeurope": _IRELAND,
    "westeurope": _FEDEX,
    **dict.fromkeys(("germanycentral", "germanynortheast", "germanywestcentral", "germanynorth"), _FEDEX_INBOUND),
    "uksouth": _FEDEX_INBOUND,
    "ukwest": _FEDEX,
    **dict.fromkeys(("eastasia", "southeastasia", "japaneast", "japanwest", "koreacentral", "koreasouth"), _DHL),
    **dict.fromkeys(("centralindia", "southindia", "westindia"), _INDIA),
    **dict.fromkeys(("australiaeast", "australiasoutheast"), _DHL_INBOUND),
}


def region_of(name: str) -> Region:
    """The rules of a region given as "West Europe" or "westeurope"."""
    return REGIONS.get("".join(name.split()).lower(), _OTHER)
