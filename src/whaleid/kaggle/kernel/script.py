"""The kernel's own text: find the code's data set, and call it. Everything else is in the package."""

from __future__ import annotations

import json
from typing import Any

SCRIPT = '''"""{title}: made by `make kernel` of whaleid.

Works offline, and writes submission.csv (or a run) into the working folder.
The work is done by the package in the attached data set of code, and the settings below say what it is.
Folders: KAGGLE_INPUT, KAGGLE_WORKING, KAGGLE_SCRATCH, or --input, --working, --scratch.
"""

import json
import os
import shutil
import sys
from pathlib import Path

SETTINGS = json.loads(r"""
{settings}
""")
ARGUMENTS = [] if "ipykernel" in sys.modules else sys.argv[1:]


def folder(name, default):
    """A folder from the arguments, else from the environment, else Kaggle's own."""
    option = "--" + name
    if option in ARGUMENTS[:-1]:
        return Path(ARGUMENTS[ARGUMENTS.index(option) + 1])
    return Path(os.environ.get("KAGGLE_" + name.upper(), default))


def code_folder(root):
    """The data set of code: where it should be mounted, else wherever it lies."""
    slug, mark = SETTINGS["datasets"]["code"], Path("src", "whaleid", "kaggle", "kernel", "main.py")
    for place in [*sorted(root.glob(f"datasets/*/{{slug}}")), root / slug]:
        if (place / mark).is_file():
            return place
    for depth in range(1, 5):
        for found in root.glob("*/" * depth + "MANIFEST.json"):
            if (found.parent / mark).is_file():
                return found.parent
    print(*sorted(str(path) for path in root.glob("*/*")), sep="\\n")
    print(f"error: {{root}}: data set '{{slug}}' is not mounted: add it to the kernel's inputs", file=sys.stderr)
    raise SystemExit(2)


def main():
    places = {{
        "input": folder("input", "/kaggle/input"),
        "working": folder("working", "/kaggle/working"),
        "scratch": folder("scratch", "/tmp/whaleid"),
    }}
    checkout = places["scratch"] / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(code_folder(places["input"]), checkout, copy_function=shutil.copyfile)
    sys.path.insert(0, str(checkout / "src"))
    from whaleid.kaggle.kernel.main import run_kernel

    return run_kernel(SETTINGS, **places)


if __name__ == "__main__":
    status = main()
    if status:
        raise SystemExit(status)
'''


def script(title: str, settings: dict[str, Any]) -> str:
    """The kernel as a script."""
    return SCRIPT.format(title=title, settings=json.dumps(settings, indent=1))


def notebook(title: str, settings: dict[str, Any]) -> str:
    """The same as a notebook of one cell, with the kernelspec that the platform asks for."""
    import nbformat
    from nbformat import v4

    body = script(title, settings).split('"""', 2)
    cells = [v4.new_markdown_cell(body[1].strip()), v4.new_code_cell(body[2].strip())]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # random by default: the same kernel would differ at every making
    made = v4.new_notebook(cells=cells, metadata={"kernelspec": _SPEC, "language_info": {"name": "python"}})
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


_SPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
