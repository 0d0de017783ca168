"""The notebooks from their texts, and with --run executed: `make notebooks`.

The text (`01_explore.py`, cells between `# %%`) is the source, and what a diff shows; the .ipynb beside it is made
from it, without outputs. Executed copies, outputs and all, go to `work/<competition>/notebooks/`.
COMPETITION, RECIPE, WORK and SET are taken from the environment, here and by the notebooks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from whaleid.notebooks import notebook_project
from whaleid.utils.errors import WhaleidError

HERE = Path(__file__).resolve().parent
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},  # so that an editor with jupytext keeps the two together
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts(folder: Path = HERE) -> list[Path]:
    """The notebooks' texts, in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_script(script: Path) -> nbformat.NotebookNode:
    """The notebook of a text. The same text gives the same notebook: cells are numbered, not named at random."""
    notebook = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"].pop("lines_to_next_cell", None)
    notebook["metadata"] = nbformat.from_dict(METADATA)
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5  # the first with cells' ids
    nbformat.validate(notebook)
    return notebook


def notebook_text(script: Path) -> str:
    """Content of the .ipynb beside a text."""
    return nbformat.writes(read_script(script)) + "\n"


def execute(
    script: Path, folder: Path, environment: Mapping[str, str], out: Path | None = None
) -> nbformat.NotebookNode:
    """The notebook of a text with the outputs of its cells, executed by a fresh process in `folder`.

    out: where it is written as far as it came, also when a cell fails.
    Raises WhaleidError that names the notebook and what went wrong in it.
    """
    notebook = read_script(script)
    with tempfile.TemporaryDirectory() as private:
        # no history in the user's home; no warning that a library's progress bars lack widgets, which none here needs
        own = {"IPYTHONDIR": private, "PYTHONWARNINGS": "ignore:IProgress not found", **environment}
        # sockets in the file system: no port that another process may take first
        manager = AsyncKernelManager(
            kernel_name="python3", transport="ipc", connection_file=str(Path(private, "kernel.json"))
        )
        client = NotebookClient(notebook, km=manager, timeout=None, resources={"metadata": {"path": str(folder)}})
        try:
            client.execute(env=own, cleanup_kc=True)
        except (CellExecutionError, DeadKernelError) as error:
            said = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
            raise WhaleidError(f"{script.name}: {said}") from error
        finally:
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, out)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="execute them too, one after the other")
    arguments = parser.parse_args()
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook_text(script), encoding="utf-8")
    if not arguments.run:
        return
    results = (notebook_project(os.environ).workspace.root / HERE.name).resolve()
    for script in scripts():
        began = time.monotonic()
        out = results / f"{script.stem}.ipynb"
        execute(script, Path.cwd(), os.environ, out)
        print(f"{script.stem}: {time.monotonic() - began:.0f} s, {out.stat().st_size / 1e3:.0f} kB: {out}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except WhaleidError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
