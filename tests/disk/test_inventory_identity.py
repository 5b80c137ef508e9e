"""Who a disk is: what it says of itself is read right, whatever stands between; what is no serial is none."""

from __future__ import annotations

from pathlib import Path

import machines
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.disk import health, identity, inventory, service
from diskprep.disk.content import Found, in_words, parse_export
from diskprep.disk.identity import Claim
from diskprep.volume import device


def _facts(name: str, disk: str, root: Path) -> inventory.DiskFacts:
    machine = machines.load(name, root).machine
    return next(facts for facts in inventory.list_disks(machine) if facts.name == disk)


def test_identify_data_is_read_field_by_field() -> None:
    data = machines.identify(
        serial="WD-WX 12",
        model="WDC WD40EFRX",
        firmware="82.00A82",
        rpm=5400,
        form="3.5",
        sata=3,
        wwn="50014ee2b1234567",
    )
    told = identity.parse_identify(data)
    assert told is not None
    assert (told.serial, told.model, told.firmware) == ("WD-WX12", "WDC WD40EFRX", "82.00A82")
    assert (told.wwn, told.rotation_rpm, told.form_factor, told.sata_generation) == ("50014ee2b1234567", 5400, "3.5", 3)


def test_identify_data_that_a_bridge_damaged_is_not_believed() -> None:
    data = bytearray(machines.identify(serial="WD-1"))
    data[20] ^= 1
    assert identity.parse_identify(bytes(data)) is None
    assert identity.parse_identify(bytes(512)) is None
    assert identity.parse_identify(data[:511]) is None


@given(st.binary(max_size=700))
def test_pages_of_any_bytes_are_read_or_passed_over(page: bytes) -> None:
    told = identity.parse_vpd_ata(page)
    assert told is None or len(page) >= 572
    assert " " not in identity.parse_vpd_serial(page)


def test_what_the_kernel_hands_out_in_reading_order_is_turned_back() -> None:
    sent = machines.identify(serial="WD-WCC7K1234567", model="WDC WD40EFRX-68N32N0", firmware="82.00A82")
    read = bytearray(sent)
    for start, end in ((20, 40), (46, 54), (54, 94)):
        read[start:end] = b"".join(sent[i : i + 2][::-1] for i in range(start, end, 2))
    assert device._as_sent(bytes(read)) == sent


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("WD-WX12", "WD-WX12", True),
        ("WD-WX12", "wd-wx12", True),
        ("WD-WXB1234", "WD-WX_B12_34", True),
        ("WXB1A123", "5758423141313233", True),
        ("WD-WX12", "WD-WX13", False),
        ("WD-WX12", "000000000033", False),
        ("33", "3333", True),  # hexadecimal digits of it
    ],
)
def test_two_numbers_are_one_when_only_the_writing_differs(one: str, other: str, same: bool) -> None:
    claims = (Claim(source="a", serial=one), Claim(source="b", serial=other, by_bridge=True))
    assert (not identity.contradictions(claims)) is same


def test_a_serial_is_never_a_bridges() -> None:
    assert identity.drive_serial([Claim(source="USB bridge", serial="0033", by_bridge=True)]) == ""


@pytest.mark.parametrize(
    "serial", ["0000000000", "XXXXXXXX", "0123456789ABCDEF", "123456789012", "none", "N/A", "Unknown"]
)
def test_a_number_that_everybody_has_is_known(serial: str) -> None:
    assert identity.is_placeholder(serial)


@pytest.mark.parametrize("serial", ["WD-WCC7K1234567", "S3Z8NB0K123456", "ZGY0A1B2", "2136E5A0C4F1", "00000000000AB1"])
def test_a_drives_number_is_no_placeholder(serial: str) -> None:
    assert not identity.is_placeholder(serial)


def test_facts_of_a_drive_at_a_sata_port(tmp_path: Path) -> None:
    facts = _facts("plain", "sdb", tmp_path)
    assert (facts.serial, facts.model, facts.bus) == ("WD-WCC7K1234567", "WDC WD40EFRX-68N32N0", "sata")
    assert (facts.sector_bytes, facts.physical_sector_bytes, facts.rotation_rpm) == (512, 4096, 5400)
    assert (facts.wwn, facts.form_factor, facts.sata_generation) == ("50014ee2b1234567", "3.5", 3)
    assert facts.aliases == ("ata-WDC_WD40EFRX-68N32N0_WD-WCC7K1234567",)
    assert facts.bridge == ""


def test_facts_of_a_drive_behind_a_bridge(tmp_path: Path) -> None:
    facts = _facts("bridge-agrees", "sdc", tmp_path)
    assert (facts.serial, facts.bus, facts.is_ata) == ("WXB1A123", "usb", True)
    assert facts.bridge == "JMicron USB to ATA/ATAPI bridge 152d:0578"


@pytest.mark.parametrize(
    ("machine", "disk", "says"),
    [
        ("plain", "sda", ""),  # a 2.5" SSD
        ("plain", "sdb", ""),
        ("sas-controller", "sdb", ""),
        ("sas-controller", "sdc", "SAS, not a SATA drive"),
        ("nvme-multipath", "nvme0n1", "NVMe, not a SATA drive"),
        ("bridge-hides-serial", "sdb", "a USB device that shows no SATA drive"),
        ("live-usb", "sdb", "a USB device that shows no SATA drive"),
        ("sectors", "sdb", "logical sectors of 4096 bytes"),
        ("virtual", "vdb", "a virtual machine's disk"),
        ("virtual", "sda", "a volume on the network"),
        ("raspberry", "mmcblk0", "a memory card"),
        ("loops", "loop2", "an image file"),
        ("form-factors", "sdb", "a 3.5-inch SSD"),
        ("form-factors", "sdc", "a M.2 SSD"),
        ("form-factors", "sdd", "SATA I; it takes SATA II and III"),
        ("form-factors", "sde", "not SATA"),
        ("form-factors", "sdf", ""),
    ],
)
def test_the_service_takes_what_its_list_names_and_nothing_else(
    machine: str, disk: str, says: str, tmp_path: Path
) -> None:
    verdict = service.judge(_facts(machine, disk, tmp_path))
    assert verdict.taken is (not says)
    assert says in "; ".join(verdict.reasons)


def test_what_the_documents_disagree_on_is_a_warning(tmp_path: Path) -> None:
    big = service.judge(_facts("form-factors", "sdf", tmp_path))
    assert big.taken
    assert "10 TB" in big.warnings[0]
    bridged = service.judge(_facts("bridge-agrees", "sdb", tmp_path / "other"))
    assert bridged.taken
    assert "bare drive" in bridged.warnings[0]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ('{"smartctl": {"exit_status": 0}, "smart_status": {"passed": true}}', True),
        ('{"smartctl": {"exit_status": 8}, "smart_status": {"passed": false}}', False),
        ('{"smartctl": {"messages": [{"string": "Unknown USB bridge", "severity": "error"}], "exit_status": 1}}', None),
        ('{"smart_status": {"passed": "yes"}}', None),
        ("", None),
        ("[1, 2]", None),
        ('{"smartctl": {"messages": {}}, "smart_status": []}', None),
    ],
)
def test_health_is_what_the_drive_says_or_unknown(text: str, passed: bool | None) -> None:
    assert health.parse(text).passed is passed


def test_why_health_is_unknown_is_told() -> None:
    text = '{"smartctl": {"messages": [{"string": "Unknown USB bridge", "severity": "error"}]}}'
    assert "Unknown USB bridge" in health.parse(text).says


def test_labels_are_read_as_they_were_before_they_were_escaped() -> None:
    text = "DEVNAME=/dev/sdb1\nLABEL=My\\ old\\ disk\\x09\\'=1\nTYPE=ntfs\n\nnonsense"
    assert parse_export(text) == {"DEVNAME": "/dev/sdb1", "LABEL": "My old disk\t'=1", "TYPE": "ntfs"}


def test_what_is_on_a_disk_is_one_line() -> None:
    disk = Found(name="sdb", size_bytes=1, table="gpt", kind="", label="")
    part = Found(name="sdb1", size_bytes=1, table="", kind="ntfs", label="Photos")
    assert in_words((disk, part)) == "GPT, sdb1 ntfs 'Photos'"
    assert in_words(None) == "not readable"
    assert in_words((Found(name="sdb", size_bytes=1, table="", kind="", label=""),)) == "nothing known"
