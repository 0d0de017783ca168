"""Packages that Kaggle's image lacks: found from the imports, shipped as wheels, installed offline in the kernel.

The second half runs in the kernel before anything is installed: standard library only.
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
"""Modules of Kaggle's Python image (August 2026). Others are shipped, and installed if they are missing."""
OPTIONAL = frozenset({"kaggle", "kagglesdk", "nbformat", "six"})
"""Modules that a kernel never imports."""
EXACT = frozenset({"kornia", "kornia_rs"})
"""Modules that the image may have in a version without what is needed (ALIKED is new): another version is replaced."""
SHIPPED_AS = {"faiss-gpu": "faiss-cpu"}
"""Distribution used here -> the one that is shipped: half the size and for every machine; last digits differ."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LISTING = "wheels.json"


# -------------------------------------------------------------------------------------- making the bundle


def imported_modules(package: Path) -> set[str]:
    """Top-level modules that the .py files of a package import anywhere, without the standard library."""
    found: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {package.name, "__future__"}


def needed_wheels(package: Path) -> dict[str, str]:
    """The packages to ship: what `package` imports and the image lacks, and their requirements.

    Returns
    -------
    dict of str to str
        Module -> ``distribution==version``, as installed here.

    Raises
    ------
    WhaleidError
        If a module is not installed here.
    """
    distributions = importlib.metadata.packages_distributions()
    modules: dict[str, list[str]] = {}
    for module, names in distributions.items():
        for name in names if module.isidentifier() else ():
            modules.setdefault(_normalised(name), []).append(module)
    needed: dict[str, str] = {}
    queue = sorted(imported_modules(package) - KAGGLE_HAS - OPTIONAL)
    while queue:
        module = queue.pop(0)
        if module in needed:
            continue
        distribution = next(iter(distributions.get(module, [])), None)
        if distribution is None:
            raise WhaleidError(f"module '{module}' is imported, but not installed here: run make setup")
        shipped = SHIPPED_AS.get(_normalised(distribution), distribution)
        needed[module] = f"{shipped}=={importlib.metadata.version(distribution)}"
        # the image has the requirements of a build that is shipped instead (numpy, packaging)
        for requirement in (importlib.metadata.requires(distribution) or []) if shipped == distribution else []:
            offered = modules.get(_normalised(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]), [])
            if "extra ==" not in requirement and offered and not KAGGLE_HAS & set(offered):
                queue.append(min(offered))
    return needed


def collect_wheels(needed: dict[str, str], cache: Path, out: Path) -> None:
    """Put wheels of packages into a folder, and list them in its wheels.json.

    Parameters
    ----------
    needed : dict of str to str
        As `needed_wheels` returns it.
    cache : Path
        Folder of downloaded wheels; only missing ones are downloaded.
    out : Path

    Raises
    ------
    WhaleidError
        If a wheel cannot be downloaded.
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
    # pip takes the first that fits: compiled for Kaggle's Python, the stable ABI, pure Python
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    abis = [word for name in (f"cp{KAGGLE_PYTHON.replace('.', '')}", "abi3", "none") for word in ("--abi", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", KAGGLE_PYTHON, *platforms, *abis]
    done = subprocess.run([*command, "--dest", str(cache), requirement], capture_output=True, text=True, check=False)
    found = _cached(cache, requirement)
    if done.returncode or found is None:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WhaleidError(
            f"no wheel of {requirement} for Python {KAGGLE_PYTHON} can be downloaded ({reason}); connect to the "
            f"network, or put one into {cache}"
        )
    return found


def _cached(cache: Path, requirement: str) -> Path | None:
    wanted = tuple(requirement.split("=="))
    for path in sorted(cache.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if (_normalised(name), version) == (_normalised(wanted[0]), wanted[1]):
            return path
    return None


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------------ in the kernel


def install_wheels(folder: Path, target: Path) -> list[str]:
    """Install those wheels of a folder whose modules are missing, offline.

    Parameters
    ----------
    folder : Path
        Wheels and their wheels.json.
    target : Path
        Folder to install into; it is put in front of ``sys.path``.

    Returns
    -------
    list of str
        The modules that were installed.

    Raises
    ------
    WhaleidError
        If a wheel is missing or does not fit this Python.
    """
    listing = json.loads((folder / LISTING).read_text())
    missing = [module for module in listing if not _is_installed(module, listing[module]["requirement"])]
    if not missing:
        return []
    wheels = [folder / listing[module]["wheel"] for module in missing]
    for module, wheel in zip(missing, wheels, strict=True):
        if not wheel.is_file():
            raise WhaleidError(
                f"{wheel}: missing, and module '{module}' is not in this image: push the data set of wheels again"
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
    absent = [module for module in missing if not _importable(module)]
    if absent:
        raise WhaleidError(f"{target}: module '{absent[0]}' is still not found after its wheel was installed")
    return missing


def _is_installed(module: str, requirement: str) -> bool:
    """Whether a module can be imported and, of EXACT, has the required version."""
    if module not in EXACT or not _importable(module):
        return _importable(module)
    name, version = requirement.split("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
