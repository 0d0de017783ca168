"""Packages that the platform's image lacks: found by walking the imports, shipped as wheels, installed offline.

The second half runs in the kernel before anything is installed: standard library alone.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from whaleid.utils.errors import WhaleidError

KAGGLE_PYTHON = "3.12"
# fmt: off
KAGGLE_HAS = frozenset({
    "PIL", "accelerate", "albumentations", "cv2", "huggingface_hub", "joblib", "lightgbm", "matplotlib",
    "numpy", "omegaconf", "packaging", "pandas", "psutil", "pyarrow", "pydantic", "requests", "rich",
    "safetensors", "scipy", "sklearn", "tensorboard", "timm", "torch", "torchvision", "tqdm", "typer", "yaml"
})
# fmt: on
"""Modules of Kaggle's Python image (August 2026). What is not here is shipped, and installed where it is missing."""
OPTIONAL = frozenset({"kaggle", "kagglesdk", "nbformat", "six"})
"""Modules that a kernel does without: clients and writers that run at home, and what its code asks for by try."""
EXACT = frozenset({"kornia", "kornia_rs"})
"""Modules that an image may have in a version without what is used of them (ALIKED is new): another is replaced."""
SHIPPED_AS = {"faiss-gpu": "faiss-cpu"}
"""The build that is shipped in the place of the one used here: half the size, on every machine; it differs in last
digits."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LISTING = "wheels.json"


# ----------------------------------------------------------------------------------------------- at home


def imported_modules(package: Path) -> set[str]:
    """Top-level modules that the .py files below `package` import, wherever in the file; not the standard library's."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {package.name, "__future__"}


def needed_wheels(package: Path) -> dict[str, str]:
    """Module -> `distribution==version` of all that the image lacks: what is imported, and what that requires."""
    by_module = importlib.metadata.packages_distributions()
    modules: dict[str, list[str]] = {}
    for module, names in by_module.items():
        for name in names if module.isidentifier() else ():
            modules.setdefault(_plain(name), []).append(module)
    wanted: dict[str, str] = {}
    queue = sorted(imported_modules(package) - KAGGLE_HAS - OPTIONAL)
    while queue:
        module = queue.pop(0)
        if module in wanted:
            continue
        distribution = next(iter(by_module.get(module, [])), None)
        if distribution is None:
            raise WhaleidError(f"module '{module}' is imported, but not installed here: make setup")
        own = SHIPPED_AS.get(_plain(distribution), distribution)
        wanted[module] = f"{own}=={importlib.metadata.version(distribution)}"
        # of the build shipped instead, the image has what it requires (numpy, packaging)
        for requirement in (importlib.metadata.requires(distribution) or []) if own == distribution else []:
            offered = modules.get(_plain(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]), [])
            if "extra ==" not in requirement and offered and not KAGGLE_HAS & set(offered):
                queue.append(min(offered))
    return wanted


def collect_wheels(needed: dict[str, str], cache: Path, out: Path) -> None:
    """Put a wheel of each of `needed` (module -> `distribution==version`) into the folder `out`, and list them.

    cache: folder of wheels downloaded before; only what is not there is asked of the package index.
    """
    cache.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    listing = {}
    for module, requirement in sorted(needed.items()):
        wheel = _cached(cache, requirement) or _download(requirement, cache)
        shutil.copyfile(wheel, out / wheel.name)
        listing[module] = {"requirement": requirement, "wheel": wheel.name}
    (out / LISTING).write_text(json.dumps(listing, indent=1) + "\n")


def _download(requirement: str, cache: Path) -> Path:
    # cp312 first, then the stable ABI and pure Python: pip takes the first that fits
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    abis = [word for name in (f"cp{KAGGLE_PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", KAGGLE_PYTHON, *platforms, *abis]
    done = subprocess.run([*command, "--dest", str(cache), requirement], capture_output=True, text=True, check=False)
    found = _cached(cache, requirement)
    if done.returncode or found is None:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WhaleidError(
            f"no wheel of {requirement} for Python {KAGGLE_PYTHON} to be had ({said}); connect, or put one into {cache}"
        )
    return found


def _cached(cache: Path, requirement: str) -> Path | None:
    name, version = requirement.split("==")
    start = f"{_plain(name)}-{version}-"
    return next((path for path in sorted(cache.glob("*.whl")) if _wheel_start(path) == start), None)


def _wheel_start(path: Path) -> str:
    name, version = path.name.split("-")[:2]
    return f"{_plain(name)}-{version}-"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------------ in the kernel


def install_wheels(folder: Path, target: Path) -> list[str]:
    """Install, offline, those wheels of `folder` whose module is not there already (of `EXACT`: that version), into
    `target`.

    Returns the modules installed, and makes them importable. WhaleidError where a wheel is missing or unfit.
    """
    listing = json.loads((folder / LISTING).read_text())
    missing = [module for module in listing if not _is_there(module, listing[module]["requirement"])]
    if not missing:
        return []
    wheels = [folder / listing[module]["wheel"] for module in missing]
    for module, wheel in zip(missing, wheels, strict=True):
        if not wheel.is_file():
            raise WhaleidError(
                f"{wheel}: missing; module '{module}' is not in this image: push the data set of wheels again"
            )
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--find-links", str(folder), "--no-deps", "--target", str(target), *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if "error" in line.lower()] or [done.stderr.strip()]
        raise WhaleidError(f"{folder}: pip cannot install {', '.join(w.name for w in wheels)}: {lines[0]}")
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    absent = [module for module in missing if not importable(module)]
    if absent:
        raise WhaleidError(f"{target}: module '{absent[0]}' still cannot be found after its wheel was installed")
    return missing


def _is_there(module: str, requirement: str) -> bool:
    """requirement: `distribution==version`."""
    if module not in EXACT or not importable(module):
        return importable(module)
    name, version = requirement.split("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
