"""Hook of mkdocs: each notebook is a page, with the outputs of its executed copy where there is one.

`python notebooks/make.py --run` executes them, into `work/<competition>/notebooks/`. Outputs are in the web pages only,
never in git. A copy of an older text is not used: its outputs would stand below other code.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from whaleid.notebooks import FOLDER, notebook_project

ROOT = Path(__file__).resolve().parents[1]
COLOURS = re.compile(r"\x1b\[[\d;]*m")
NOT_RUN = "*Shown without outputs: run `python notebooks/make.py --run`, then build the documentation again.*"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and its pictures."""
    executed = notebook_project({}).workspace.root / FOLDER
    for path in sorted((ROOT / FOLDER).glob("[0-9]*.ipynb")):
        for name, content in pages(path, executed / path.name):
            files.append(File.generated(config, name, content=content))
    return files


def pages(path: Path, executed: Path) -> Iterator[tuple[str, str | bytes]]:
    """Names below docs/ and contents: the pictures of a notebook, then its page in Markdown."""
    notebook = nbformat.read(path, as_version=4)
    copy = nbformat.read(executed, as_version=4) if executed.is_file() else None
    is_run = copy is not None and sources(copy) == sources(notebook)
    parts: list[str] = []
    for cell in (copy if is_run else notebook).cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"(\w+)\.ipynb\)", r"\1.md)", cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            kind = next((kind for kind in ("png", "jpeg") if f"image/{kind}" in data), None)
            if kind is None:
                parts.append(text_of(output))
                continue
            name = f"{path.stem}-{len(parts)}.{kind}"
            yield f"{FOLDER}/{name}", base64.b64decode(data[f"image/{kind}"])
            parts.append(f"![output of the cell above]({name})")
    if not is_run:
        parts.insert(1, NOT_RUN)
    yield f"{FOLDER}/{path.stem}.md", "\n\n".join(part for part in parts if part)


def sources(notebook: Any) -> list[str]:
    """The text of every cell."""
    return [cell.source for cell in notebook.cells]


def text_of(output: Any) -> str:
    """An output that is no picture: a table as HTML, anything else as it was printed; empty where it is an object."""
    data = output.get("data", {})
    if "text/html" in data:
        return re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
    text = COLOURS.sub("", output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```" if text and not text.startswith("<Figure") else ""
