"""`whaleid data download` of a Kaggle competition, by the real `kaggle` command against a server of our own."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_place import SLUG, TEST, TRAIN, World, contents, write_files, zipped
from kaggle_server import KEY, TOKEN, FakeKaggle, Fault

from whaleid.config.files import load_competition
from whaleid.kaggle import doctor
from whaleid.kaggle.credentials import find_credentials


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with FakeKaggle() as server:
        yield World(tmp_path / "a place", server)


def leftovers(world: World) -> list[str]:
    """What a failure left at the root, but for an archive to be carried on with."""
    if not world.root.exists():
        return []
    return [path.name for path in world.root.iterdir() if not path.name.startswith(f"{SLUG}.zip")]


def test_download_unpack_count_and_again_nothing(world: World) -> None:
    world.state.archives[f"{SLUG}.zip"] = zipped(contents())
    done = world.run("data", "download")
    assert done.returncode == 0, done.stderr
    assert f"{TRAIN} train images, {TEST} test images" in done.stdout
    assert sorted(path.name for path in world.root.iterdir()) == ["sample_submission.csv", "test", "train", "train.csv"]
    assert (world.root / "train" / "a3.jpg").read_bytes() == contents()["train/a3.jpg"]
    again = world.run("data", "download")
    assert again.returncode == 0
    assert world.state.methods() == ["DownloadDataFiles"]
    assert not world.holds(KEY)


def test_a_killed_download_is_carried_on_with(world: World) -> None:
    archive = zipped(contents(200_000))
    world.state.archives[f"{SLUG}.zip"] = archive
    world.state.break_at.append(("stall", 2_500_000))
    process = subprocess.Popen(
        world.words("data", "download"),
        cwd=world.folder,
        env=world.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    part = world.root / f"{SLUG}.zip"
    end = time.monotonic() + 20
    while (not part.is_file() or part.stat().st_size < 2_000_000) and time.monotonic() < end:
        time.sleep(0.05)
    locked = world.refused("data", "download")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "under way" in locked
    have = part.stat().st_size
    assert 2_000_000 <= have < len(archive)
    assert leftovers(world) == []

    done = world.run("data", "download")
    assert done.returncode == 0, done.stderr
    assert "continued after" in done.stdout
    assert world.state.ranges[-1] == f"bytes={have}-"
    assert (world.root / "test" / "b1.jpg").read_bytes() == contents(200_000)["test/b1.jpg"]


def test_a_connection_dropped_on_the_way_is_taken_up_by_itself(world: World) -> None:
    world.state.archives[f"{SLUG}.zip"] = zipped(contents(150_000))
    world.state.break_at.append(("drop", 1_500_000))
    done = world.run("data", "download")
    assert done.returncode == 0, done.stderr
    assert [asked is not None for asked in world.state.ranges] == [False, True]
    assert len(world.pauses()) == 1


def test_a_connection_that_keeps_dropping_is_given_up_and_can_be_carried_on_with(world: World) -> None:
    world.state.archives[f"{SLUG}.zip"] = zipped(contents(150_000))
    world.state.break_at.extend([("drop", 1_500_000), *[("drop", 1000)] * 5])
    line = world.refused("data", "download")
    assert "the connection to Kaggle broke" in line and "it continues" in line
    pauses = world.pauses()  # the client's own: five tries more, each after twice the time
    assert len(pauses) == 5
    assert all(2**turn <= pause <= 2**turn + 1 for turn, pause in enumerate(pauses, start=1))
    assert len(world.state.ranges) == 6
    assert leftovers(world) == []
    have = (world.root / f"{SLUG}.zip").stat().st_size
    assert have >= 1_000_000

    done = world.run("data", "download")
    assert done.returncode == 0, done.stderr
    assert "continued after" in done.stdout
    assert world.state.ranges[-1] == f"bytes={have}-"
    assert (world.root / "train" / "a2.jpg").read_bytes() == contents(150_000)["train/a2.jpg"]


@pytest.mark.parametrize(
    ("fault", "environment", "said"),
    [
        (
            Fault(403, 403, "You must accept this competition's rules before downloading"),
            {},
            f"competitions/{SLUG}/rules",
        ),
        (Fault(403), {}, f"competitions/{SLUG}/rules"),
        (None, {"KAGGLE_KEY": "wrong0key0wrong0key"}, "401), found as KAGGLE_USERNAME and KAGGLE_KEY"),
        (None, {"KAGGLE_API_TOKEN": "wrong0token0wrong"}, "401), found as KAGGLE_API_TOKEN"),
        (None, {}, "404"),
        (Fault(200, 500, "Something went wrong over here"), {}, "Kaggle says: Something went wrong over here"),
        (Fault(500), {}, "500 Server Error"),
        (Fault(429, 429, "Too many requests"), {}, "quota"),
        (Fault(drop=True), {}, "the connection to Kaggle broke"),
    ],
    ids=["rules", "forbidden", "key", "token", "missing", "inside 200", "500", "quota", "dropped"],
)
def test_each_failure_is_one_clear_line(
    world: World, fault: Fault | None, environment: dict[str, str], said: str
) -> None:
    if fault is not None:
        world.state.archives[f"{SLUG}.zip"] = zipped(contents())
        world.state.fail("DownloadDataFiles", fault, 12)
    line = world.refused("data", "download", **environment)
    assert said in line
    assert not world.root.exists()
    for secret in (KEY, *environment.values()):
        assert not world.holds(secret)


def test_without_credentials_the_line_says_how_to_get_some(world: World) -> None:
    line = world.refused("data", "download", KAGGLE_KEY="")
    assert "no Kaggle credentials are found: run `kaggle auth login`" in line
    assert f"put the zip there as {SLUG}.zip" in line
    assert world.state.methods() == []
    assert not world.root.exists()


def test_a_token_serves_too(world: World) -> None:
    world.state.archives[f"{SLUG}.zip"] = zipped(contents(100))
    done = world.run("data", "download", KAGGLE_API_TOKEN=TOKEN, KAGGLE_KEY="")
    assert done.returncode == 0, done.stderr
    assert not world.holds(TOKEN)


def test_an_archive_that_lies_there_is_taken_without_asking(world: World) -> None:
    files = contents(100)
    images = {name.removeprefix("train/"): content for name, content in files.items() if name.startswith("train/")}
    rest = {name: content for name, content in files.items() if not name.startswith("train/")}
    write_files(world.root, {f"{SLUG}.zip": zipped({**rest, "train.zip": zipped(images)}), "boxes.csv": b"mine"})
    done = world.run("data", "download", "--keep-archive", KAGGLE_KEY="")
    assert done.returncode == 0, done.stderr
    assert world.state.methods() == []
    assert (world.root / "boxes.csv").read_bytes() == b"mine"
    assert (world.root / f"{SLUG}.zip").is_file()
    assert len(list((world.root / "train").iterdir())) == TRAIN


def test_images_that_are_not_in_the_archive_are_told_and_nothing_stays(world: World) -> None:
    files = contents(100)
    del files["test/b2.jpg"]
    world.state.archives[f"{SLUG}.zip"] = zipped(files)
    assert "1 of 6 listed images" in world.refused("data", "download")
    assert leftovers(world) == []


def test_an_unpacking_that_was_killed_leaves_nothing_that_looks_done(world: World) -> None:
    write_files(world.root, {f"{SLUG}.zip": zipped(contents(100)), ".unpacking/train.csv": b"half"})
    assert world.run("data", "download").returncode == 0
    assert not (world.root / ".unpacking").exists()
    assert (world.root / "train.csv").read_bytes() == contents()["train.csv"]


def test_doctor_says_what_is_missing_and_exits_with_2(world: World) -> None:
    world.state.fail("DownloadDataFile", Fault(403, 403, "You must accept this competition's rules"))
    done = world.run("doctor")
    assert done.returncode == 2, done.stderr
    *found, verdict = done.stdout.splitlines()
    assert verdict.startswith("recipe recipe on whales: not ready, ") and "data, rules" in verdict
    lines = {line.split()[1]: line for line in found}
    assert list(lines) == ["Python", "packages", "GPU", "disk", "memory", "data", "credentials", "rules"]
    assert lines["data"].startswith("missing")
    assert f"competitions/{SLUG}/rules" in lines["rules"]
    assert lines["credentials"] == "ok       credentials  KAGGLE_USERNAME and KAGGLE_KEY, user whalefan"
    assert not world.holds(KEY)


def test_doctor_looks_at_data_credentials_and_rules(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    competition = load_competition(str(world.folder / "whales.yaml"))
    write_files(world.root, contents(100))
    world.state.files["sample_submission.csv"] = b"Image,Id\n"
    assert doctor.data(competition) == doctor.Finding(
        "ok", "data", f"{TRAIN} train images, 4 identities, {TEST} test images, all there"
    )
    assert doctor.rules(competition, find_credentials()).state == "ok"
    shutil.rmtree(world.root / "train")
    assert doctor.data(competition).state == "missing"
    monkeypatch.delenv("KAGGLE_KEY")
    assert find_credentials() is None
    assert doctor.rules(competition, None).state == "skipped"
    assert doctor.credentials_found(competition, None).state == "note"  # the CSVs are here: nothing needs Kaggle


def test_packages_that_are_absent_or_of_another_version_are_named(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy==0.0.1  # old\n\nno-such-package==1; python_version < '3'\n")
    assert "numpy" in doctor.packages(requirements).message
    assert doctor.packages(requirements).state == "note"
    requirements.write_text("no-such-package==1\n")
    assert doctor.packages(requirements).state == "missing"
