"""Nothing that is loaded can run code: no pickles, no evaluated text, no shell, and every loader says so."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from whaleid.config.files import read_yaml
from whaleid.features.files import read_features
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import load_array

SOURCE = Path(__file__).resolve().parents[1] / "src" / "whaleid"
REFUSED_MODULES = {"cPickle", "dill", "cloudpickle", "marshal", "shelve"}
REFUSED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "joblib.load", "pd.read_pickle", "torch.save", "torch.hub.load", "torch.jit.load", "shutil.unpack_archive",
}  # fmt: skip
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
"""Loader -> the argument without which it would read code."""


def problems(text: str) -> Iterator[str]:
    """What a module's source loads that can run code."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"imports {name}" for name in names if name.split(".")[0] in REFUSED_MODULES)
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "joblib"):
            yield from (f"imports {alias.name}" for alias in node.names if alias.name != "cpu_count")
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr != "UnpicklingError":
            yield f"line {node.lineno}: pickle.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        if called in REFUSED_CALLS or given.get("shell"):
            yield f"line {node.lineno}: {called}"
        if called in NEEDED:
            name, value = NEEDED[called]
            if given.get(name) is not value:
                yield f"line {node.lineno}: {called} without {name}={value}"


def test_no_source_file_loads_what_can_run_code() -> None:
    found = {path.name: list(problems(path.read_text())) for path in SOURCE.rglob("*.py")}
    assert {name: one for name, one in found.items() if one} == {}


@pytest.mark.parametrize(
    "text",
    ["pickle.loads(data)", "from pickle import loads", "from joblib import load",
     "np.load(path)", "torch.load(path, weights_only=False)", "eval('1')",
     "subprocess.run(words, shell=True)", "yaml.load(text, Loader)", "import os.path, dill"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert list(problems(text))


class Trap:
    """Raises where it is unpickled: whoever reads it as a pickle runs its code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _sprung, ("the trap's code was run",)


def _sprung(message: str) -> None:
    raise AssertionError(message)


def test_a_pickle_in_the_place_of_features_is_refused_unread(tmp_path: Path) -> None:
    images = pd.DataFrame({"image": ["a.jpg"]})
    images.to_csv(tmp_path / "rows.csv", index=False)
    np.save(tmp_path / "embeddings.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    for content in ((tmp_path / "embeddings.npy").read_bytes(), pickle.dumps(Trap())):
        (tmp_path / "embeddings.npy").write_bytes(content)
        with pytest.raises(WhaleidError, match=r"embeddings\.npy"):
            read_features(tmp_path, images)


def test_an_environment_variable_never_enters_a_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "a secret")
    (tmp_path / "a.yaml").write_text("name: ${oc.env:KAGGLE_KEY}\n")
    assert "secret" not in str(read_yaml(tmp_path / "a.yaml"))


def test_aliases_that_stand_for_billions_of_values_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [0]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(WhaleidError, match=r"a\.yaml: row 2: alias '\*a0'"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", ["[" * 5000, "a: !!python/object/apply:os.system [ls]", "a: \0", 'a: "b\\0c"', "? {a: 1}\n: 2"]
)
def test_a_yaml_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(WhaleidError, match=r"a\.yaml") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x05\x06" + bytes(18),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 8), }"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }"),
        npy(b"__import__('os').system('true')"),
        npy(b"\xff\xfe'''"),
    ],
)
def test_whatever_is_no_array_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_array(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


def test_a_whole_array_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), np.arange(6.0).reshape(2, 3))
