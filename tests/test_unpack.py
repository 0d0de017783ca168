"""Unpacking: what a good archive gives, and every way in which a bad one could hurt."""

import io
import stat
import zipfile
from pathlib import Path

import pytest
from kaggle_place import zipped

from whaleid.utils import unpack as module
from whaleid.utils.errors import WhaleidError
from whaleid.utils.unpack import unpack


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, folder: Path) -> str:
    with pytest.raises(WhaleidError) as caught:
        unpack(archive, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("inside", ["", "train/"], ids=["flat", "with its folder"])
def test_archives_in_the_archive_become_what_they_are_named_after(tmp_path: Path, inside: str) -> None:
    images = zipped({f"{inside}a.jpg": b"a", f"{inside}b.jpg": b"b"})
    archive = written(
        tmp_path / "x.zip",
        zipped({"train.zip": images, "train.csv.zip": zipped({"train.csv": b"Image,Id\n"}), "test/c.jpg": b"c"}),
    )
    seen: list[int] = []
    assert unpack(archive, tmp_path / "out", seen.append) == 4
    assert tree(tmp_path / "out") == {
        "train/a.jpg": b"a",
        "train/b.jpg": b"b",
        "train.csv": b"Image,Id\n",
        "test/c.jpg": b"c",
    }
    assert sum(seen) >= 12


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil", "a\\b"])
def test_no_path_leads_out(tmp_path: Path, name: str) -> None:
    archive = written(tmp_path / "x.zip", zipped({"good": b"1", name: b"2"}))
    assert "outside of the folder" in refused(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))
    assert not tree(tmp_path / "deep")


def test_no_path_leads_out_of_an_inner_archive(tmp_path: Path) -> None:
    archive = written(tmp_path / "x.zip", zipped({"train.zip": zipped({"../../../evil": b"2"})}))
    assert "outside of the folder" in refused(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    assert "link" in refused(written(tmp_path / "x.zip", buffer.getvalue()), tmp_path / "out")


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 1 << 16)
    archive = written(tmp_path / "x.zip", zipped({"big": bytes(10_000_000)}))
    assert "out of proportion" in refused(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    inner = written(tmp_path / "y.zip", zipped({"train.zip": zipped({"big": bytes(10_000_000)})}))
    assert "out of proportion" in refused(inner, tmp_path / "out2")


def test_more_bytes_than_declared_are_not_written(tmp_path: Path) -> None:
    content = bytearray(zipped({"a": b"x" * 100_000}))
    place = content.rindex(b"PK\x01\x02")  # the central directory says how long the file is
    content[place + 24 : place + 28] = (10).to_bytes(4, "little")
    refused(written(tmp_path / "x.zip", bytes(content)), tmp_path / "out")
    assert sum(len(item) for item in tree(tmp_path / "out").values()) <= 10


def test_a_damaged_file_and_a_cut_archive_are_named(tmp_path: Path) -> None:
    good = zipped({"a.jpg": bytes(range(256)) * 40})
    damaged = bytearray(good)
    damaged[60] ^= 0xFF
    assert "a.jpg is " in refused(written(tmp_path / "x.zip", bytes(damaged)), tmp_path / "out")
    assert "not a whole zip" in refused(written(tmp_path / "y.zip", good[:-30]), tmp_path / "out2")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    archive = written(tmp_path / "x.zip", zipped({"a": b"1", "a/b": b"2"}))
    assert "is a file and a folder" in refused(archive, tmp_path / "out")


def test_a_disk_too_small_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    archive = written(tmp_path / "x.zip", zipped({"a": bytes(1000)}))
    assert "free some space" in refused(archive, tmp_path / "out")
    assert not tree(tmp_path / "out")
