"""Generate the notebooks from their .py files, and with --run execute them.

The .py file (cells separated by `# %%`) is the source; the .ipynb beside it is generated from it, without outputs.
Executed copies with outputs go to `work/<competition>/notebooks/`. COMPETITION, RECIPE, WORK and SET are read from the
environment, here and by the notebooks.
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
    "jupytext": {"formats": "ipynb,py:percent"},  # editors with jupytext keep both files in step
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts(folder: Path = HERE) -> list[Path]:
    """The notebooks' .py files, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def read_script(script: Path) -> nbformat.NotebookNode:
    """The notebook of a .py file. The same file gives the same notebook: cells have numbers, not random names."""
    notebook = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"].pop("lines_to_next_cell", None)
    notebook["metadata"] = nbformat.from_dict(METADATA)
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5  # the first with cells' ids
    nbformat.validate(notebook)
    return notebook


def notebook_text(script: Path) -> str:
    """Content of the .ipynb file of a .py file."""
    return nbformat.writes(read_script(script)) + "\n"


def execute(
    script: Path, folder: Path, environment: Mapping[str, str], out: Path | None = None
) -> nbformat.NotebookNode:
    """Execute the notebook of a .py file in a new process in `folder`.

    out: file to write, also if a cell fails.
    Raises WhaleidError with the notebook's name and the error.
    """
    notebook = read_script(script)
    with tempfile.TemporaryDirectory() as private:
        # no history in the home folder, no warning about missing progress widgets
        own = {"IPYTHONDIR": private, "PYTHONWARNINGS": "ignore:IProgress not found", **environment}
        # sockets are files, so no other process can take the port
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
    parser.add_argument("--run", action="store_true", help="execute them too")
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
