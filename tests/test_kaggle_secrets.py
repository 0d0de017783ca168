"""Credentials: found in every form, never shown; and none of them in what is committed."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from whaleid.kaggle.client import Output, explain
from whaleid.kaggle.credentials import find_credentials, masked, secret_values
from whaleid.report.cv_lb import rank_correlation

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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"username": 3, "key": null}', '{"username": "fan"}'])
def test_a_key_file_that_holds_no_key_is_none(home: Path, content: str) -> None:
    kept(home / ".kaggle" / "kaggle.json", content)
    assert find_credentials() is None


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


KEYS = re.compile(
    rb"KGAT_[A-Za-z0-9]{20,}"  # an access token
    rb"|[\"']?key[\"']?\s*[:=]\s*[\"'][0-9a-f]{32}[\"']"  # a key as kaggle.json holds it
    rb"|KAGGLE_(?:KEY|API_TOKEN)\s*=\s*[\"']?[0-9a-f]{32}",
    re.IGNORECASE,
)


def test_the_pattern_finds_keys() -> None:
    key = "0123456789abcdef" * 2
    for text in (f'{{"username":"a","key":"{key}"}}', f"export KAGGLE_KEY={key}", "KGAT" + "_" + key):
        assert KEYS.search(text.encode())


def test_no_committed_file_holds_a_key() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert [str(path) for path in files if path.is_file() and KEYS.search(path.read_bytes())] == []
    assert not [path for path in files if path.name in ("kaggle.json", "access_token", "credentials.json")]
