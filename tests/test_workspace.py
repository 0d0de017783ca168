"""Atomic writes and the knowledge of what is up to date."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whaleid.pipeline.workspace import Workspace
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest, require_space


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("")
    assert [item.name for item in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_current_means_there_and_made_from_the_same(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.mark_current(workspace.images, "a")
    assert not workspace.is_current(workspace.images, "a")
    workspace.images.write_text("")
    assert workspace.is_current(workspace.images, "a")
    assert not workspace.is_current(workspace.images, "b")


@given(st.dictionaries(st.text(), st.integers()), st.dictionaries(st.text(), st.integers()))
def test_equal_parts_have_equal_keys_and_others_not(left: dict[str, int], right: dict[str, int]) -> None:
    assert (digest(left) == digest(right)) == (left == right)
    assert digest(dict(reversed(left.items()))) == digest(left)


def test_a_disk_too_small_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(WhaleidError, match="free some space"):
        require_space(tmp_path, 10**18, "the cache")
