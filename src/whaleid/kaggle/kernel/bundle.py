"""`whaleid kernel`: a folder with all that a Kaggle kernel needs.

    kernel/            kernel-metadata.json, the script, the same as a notebook
    datasets/code/     the package and configs/
    datasets/wheels/   packages that Kaggle's image lacks
    datasets/assets/   what the kernel reads of the project (assets.py)

Every data set has its dataset-metadata.json and a MANIFEST.json.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whaleid.config.settings import config_root, repository_root
from whaleid.evaluation.forms import TOPK
from whaleid.kaggle.kernel.assets import inference_size, write_inference_assets, write_training_assets
from whaleid.kaggle.kernel.wheels import collect_wheels, needed_wheels
from whaleid.kaggle.metadata import PLACEHOLDER, dataset_metadata, kernel_metadata, slug_of
from whaleid.pipeline.project import Project
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, write_json
from whaleid.utils.manifest import write_manifest

CODE, WHEELS, ASSETS = "code", "wheels", "assets"
PACKAGE = Path(__file__).resolve().parents[2]
LARGE_IMAGE = 160 * 160
"""Pixels of an image for which a kernel asks for GPUs; smaller ones take minutes on its four cores."""


@dataclass(frozen=True)
class KernelOptions:
    """Options of a kernel.

    Attributes
    ----------
    owner : str
        Kaggle user name.
    hours : float
        Time limit.
    gpu : bool, optional
        Ask for GPUs; by default decided by the size of the images.
    notebook : bool
        Push the notebook instead of the script.
    experiment, fold : str and int, optional
        The run that a training kernel trains; both None for inference.
    """

    owner: str = PLACEHOLDER
    hours: float = 12.0
    gpu: bool | None = None
    notebook: bool = False
    experiment: str | None = None
    fold: int | None = None

    @property
    def mode(self) -> str:
        return "inference" if self.experiment is None else "training"


@dataclass(frozen=True)
class Bundle:
    """A kernel's folder.

    Attributes
    ----------
    folder : Path
    kernel : str
        ``owner/slug``.
    sizes : dict of str to int
        Bytes of each data set, by its folder's name.
    """

    folder: Path
    kernel: str
    sizes: dict[str, int]


def bundle_folder(project: Project, experiment: str | None = None, fold: int | None = None) -> Path:
    """`work/<competition>/kernel/<recipe>/`, or `<recipe>-<experiment>-fold<k>/` for a training kernel.

    Raises
    ------
    WhaleidError
        For an experiment without a fold or a fold without an experiment, or one that the recipe does not have.
    """
    name = project.recipe.name
    if (experiment is None) != (fold is None):
        raise WhaleidError("--experiment and --fold go together: they name the run that a training kernel trains")
    if experiment is not None:
        name = f"{name}-{project.experiment(experiment).name}-fold{fold}"
    return project.workspace.root / "kernel" / name


def make_bundle(project: Project, options: KernelOptions, wheels: Path) -> Bundle:
    """Write a kernel's folder, completely or not at all.

    Parameters
    ----------
    project : Project
        Its submission (for inference) or its tables (for training) are made.
    options : KernelOptions
    wheels : Path
        Folder in which downloaded wheels are kept.

    Raises
    ------
    WhaleidError
        If a run is missing, Kaggle would refuse a name or the size, or a wheel cannot be downloaded.
    """
    folder = bundle_folder(project, options.experiment, options.fold)
    slugs = dataset_slugs(project, options)
    settings = kernel_settings(project, options, slugs)
    if options.experiment is None:
        _require_guesses(project)
        inference_size(project).require_fit(project.recipe.name)
    with atomic_path(folder) as out:
        datasets = {name: out / "datasets" / name for name in slugs}
        _write_code(datasets[CODE])
        collect_wheels(needed_wheels(PACKAGE), wheels, datasets[WHEELS])
        datasets[ASSETS].mkdir(parents=True)
        if options.experiment is None:
            write_inference_assets(project, datasets[ASSETS])
        else:
            write_training_assets(project, options.experiment, datasets[ASSETS])
        sizes = {}
        for name, place in datasets.items():
            sizes[name] = write_manifest(place, name).size
            write_json(place / "dataset-metadata.json", dataset_metadata(options.owner, slugs[name]))
        _write_kernel(project, options, slugs, settings, out / "kernel")
    return Bundle(folder, f"{options.owner}/{kernel_slug(project, options)}", sizes)


def _require_guesses(project: Project) -> None:
    """Raise WhaleidError for a form of answer that the kernel does not write."""
    form = project.competition.answer.form
    if form != TOPK:
        raise WhaleidError(
            f"competition {project.competition.name}: a kernel answers in the form {TOPK}, not {form}; "
            "submit the file that whaleid submission writes"
        )


def dataset_slugs(project: Project, options: KernelOptions) -> dict[str, str]:
    """Folder of each data set -> its slug. All kernels of a user share code and wheels."""
    words = ["whaleid", project.competition.name, project.recipe.name]
    assets = slug_of(*words) if options.experiment is None else slug_of(*words, "start")
    return {CODE: "whaleid-code", WHEELS: "whaleid-wheels", ASSETS: assets}


def kernel_slug(project: Project, options: KernelOptions) -> str:
    """Slug of the kernel itself."""
    words = ["whaleid", project.competition.name, project.recipe.name]
    if options.experiment is None:
        return slug_of(*words, "inference")
    return slug_of(*words, "train", options.experiment, f"fold{options.fold}")


def kernel_settings(project: Project, options: KernelOptions, slugs: dict[str, str]) -> dict[str, Any]:
    """Settings in the kernel's script: where its inputs are, and what to do with them."""
    test = project.competition.test
    if test is None and options.experiment is None:
        raise WhaleidError(f"competition {project.competition.name} has no test images: add `test` to its YAML")
    return {
        "mode": options.mode,
        "datasets": slugs,
        "competition": _competition_slug(project),
        "listing": (project.competition.train if test is None else test).csv,
        "hours": options.hours,
        "experiment": options.experiment,
        "fold": options.fold,
    }


def wants_gpu(project: Project, options: KernelOptions) -> bool:
    """Whether the kernel asks for GPUs."""
    if options.gpu is not None:
        return options.gpu
    sizes = [item.image.pixels or (item.image.width or 0) * (item.image.height or 0) for item in project.experiments]
    large = max(sizes, default=0) >= LARGE_IMAGE
    return large or options.mode == "training" or bool(project.local_weights)


def kernel_script(title: str, settings: dict[str, Any]) -> str:
    """The kernel as a script: entry.py with the settings in it."""
    text = Path(__file__).with_name("entry.py").read_text()
    text = text.replace("Kernel of whaleid", f"{title}: made by `whaleid kernel` of whaleid.", 1)
    return text.replace('json.loads("{}")', f'json.loads(r"""\n{json.dumps(settings, indent=1)}\n""")', 1)


def kernel_notebook(title: str, settings: dict[str, Any]) -> str:
    """The same as a notebook of one cell."""
    import nbformat
    from nbformat import v4

    _, description, code = kernel_script(title, settings).split('"""', 2)
    cells = [v4.new_markdown_cell(description.strip()), v4.new_code_cell(code.strip())]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # random by default, but equal kernels must be equal files
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(made)
    return nbformat.writes(made) + "\n"


def _competition_slug(project: Project) -> str:
    """The competition's slug at Kaggle or, if it is not there, of the data set that the user makes of its data."""
    return project.competition.kaggle or slug_of("whaleid", project.competition.name, "data")


def _write_code(out: Path) -> None:
    root = repository_root()
    shutil.copytree(PACKAGE, out / "src" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.copytree(config_root(), out / "configs")
    if (root / "LICENSE").is_file():
        shutil.copyfile(root / "LICENSE", out / "LICENSE")


def _write_kernel(
    project: Project, options: KernelOptions, slugs: dict[str, str], settings: dict[str, Any], out: Path
) -> None:
    slug, datasets = kernel_slug(project, options), list(slugs.values())
    competitions = [project.competition.kaggle] if project.competition.kaggle else []
    if not competitions:
        datasets.append(_competition_slug(project))
    file = f"{slug}.{'ipynb' if options.notebook else 'py'}"
    metadata = kernel_metadata(options.owner, slug, file, datasets, competitions, wants_gpu(project, options))
    out.mkdir()
    (out / f"{slug}.py").write_text(kernel_script(metadata["title"], settings))
    (out / f"{slug}.ipynb").write_text(kernel_notebook(metadata["title"], settings))
    write_json(out / "kernel-metadata.json", metadata)
