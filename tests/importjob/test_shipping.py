"""Where packages go: the service's own rule, over records that are known to be dirty; and what to see to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from diskprep.datacenter import locations
from diskprep.errors import NotFound, ServiceError
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import Address, Location
from diskprep.importjob.regions import REGIONS, Region, region_of
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import Destination, check_address, checklist, shipping_address

GOOD = Address(
    recipient_name="Import/Export",
    street_address1="3 Street",
    city="Town",
    postal_code="0000 AA",
    country_or_region="Netherlands",
    phone="+31 20 123",
)


class Records:
    """The location calls of the service over given records."""

    def __init__(self, *records: Location) -> None:
        self._records = {record.name: record for record in records}
        self.asked: list[str] = []

    def location(self, name: str) -> Location:
        self.asked.append(name)
        if name not in self._records:
            raise NotFound(f"no location {name}")
        return self._records[name]


def record(name: str, *alternates: str, address: Address = GOOD) -> Location:
    return Location(name=name, display_name=name.title(), address=address, carriers=("DHL",), alternates=alternates)


def resolve(records: Records, name: str) -> str:
    return shipping_address(cast(ImportService, records), name).region


def test_packages_go_where_the_region_says(service: AzureImportService) -> None:
    assert shipping_address(service, "westeurope").region == "westeurope"
    found = shipping_address(service, "North Europe")
    assert (found.region, found.address.country_or_region) == ("westeurope", "Netherlands")
    assert "DHL" in found.carriers
    with pytest.raises(NotFound):
        shipping_address(service, "atlantis")


@pytest.mark.parametrize("region", ["southeastasia", "australiaeast"])
def test_a_garbled_or_blank_address_is_never_used(service: AzureImportService, region: str) -> None:
    with pytest.raises(ServiceError, match="cannot be used"):
        shipping_address(service, region)


def test_regions_that_refer_to_each_other_are_an_error(
    service: AzureImportService, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {name: {**record, "properties": dict(record["properties"])} for name, record in locations.LOCATIONS.items()}
    table["eastus"]["properties"]["alternateLocations"] = [table["eastus2"]["id"]]
    monkeypatch.setattr(locations, "LOCATIONS", table)
    with pytest.raises(ServiceError, match="refer to each other"):
        shipping_address(service, "eastus")


def test_every_region_of_the_stand_in_is_resolved_or_refused_with_a_reason(service: AzureImportService) -> None:
    for region in service.locations():
        try:
            found = shipping_address(service, region.name)
        except ServiceError as error:
            assert "Azure support" in error.hint  # noqa: PT017
            continue
        assert found.address.street_address1
        assert region.alternates, region.name
        assert {found.region} <= {*region.alternates}


def test_a_region_that_names_itself_takes_the_package_whatever_else_it_names() -> None:
    records = Records(record("a", "b", "A"), record("b", "b"))
    assert resolve(records, "a") == "a"
    assert records.asked == ["a"]


def test_a_region_that_names_nothing_takes_the_package() -> None:
    assert resolve(Records(record("a")), "a") == "a"


def test_other_regions_are_tried_in_order_and_unusable_ones_passed_over() -> None:
    blank = replace(GOOD, street_address1="")
    records = Records(record("a", "b", "c", "d"), record("c", "c", address=blank), record("d", "d"))
    assert resolve(records, "a") == "d"
    assert records.asked == ["a", "b", "c", "d"]


def test_a_chain_of_regions_is_followed_to_its_end_and_not_without_end() -> None:
    assert resolve(Records(record("a", "b"), record("b", "c"), record("c", "c")), "a") == "c"
    chain = Records(*(record(f"r{n}", f"r{n + 1}") for n in range(50)), record("r50", "r50"))
    with pytest.raises(ServiceError):
        resolve(chain, "r0")
    assert len(chain.asked) < 10


def test_a_region_whose_own_address_is_bad_sends_to_no_other() -> None:
    bad = replace(GOOD, recipient_name="write to help@example.org for an inbound ID", street_address1="", city="")
    with pytest.raises(ServiceError, match="inbound ID") as caught:
        resolve(Records(record("a", "a", "b", address=bad), record("b", "b")), "a")
    assert "do not send" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"recipient_name": " "},
        {"street_address1": ""},
        {"city": "\t"},
        {"postal_code": ""},
        {"country_or_region": ""},
        {"street_address2": "two\nlines"},
        {"recipient_name": "\x1b[31mred"},
        {"recipient_name": "\u202egnirts"},
        {"postal_code": "Singapore (SG)", "country_or_region": "+65 1234 5678", "phone": ""},
        {"country_or_region": "65"},
        {"city": "12345"},
        {"phone": "Netherlands"},
        {"street_address1": "write to help@example.org"},
        {"street_address1": "x" * 201},
    ],
)
def test_what_is_no_address_is_refused(change: dict[str, Any]) -> None:
    check_address(GOOD, "x")
    with pytest.raises(ServiceError, match="cannot be used") as caught:
        check_address(replace(GOOD, **change), "West Europe")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("country", ["Hong Kong", "United Arab Emirates"])
def test_a_country_without_postal_codes_needs_none(country: str) -> None:
    check_address(replace(GOOD, country_or_region=country, postal_code=""), "x")


def at(region: str, *carriers: str) -> Destination:
    return Destination(address=GOOD, carriers=carriers, region=region)


def test_the_checklist_has_the_rules_of_every_region() -> None:
    text = "\n".join(checklist("westeurope", at("westeurope", "DHL", "FedEx")))
    for rule in ("bare SATA", "cables", "anti-static", "One job, one package", "DHL, FedEx", "come back with FedEx"):
        assert rule in text, rule
    assert "inbound ID" not in text
    assert "takes no packages" not in text


@pytest.mark.parametrize(
    ("region", "rule"),
    [
        ("australiaeast", "inbound ID"),
        ("Australia Southeast", "inbound ID"),
        ("uksouth", "inbound ID"),
        ("germanycentral", "inbound ID"),
        ("centralindia", "driver's ID"),
        ("West India", "delivery challan"),
        ("westindia", "pickup"),
        ("northeurope", "within Ireland"),
        ("eastus", "come back with FedEx"),
        ("japaneast", "come back with DHL"),
        ("brazilsouth", "one of these carriers"),
    ],
)
def test_the_checklist_has_the_rules_of_the_region(region: str, rule: str) -> None:
    assert rule in "\n".join(checklist(region, at(region)))


def test_the_rules_are_those_of_where_the_package_goes() -> None:
    lines = checklist("North Europe", at("westeurope", "FedEx"))
    assert lines[0].startswith("The datacenter of North Europe takes no packages now: this one goes to westeurope.")
    assert not any("Ireland" in line for line in lines)


def test_a_carrier_that_the_service_does_not_name_is_not_recommended_for_the_way_back() -> None:
    text = "\n".join(checklist("eastus", at("eastus", "UPS")))
    assert "come back with FedEx" not in text
    assert "Carriers that the service names for this datacenter: UPS." in text


def test_every_line_is_one_line_that_can_be_printed() -> None:
    for name in (*REGIONS, "atlantis"):
        for line in checklist("eastus", at(name, "DHL")):
            assert line.isprintable()
            assert line.endswith("."), line
            assert 20 < len(line) < 300
    assert region_of("atlantis") == Region()
    assert region_of("West Europe") == region_of("westeurope")
