"""Kernel of whaleid

Works offline and writes submission.csv (or a trained run) into the working folder. The package that does the work is
in the attached data set of code; SETTINGS name the data sets and the task.
Folders: KAGGLE_INPUT, KAGGLE_WORKING and KAGGLE_SCRATCH of the environment, else Kaggle's own.
"""

import json
import os
import shutil
import sys
from pathlib import Path

SETTINGS = json.loads("{}")


def code_folder(root):
    """The data set of code: at one of Kaggle's two places, else wherever its manifest is."""
    slug, module = SETTINGS["datasets"]["code"], Path("src", "whaleid", "kaggle", "kernel", "main.py")
    for place in [*sorted(root.glob(f"datasets/*/{slug}")), root / slug]:
        if (place / module).is_file():
            return place
    for depth in range(1, 5):
        for manifest in root.glob("*/" * depth + "MANIFEST.json"):
            if (manifest.parent / module).is_file():
                return manifest.parent
    print(*sorted(str(path) for path in root.glob("*/*")), sep="\n")
    print(f"error: {root}: data set '{slug}' is not mounted: add it to the kernel's inputs", file=sys.stderr)
    raise SystemExit(2)


def main():
    input = Path(os.environ.get("KAGGLE_INPUT", "/kaggle/input"))
    working = Path(os.environ.get("KAGGLE_WORKING", "/kaggle/working"))
    scratch = Path(os.environ.get("KAGGLE_SCRATCH", "/tmp/whaleid"))
    checkout = scratch / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    shutil.copytree(code_folder(input), checkout, copy_function=shutil.copyfile)
    sys.path.insert(0, str(checkout / "src"))
    from whaleid.kaggle.kernel.main import run_kernel

    return run_kernel(SETTINGS, input, working, scratch)


if __name__ == "__main__":
    status = main()
    if status:
        raise SystemExit(status)
