"""Submissions, data sets and kernels through the real client and a Kaggle of our own."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_server import USER, FakeKaggle, Fault
from kaggle_world import (
    SLUG,
    answered,
    at_kaggle,
    bundle,
    draw,
    no_secret,
    no_secret_in,
    one_line,
    whaleid,
)

from whaleid.evaluation.log import read_log
from whaleid.utils.manifest import write_manifest


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the competition's data, drawn once."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder)
    return folder / "data"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKaggle]:
    with at_kaggle(monkeypatch, tmp_path) as server:
        yield server
    no_secret_in(tmp_path)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    no_secret(captured.out + captured.err)
    assert captured.err == ""
    return captured.out


# ------------------------------------------------------------------------------------------------- submissions


def test_a_submission_and_its_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle, drawn: Path
) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    path = answered(tmp_path)
    assert whaleid(monkeypatch, tmp_path, "kaggle submit") == 0
    assert "nothing was sent" in said(capsys)
    assert server.state.asked == []  # a dry run asks nothing

    assert whaleid(monkeypatch, tmp_path, "kaggle submit", "--confirm") == 0
    assert f"{path.name}: public 0.91234, private 0.90123" in said(capsys)
    sent = server.state.submissions[0]
    assert (sent["fileName"], sent["description"]) == (path.name, "recipe | 0.90000 | 1a2b3c4")
    assert sent["content"] == path.read_bytes()
    row = read_log(tmp_path / "submissions" / "log.csv")[-1]
    assert (row.file, row.cv, row.public, row.private) == (path.name, 0.9, 0.91234, 0.90123)

    assert whaleid(monkeypatch, tmp_path, "kaggle submit", "--confirm") == 0  # not twice
    assert "at Kaggle already" in said(capsys)
    assert server.state.methods().count("CreateSubmission") == 1

    assert whaleid(monkeypatch, tmp_path, "kaggle scores") == 0
    assert "1 of 1 listed submissions" in said(capsys)
    assert (tmp_path / "work" / "drawn" / "report" / "cv_lb.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("StartSubmissionUpload", Fault(status=403, message="You must accept this competition's rules"), "/rules "),
        ("ListSubmissions", Fault(status=401, message="Unauthorized"), "credentials .401., found as KAGGLE_USERNAME"),
        ("ListSubmissions", Fault(status=404, message="Not found"), "does not know it .404."),
        ("CreateSubmission", Fault(code=500, message="Something went wrong"), "Something went wrong"),
        ("CreateSubmission", Fault(code=400, message="You have used all of your daily submissions"), "quota"),
        ("ListSubmissions", Fault(drop=True), "connection to Kaggle broke"),
    ],
    ids=["rules", "key", "missing", "inside a 200", "quota", "dropped"],
)
def test_a_submission_refused_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    server: FakeKaggle,
    drawn: Path,
    method: str,
    fault: Fault,
    message: str,
) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    answered(tmp_path)
    server.state.fail(method, fault, 20)
    assert whaleid(monkeypatch, tmp_path, "kaggle submit", "--confirm") == 2
    assert re.search(message, one_line(capsys))
    assert server.state.submissions == []
    assert all(row.public is None for row in read_log(tmp_path / "submissions" / "log.csv"))


def test_a_file_that_would_be_refused_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle, drawn: Path
) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    path = answered(tmp_path)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert whaleid(monkeypatch, tmp_path, "kaggle submit", "--confirm") == 2
    assert "not submitted: " in one_line(capsys)
    assert server.state.asked == []


# ------------------------------------------------------------------------------------- data sets and the kernel


def test_data_set_and_kernel_are_pushed_once_and_again_when_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle
) -> None:
    home = bundle(tmp_path)
    assert whaleid(monkeypatch, tmp_path, "kaggle push") == 0
    assert "nothing was sent" in said(capsys)
    assert server.state.asked == []

    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 0
    out = said(capsys)
    assert "whale-code: ready" in out
    assert "version 1 pushed" in out
    versions = server.state.data_sets[f"{USER}/whale-code"].versions
    assert set(versions[0]) == {"package.zip", "MANIFEST.json"}  # the sub-folder travels too
    methods = server.state.methods()
    assert methods.index("SaveKernel") > max(i for i, name in enumerate(methods) if name == "GetDatasetStatus")
    kernel = server.state.kernels[0]
    assert kernel["text"] == "print('run')\n"
    assert kernel["datasetDataSources"] == [f"{USER}/whale-code"]
    assert kernel["competitionDataSources"] == [SLUG]
    assert kernel.get("enableInternet", False) is False
    assert kernel["machineShape"] == "NvidiaTeslaT4"

    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 0  # nothing has changed
    assert "unchanged since it was pushed" in said(capsys)
    assert (len(versions), len(server.state.kernels)) == (1, 1)
    assert whaleid(monkeypatch, tmp_path, "kaggle push") == 0
    assert said(capsys).count("unchanged since it was pushed") == 2

    (home / "datasets" / "whale-code" / "package" / "code.py").write_text("print('blue whale')\n")
    write_manifest(home / "datasets" / "whale-code", "code")
    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 0
    assert "sending version 2" in said(capsys)
    assert (len(versions), len(server.state.kernels)) == (2, 2)


@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("GetDatasetStatus", Fault(status=401, message="Unauthorized"), "401"),
        ("CreateDataset", Fault(answer={"status": "error", "error": "The title is taken"}), "The title is taken"),
        ("CreateDataset", Fault(code=500, message="Something went wrong"), "Something went wrong"),
        ("SaveKernel", Fault(answer={"error": "Maximum weekly GPU quota of 30 hours reached"}), "quota"),
        ("SaveKernel", Fault(status=403, message="Permission 'kernels.update' was denied"), "refuses it .403."),
        (
            "SaveKernel",
            Fault(
                answer={"ref": "r", "url": "u", "versionNumber": 1, "invalidDatasetSources": ["whalefan/whale-code"]}
            ),
            "without its dataset sources",
        ),
        ("StartBlobUpload", Fault(drop=True), "connection to Kaggle broke|did not arrive"),
        ("SaveKernel", Fault(drop=True), "connection to Kaggle broke"),
    ],
    ids=["key", "error in an answer", "inside a 200", "quota", "forbidden", "source refused", "upload", "dropped"],
)
def test_a_push_refused_is_one_line_and_carries_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    server: FakeKaggle,
    method: str,
    fault: Fault,
    message: str,
) -> None:
    home = bundle(tmp_path)
    server.state.fail(method, fault, 20 if fault.drop else 1)
    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 2
    assert re.search(message, one_line(capsys))
    server.state.faults.clear()
    record = home.with_name("recipe.pushed.json")
    assert f"{USER}/whale-kernel" not in (json.loads(record.read_text()) if record.is_file() else {})

    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 0  # what arrived is not sent again
    assert len(server.state.data_sets[f"{USER}/whale-code"].versions) == 1
    assert len(server.state.kernels) == 1


@pytest.mark.parametrize("owner", ["another", "OWNER"])
def test_a_bundle_of_another_owner_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle, owner: str
) -> None:
    path = bundle(tmp_path) / "kernel" / "kernel-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": f"{owner}/whale-kernel"}))
    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--confirm") == 2
    assert f"its owner is {owner}, the credentials are of whalefan: run whaleid kernel --owner whalefan" in one_line(
        capsys
    )
    assert server.state.asked == []


def test_status_and_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle, drawn: Path
) -> None:
    shutil.copytree(drawn, tmp_path / "data")
    bundle(tmp_path)
    assert whaleid(monkeypatch, tmp_path, "kaggle status") == 2
    assert "404" in one_line(capsys)
    server.state.kernels.append({})

    server.state.kernel_status = "RUNNING"
    assert whaleid(monkeypatch, tmp_path, "kaggle status") == 0
    assert said(capsys) == f"kernel {USER}/whale-kernel: running\n"
    assert whaleid(monkeypatch, tmp_path, "kaggle output") == 2
    assert "not done yet" in one_line(capsys)

    server.state.kernel_status, server.state.failure = "ERROR", "out of memory"
    assert whaleid(monkeypatch, tmp_path, "kaggle status") == 2
    assert "error (out of memory)" in said(capsys)

    server.state.kernel_status, server.state.failure = "COMPLETE", ""
    server.state.outputs = {"submission.csv": answered(tmp_path).read_bytes()}
    server.state.log = "[]"
    assert whaleid(monkeypatch, tmp_path, "kaggle output") == 0
    assert "submission.csv: a valid submission" in said(capsys)
    folder = tmp_path / "work" / "drawn" / "kernel" / "recipe.output"
    assert sorted(path.name for path in folder.iterdir()) == ["submission.csv", "whale-kernel.log"]

    server.state.fail("ListKernelSessionOutput", Fault(status=500, message="broken"), 20)
    assert whaleid(monkeypatch, tmp_path, "kaggle output") == 2
    one_line(capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["submission.csv", "whale-kernel.log"]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_kernel_that_trains_a_run_is_found_by_its_experiment_and_fold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, server: FakeKaggle
) -> None:
    home = bundle(tmp_path, "recipe-tiny-fold1")
    assert whaleid(monkeypatch, tmp_path, "kaggle push") == 2
    assert "recipe-tiny-fold1 beside it" in one_line(capsys)
    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--experiment", "tiny") == 2
    assert "--experiment and --fold go together" in one_line(capsys)
    assert whaleid(monkeypatch, tmp_path, "kaggle push", "--experiment", "large", "--fold", "1") == 2
    assert "no experiment 'large'" in one_line(capsys)
    run = ("--experiment", "tiny", "--fold", "1")
    assert whaleid(monkeypatch, tmp_path, "kaggle push", *run) == 0
    assert f"from {home}" in said(capsys)
    assert whaleid(monkeypatch, tmp_path, "kaggle push", *run, "--confirm") == 0
    assert "version 1 pushed" in said(capsys)
    assert home.with_name("recipe-tiny-fold1.pushed.json").is_file()
    assert whaleid(monkeypatch, tmp_path, "kaggle status", *run) == 0
    assert said(capsys) == f"kernel {USER}/whale-kernel: complete\n"

    server.state.outputs, server.state.log = {"kernel.json": b"{}"}, "[]"
    assert whaleid(monkeypatch, tmp_path, "kaggle output", *run) == 2
    assert "checkpoint.safetensors: not in the output" in one_line(capsys)
    server.state.outputs = {"runs/tiny/fold1/checkpoint.safetensors": b"weights"}
    assert whaleid(monkeypatch, tmp_path, "kaggle output", *run) == 0
    assert "tiny fold 1 is trained: copy runs/" in said(capsys)
