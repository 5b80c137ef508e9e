"""What is asked of LVM and ZFS, which do not run everywhere: commands, parsing, and the steps with a stand-in for the
programs. The first row of VOLUMES was recorded from lvm2 2.03.16; the others follow its manual."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from diskprep import process
from diskprep.errors import DataDamaged, DiskprepError, StorageFull, UsageError
from diskprep.events import Event, Note
from diskprep.source import Source
from diskprep.view import choice, lvm, owner, zfs
from diskprep.view.model import Place, Setting, ViewKind
from diskprep.view.mounts import Mount
from diskprep.view.room import Room

_EXTENT = 4194304
VOLUMES: list[dict[str, str]] = [
    {"vg_name":"vg0", "lv_name":"plain", "lv_attr":"-wi-XX----", "lv_size":"67108864", "pool_lv":"", "origin":"", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "vg_extent_size":"4194304", "vg_free_count":"33", "lv_tags":"", "segtype":"linear", "lv_snapshot_invalid":"unknown", "data_percent":""},  # noqa: E501
]  # fmt: skip


def _row(name: str, number: str = "-1:-1", **changes: str) -> dict[str, str]:
    major, _, minor = number.partition(":")
    return {
        **VOLUMES[0],
        "lv_name": name,
        "lv_attr": "-wi-ao----",
        "lv_kernel_major": major,
        "lv_kernel_minor": minor,
        "lv_snapshot_invalid": "",
        **changes,
    }


def _thin(name: str, number: str) -> dict[str, str]:
    return _row(name, number, lv_attr="Vwi-aotz--", pool_lv="pool", vg_free_count="0")


def _volumes(*rows: dict[str, str]) -> tuple[lvm.Volume, ...]:
    return lvm.parse_list(json.dumps({"report": [{"lv": list(rows)}]}))


def _mount(number: str, point: bytes, fstype: str = "ext4", root: bytes = b"/", device: bytes = b"/dev/x") -> Mount:
    return Mount(id=1, number=number, root=root, point=point, fstype=fstype, device=device, read_only=False)


def _place(mount: Mount, at: bytes) -> Place:
    return Place(source=Source(at), top=at, at=at, mount=mount)


class Programs:
    """A stand-in for LVM's and ZFS's programs: it keeps a list of volumes and snapshots."""

    def __init__(self, *rows: dict[str, str], snapshots: tuple[str, ...] = ()) -> None:
        self.rows, self.snapshots = list(rows), list(snapshots)
        self.called: list[list[str]] = []
        self.busy = 0

    def run(self, argv: list[str], **_options: Any) -> str:
        if argv == lvm.list_command():
            return json.dumps({"report": [{"lv": self.rows}]})
        if argv == zfs.list_command():
            return "".join(f"{name}\n" for name in self.snapshots)
        self.called.append(argv)
        if argv[0] == "lvcreate":
            self.rows.append(_row(argv[argv.index("--name") + 1], "253:9", origin=argv[-1].partition("/")[2]))
        elif argv[0] == "lvremove":
            if self.busy:
                self.busy -= 1
                raise DiskprepError("Logical volume is used by another device.")
            self.rows = [row for row in self.rows if f"vg0/{row['lv_name']}" != argv[-1]]
        elif argv[:2] == ["zfs", "snapshot"]:
            self.snapshots += argv[2:]
        elif argv[:2] == ["zfs", "destroy"]:
            self.snapshots.remove(argv[2])
        return ""


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(lvm, "_WAIT_S", 0.0)
    room = Room("token", tmp_path)
    monkeypatch.setattr(room, "mount", lambda name, **options: f"/room/{name} {options['options']}".encode())
    heard: list[Event] = []
    made = Setting(token=owner.new_token(), room=room, cleanup=ExitStack(), emit=heard.append)
    monkeypatch.setattr("diskprep.view.lvm.is_volume", lambda mount: mount.number.startswith("253:"))
    return made


def _dead_name() -> str:
    """A name of a process of this boot that is gone."""
    *head, pid, start, rest = owner.new_token().rsplit("-", 3)
    return "-".join([*head, pid, str(int(start) + 1), rest])


# -- LVM


def test_lvs_is_asked_for_one_document_in_bytes() -> None:
    assert lvm.list_command()[:7] == ["lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix"]


def test_what_lvs_reports_becomes_volumes() -> None:
    plain, active, thin, broken = _volumes(
        VOLUMES[0],
        _row("data", "253:0"),
        _thin("thin", "253:4"),
        _row("snap", "253:5", lv_attr="swi-Ios---", origin="data", lv_snapshot_invalid="snapshot invalid"),
    )
    assert plain == lvm.Volume(
        group="vg0",
        name="plain",
        attributes="-wi-XX----",
        size_bytes=67108864,
        pool="",
        origin="",
        number="",
        extent_bytes=_EXTENT,
        free_extents=33,
        invalid=False,
    )
    assert (active.number, active.is_thin, active.full_name) == ("253:0", False, "vg0/data")
    assert (thin.is_thin, thin.pool) == (True, "pool")
    assert (broken.invalid, broken.origin) == (True, "data")


@pytest.mark.parametrize("text", ["", "  WARNING", "[]", '{"report": [{"lv": [{}]}]}', '{"report": 1}'])
def test_what_is_no_report_is_damaged_data(text: str) -> None:
    with pytest.raises(DataDamaged):
        lvm.parse_list(text)


def test_a_thick_snapshot_gets_room_and_a_thin_one_is_activated() -> None:
    thick, thin = _volumes(_row("data", "253:0"), _thin("thin", "253:4"))
    common = ["lvcreate", "--yes", "--snapshot", "--name", "N", "--addtag", "diskprep"]
    assert lvm.create_command(thick, "N", extents=17) == [*common, "--extents", "17", "vg0/data"]
    assert lvm.create_command(thin, "N", extents=0) == [*common, "--setactivationskip", "n", "vg0/thin"]


def test_only_our_own_names_are_ever_removed() -> None:
    name = owner.new_token() + "-0"
    assert lvm.remove_command("vg0", name) == ["lvremove", "--yes", "--force", f"vg0/{name}"]
    for other in ("data", "", "diskprep", "diskprep-data"):
        with pytest.raises(AssertionError):
            lvm.remove_command("vg0", other)
    assert zfs.destroy_command(f"tank/a@{name}") == ["zfs", "destroy", f"tank/a@{name}"]
    for other in ("tank/a", "tank/a@daily", "tank/a@", f"@{name}"):
        with pytest.raises(AssertionError):
            zfs.destroy_command(other)


def test_xfs_is_mounted_beside_its_twin() -> None:
    assert lvm.mount_options("xfs") == "ro,nodev,nosuid,noexec,nouuid"
    assert lvm.mount_options("ext4") == "ro,nodev,nosuid,noexec"


@pytest.mark.parametrize(("free", "shares", "extents"), [(1000, 1, 17), (8, 1, 6), (8, 2, 3)])
def test_room_for_changes_is_shared_and_no_more_than_the_volume(free: int, shares: int, extents: int) -> None:
    (volume,) = _volumes(_row("data", "253:0", vg_free_count=str(free)))
    assert lvm.extents_for(volume, shares=shares) == extents


def test_too_little_room_for_changes_is_refused() -> None:
    for changes in ({"vg_free_count": "0"}, {"vg_free_count": "4", "lv_size": str(400 * _EXTENT)}):
        with pytest.raises(StorageFull, match="too little for a snapshot of vg0/data"):
            lvm.extents_for(_volumes(_row("data", "253:0", **changes))[0], shares=1)


def test_lvm_snapshots_are_taken_shown_and_removed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    left, alive = _dead_name() + "-0", owner.new_token() + "-0"
    programs = Programs(
        _row("data", "253:0"),
        _thin("thin", "253:4"),
        _row(left, "253:7", origin="data"),
        _row(alive, "253:8", origin="data"),
    )
    monkeypatch.setattr(process, "run", programs.run)
    data = _mount("253:0", b"/data", "xfs", root=b"/part")
    places = [_place(data, b"/data/a"), _place(data, b"/data/b"), _place(_mount("253:4", b"/thin"), b"/thin")]
    snapshots = lvm.LvmSnapshots(places, setting)
    snapshots.prepare()
    snapshots.take()
    shown = [piece.location for piece in snapshots.show()]
    options = b"ro,nodev,nosuid,noexec"
    assert shown == [
        b"/room/lvm-0 " + options + b",nouuid/part/a",
        b"/room/lvm-0 " + options + b",nouuid/part/b",
        b"/room/lvm-1 " + options,
    ]
    assert (snapshots.count, snapshots.one_moment) == (2, False)
    assert [command[-1] for command in programs.called] == [f"vg0/{left}", "vg0/data", "vg0/thin"]
    snapshots.check()
    programs.busy = 2  # as a new device is for a moment
    setting.cleanup.close()
    assert [row["lv_name"] for row in programs.rows] == ["data", "thin", alive]


def test_an_lvm_snapshot_that_ran_full_is_told(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(_row("data", "253:0"))
    monkeypatch.setattr(process, "run", programs.run)
    snapshots = lvm.LvmSnapshots([_place(_mount("253:0", b"/data"), b"/data")], setting)
    snapshots.prepare()
    snapshots.take()
    programs.rows[1]["lv_snapshot_invalid"] = "snapshot invalid"
    with pytest.raises(StorageFull, match="did not last"):
        snapshots.check()


def test_what_cannot_be_an_origin_is_refused(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", Programs(_row("snap", "253:0", lv_attr="swi-aos---", origin="data")).run)
    with pytest.raises(UsageError, match="vg0/snap is a snapshot"):
        lvm.LvmSnapshots([_place(_mount("253:0", b"/data"), b"/data")], setting).prepare()
    with pytest.raises(UsageError, match="lvs knows no volume 253:1"):
        lvm.LvmSnapshots([_place(_mount("253:1", b"/data"), b"/data")], setting).prepare()


# -- ZFS


def test_one_command_takes_all_snapshots_of_a_pool() -> None:
    assert zfs.take_commands(["tank/b", "tank", "fast/x", "tank/b"], "N") == [
        ["zfs", "snapshot", "fast/x@N"],
        ["zfs", "snapshot", "tank@N", "tank/b@N"],
    ]


def test_zfs_list_is_parsed_by_lines() -> None:
    assert zfs.parse_list("tank/with blank@daily\ntank@x\n\n") == ("tank/with blank@daily", "tank@x")


def test_a_dataset_is_read_where_its_root_is_mounted() -> None:
    part = _mount("0:50", b"/srv", "zfs", root=b"/part", device=b"tank/a")
    whole = _mount("0:50", b"/tank/a", "zfs", device=b"tank/a")
    assert zfs.hidden_directory(part, [part, whole]) == b"/tank/a/.zfs/snapshot"
    with pytest.raises(UsageError, match="not mounted as a whole"):
        zfs.hidden_directory(part, [part])


def test_zfs_snapshots_are_taken_shown_and_removed(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    left, alive = f"tank@{_dead_name()}", f"tank@{owner.new_token()}"
    programs = Programs(snapshots=(left, alive, "tank@daily"))
    monkeypatch.setattr(process, "run", programs.run)
    top = _mount("0:50", b"/tank", "zfs", device=b"tank")
    child = _mount("0:51", b"/tank/child", "zfs", device=b"tank/child")
    places = [
        _place(top, b"/tank/folder"),
        Place(source=Source(b"/tank"), top=b"/tank", at=b"/tank/child", mount=child),
    ]
    snapshots = zfs.ZfsSnapshots(places, setting)
    snapshots.prepare()
    snapshots.take()
    token = setting.token.encode()
    assert [piece.location for piece in snapshots.show()] == [
        b"/tank/.zfs/snapshot/" + token + b"/folder",
        b"/tank/child/.zfs/snapshot/" + token,
    ]
    assert (snapshots.count, snapshots.one_moment) == (2, True)
    assert programs.called[0] == ["zfs", "destroy", left]
    setting.cleanup.close()
    assert programs.snapshots == [alive, "tank@daily"]


# -- the choice


def test_auto_takes_for_each_file_system_what_it_can_do(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(choice._SNAPSHOT_KINDS, ViewKind.LVM, lambda mount: mount.number.startswith("253:"))
    monkeypatch.setattr(choice.os, "geteuid", lambda: 0)
    one, two = _place(_mount("253:0", b"/a"), b"/a"), _place(_mount("0:50", b"/b", "zfs"), b"/b")
    three = _place(_mount("253:1", b"/c", "btrfs"), b"/c")
    memory = Place(source=one.source, top=b"/a", at=b"/a/m", mount=_mount("0:9", b"/a/m", "tmpfs"))
    made = choice.choose(ViewKind.AUTO, [one, two, three, memory])
    assert made.by_kind == {ViewKind.LVM: (one,), ViewKind.ZFS: (two,), ViewKind.BTRFS: (three,)}
    assert (made.as_they_are, made.refused) == ((memory,), "")
    plain = _place(_mount("8:1", b"/d", device=b"/dev/sda1"), b"/d")
    without = choice.choose(ViewKind.AUTO, [one, plain])
    assert (without.kind, without.by_kind) == (ViewKind.NONE, {})
    assert without.refused == "no snapshot is possible: /d is ext4 on /dev/sda1"
    with pytest.raises(UsageError, match="--snapshot lvm"):
        choice.choose(ViewKind.LVM, [one, plain])


def test_without_root_auto_does_without_and_a_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.os, "geteuid", lambda: 1000)
    place = _place(_mount("0:40", b"/a", "btrfs"), b"/a")
    assert choice.choose(ViewKind.AUTO, [place]).refused == "taking a snapshot needs root"
    with pytest.raises(UsageError, match="needs root"):
        choice.choose(ViewKind.BTRFS, [place])


def test_a_failed_clearance_is_told_and_stops_nothing(tmp_path: Path) -> None:
    heard: list[Event] = []
    setting = Setting(token="t", room=Room("t", tmp_path), cleanup=ExitStack(), emit=heard.append)
    setting.clear("it", ["false"])
    setting.clear("that", lambda: None)
    assert [note.text for note in heard if isinstance(note, Note)] == [
        "cannot remove it, which a dead run had left: false failed with exit status 1: ",
        "removed that, which a dead run had left",
    ]
