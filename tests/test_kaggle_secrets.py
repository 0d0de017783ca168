"""Credentials: found in every form, never shown; and none of them in what is committed."""

import base64
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import secret_search
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from whaleid.cli import main as cli
from whaleid.kaggle.client import Output, explain
from whaleid.kaggle.credentials import find_credentials, masked, require_credentials, secret_values
from whaleid.report.cv_lb import rank_correlation
from whaleid.utils.errors import WhaleidError

SECRET = "marked0secret0of0the0test"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no credentials in the environment."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def kept(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o600)
    return path


def test_every_form_is_found_and_none_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_credentials() is None
    pair = {"username": "fan", "key": SECRET}

    def found() -> tuple[str, str | None]:
        credentials = find_credentials()
        assert credentials is not None
        assert SECRET not in repr(credentials)
        assert SECRET in secret_values()
        assert masked(f"key={SECRET}") == "key=***"
        return credentials.form, credentials.user

    chosen = kept(home / ".config" / "kaggle" / "kaggle.json", pair)
    assert found() == ("~/.config/kaggle/kaggle.json", "fan")
    chosen.unlink()
    login = kept(home / ".kaggle" / "credentials.json", {"refresh_token": SECRET, "username": "fan"})
    assert found() == ("kaggle auth login (~/.kaggle/credentials.json)", "fan")
    legacy = kept(home / ".kaggle" / "kaggle.json", pair)
    assert found() == ("~/.kaggle/kaggle.json", "fan")
    legacy.unlink()
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "own"))
    kept(home / "own" / "kaggle.json", pair)
    assert found()[1] == "fan"
    monkeypatch.setenv("KAGGLE_USERNAME", "other")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    assert found() == ("KAGGLE_USERNAME and KAGGLE_KEY", "other")
    kept(home / ".kaggle" / "access_token", SECRET + "\n")
    assert found() == ("~/.kaggle/access_token", None)
    monkeypatch.setenv("KAGGLE_API_TOKEN", str(kept(home / "token", SECRET)))
    assert found() == ("the file that KAGGLE_API_TOKEN names", None)
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    assert found() == ("KAGGLE_API_TOKEN", None)
    assert login.is_file()


def test_a_file_that_others_may_read_is_told(home: Path) -> None:
    kept(home / ".kaggle" / "kaggle.json", {"username": "fan", "key": SECRET}).chmod(0o644)
    credentials = find_credentials()
    assert credentials is not None
    assert "chmod 600 ~/.kaggle/kaggle.json" in str(credentials.warning)


@pytest.mark.parametrize("words", [[], ["--debug"]])
def test_no_line_of_an_error_and_no_traceback_shows_a_key(
    home: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "fan")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["whaleid", "score", str(home / f"{SECRET}.csv"), "truth.csv", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "***.csv" in said.err and SECRET not in said.out + said.err
    assert ("Traceback" in said.err) is bool(words)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"username": 3, "key": null}', '{"username": "fan"}'])
def test_a_key_file_that_holds_no_key_is_none(home: Path, content: str) -> None:
    kept(home / ".kaggle" / "kaggle.json", content)
    assert find_credentials() is None


@pytest.mark.parametrize("content", ['{"username": "fan", "k', '\ufeff{"username": "fan", "key": "abcdefgh"}'])
def test_a_key_file_that_the_client_cannot_read_is_named(home: Path, content: str) -> None:
    kept(home / ".kaggle" / "kaggle.json", content)
    with pytest.raises(WhaleidError, match=r"found \(~/\.kaggle/kaggle\.json: cut short, or not JSON in UTF-8"):
        require_credentials()


@settings(deadline=None)
@given(st.text(), st.text(), st.integers(0, 255))
def test_whatever_the_client_says_becomes_one_line_without_a_signed_address(out: str, err: str, code: int) -> None:
    signed = f"{err}\nfailed: https://host/path?X-Signature=abc"
    _, line = explain(Output(out, signed, code), "whales", "a form")
    assert len(line.splitlines()) == 1
    assert "X-Signature" not in line


@settings(deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=3, max_size=30), st.data())
def test_rank_correlation_is_spearmans(left: list[int], data: st.DataObject) -> None:
    right = data.draw(st.lists(st.integers(-5, 5), min_size=len(left), max_size=len(left)))
    got = rank_correlation(np.array(left, float), np.array(right, float))
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert np.isnan(got)
    else:
        assert got == pytest.approx(spearmanr(left, right)[0])


KEY_LIKE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "text",
    [
        f'{{"username":"a","key":"{KEY_LIKE}"}}',
        f"export KAGGLE_KEY={KEY_LIKE}",
        "KGAT" + "_" + KEY_LIKE,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "token: ghp" + "_" + "a" * 36,
    ],
)
def test_a_credential_that_was_committed_once_is_found_though_it_was_removed(tmp_path: Path, text: str) -> None:
    def git(*words: str) -> None:
        names = ["-c", "user.name=fan", "-c", "user.email=fan@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "notes.md").write_text("a key is 32 characters long\n")
    git("add", "-A")
    git("commit", "-qm", "clean")
    assert secret_search.in_commits(tmp_path) == []
    (tmp_path / "notes.md").write_text(f"mine is\n{text}\n")
    git("commit", "-qam", "planted")
    git("rm", "-q", "notes.md")
    git("commit", "-qm", "removed")
    assert len(secret_search.in_commits(tmp_path)) == 1


def test_a_planted_secret_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """The search that the other tests rely on, tried on what it must find."""
    (tmp_path / "clean.log").write_text("downloading 3 MB, key ***\n")
    assert secret_search.places(tmp_path) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "kernel.ipynb").write_text(json.dumps({"cells": [{"source": f"key = '{secret_search.KEY}'"}]}))
    (tmp_path / "a" / "kernel.log").write_bytes(b"\xff" + secret_search.TOKEN.encode())
    pair = base64.b64encode(f"{secret_search.USER}:{secret_search.KEY}".encode())
    (tmp_path / "trace.txt").write_bytes(b"Authorization: Basic " + pair)
    with zipfile.ZipFile(tmp_path / "code.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("src/settings.py", f"TOKEN = '{secret_search.TOKEN}'" * 9)
    assert secret_search.places(tmp_path) == ["a/kernel.log", "code.zip/src/settings.py", "kernel.ipynb", "trace.txt"]


def test_no_commit_and_no_committed_file_holds_a_key() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    own = secret_values()  # of whoever runs the tests
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    held = [path for path in files if path.is_file()]
    looks = secret_search.LOOKS_SECRET
    assert [str(path) for path in held if looks.search(path.read_bytes())] == []
    assert [str(path) for path in held if any(value.encode() in path.read_bytes() for value in own)] == []
    assert not [path for path in files if path.name in ("kaggle.json", "access_token", "credentials.json")]
    assert secret_search.in_commits(ROOT, own) == []
