"""The runs of the metric-learning benchmark: data sets split by identity, one run measured, many at once."""

from __future__ import annotations

import ast
import multiprocessing
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from metric_plan import BEFORE, DataSet

from whaleid.config import Competition, Experiment
from whaleid.config.files import config_path, load_competition, read_yaml
from whaleid.config.settings import read_settings, repository_root
from whaleid.data.cache import ImageCache
from whaleid.data.sample import make_sample
from whaleid.data.tables import read_table
from whaleid.evaluation.retrieval_metrics import pair_histogram, retrieval_score
from whaleid.models.embedder import Embedder, build_embedder
from whaleid.pipeline.data_stages import read_cache
from whaleid.pipeline.project import open_project
from whaleid.pipeline.runner import run
from whaleid.pipeline.workspace import read_images
from whaleid.training.checkpoint import load_run
from whaleid.training.extract_features import extract_features
from whaleid.training.run import train_run
from whaleid.utils.errors import WhaleidError
from whaleid.utils.files import atomic_path, digest
from whaleid.utils.progress import PROGRESS_FILE

EDGES = np.linspace(0.0, 2.0, 81)
"""Bins of the histograms of distances: unit vectors are at most 2 apart."""

FEW = 40
"""Test images of a sample that is drawn for the bench, which asks about labelled images alone."""

CODE = (
    "models/**/*.py",
    "divide/*.py",
    "training/*.py",
    "data/*samplers.py",
    "data/augmentation.py",
    "data/cache.py",
    "data/images.py",
    "evaluation/retrieval_metrics.py",
)
"""Files of the package that scores depend on."""


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Parted:
    """A data set parted by identity, ready to train on and to test with."""

    name: str
    images: pd.DataFrame
    """The images table with `identity` and `split` of the protocol; rows of neither part have split `out`."""
    cache: ImageCache
    test_rows: np.ndarray
    """int64 (n,), rows of `images`."""
    test_labels: np.ndarray
    """int64 (n,), 0..c-1."""
    key: str

    @property
    def train_sizes(self) -> np.ndarray:
        """int64 (c,): training images of each identity, by name."""
        train = self.images.loc[self.images["split"] == "train", "identity"]
        return train.value_counts().sort_index().to_numpy(np.int64, copy=True)

    def facts(self) -> dict[str, int]:
        sizes = self.train_sizes
        tests = len(np.unique(self.test_labels))
        return {
            "train_images": int(sizes.sum()),
            "train_identities": len(sizes),
            "test_images": len(self.test_rows),
            "test_identities": tests,
        }


def part_data(name: str, data: DataSet, experiment: Experiment, work: Path) -> Parted | None:
    """The data set with its cache of images at the experiment's size; None, said on stdout, where it is not here."""
    name_or_path = data.competition if data.draw is None else drawn_competition(data, work)
    competition = load_competition(name_or_path)
    if not competition.root.is_dir():
        print(f"{name}: left out, its folder {competition.root} is not there")
        return None
    project = replace(open_project(name_or_path, "sample", work), experiments=(experiment,))
    run(project, "cache")
    images = read_images(project.workspace)
    parts = _halves(images, competition) if data.identities is None else _listed(images, competition, data.identities)
    images = images.assign(split=parts["split"].to_numpy(), identity=parts["identity"].to_numpy())
    test_rows = np.flatnonzero(images["split"] == "test").astype(np.int64)
    labels = np.unique(images["identity"].iloc[test_rows].to_numpy(str), return_inverse=True)[1]
    content = images[["image", "split", "identity"]].fillna("").to_numpy().tolist()
    return Parted(
        name=name,
        images=images,
        cache=read_cache(project.workspace, experiment),
        test_rows=test_rows,
        test_labels=labels.astype(np.int64),
        key=digest(project.keys.images, content),
    )


def drawn_competition(data: DataSet, work: Path) -> str:
    """Draw the sample at the size asked for, once; path of a competition's YAML that has it as its root."""
    assert data.draw is not None
    root = (work / "drawn" / f"{data.draw.identities}-{data.draw.train_images}").resolve()
    make_sample(root, identities=data.draw.identities, train_images=data.draw.train_images, test_images=FEW)
    content = read_yaml(config_path("competitions", data.competition))
    with atomic_path(root.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump({**content, "name": f"drawn-{root.name}", "root": str(root)}))
    return str(root.with_suffix(".yaml"))


def _halves(images: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Split and identity of each image: a seeded half of the identities with two labelled images or more is train.

    Of copies of one photograph one alone is in the test: the copy would be too easy to find.
    """
    known = (images["split"] == "train") & images["identity"].notna() & (images["identity"] != competition.unknown)
    sizes = images.loc[known, "identity"].value_counts()
    names = np.array(sorted(sizes.index[sizes >= 2]))
    train = set(np.random.default_rng(0).permutation(names)[: len(names) // 2])
    used = known & images["identity"].isin(set(names))
    split = np.where(~used, "out", np.where(images["identity"].isin(train), "train", "test"))
    copies = pd.Series(split == "test") & images["group"].where(split == "test").duplicated()
    return pd.DataFrame({"split": np.where(copies, "out", split), "identity": images["identity"].where(used)})


def _listed(images: pd.DataFrame, competition: Competition, file: str) -> pd.DataFrame:
    """Split and identity of each image as a CSV of the competition's root says."""
    path = competition.root / file
    table = read_table(path, ["image", "identity", "split"])
    strange = sorted(set(table["split"]) - {"train", "test"})
    if strange:
        raise WhaleidError(f"{path}: split '{strange[0]}'; train and test are known")
    missing = set(table["image"]) - set(images["image"])
    if missing:
        raise WhaleidError(f"{path}: {min(missing)} is not an image of competition '{competition.name}'")
    given = table.drop_duplicates("image").set_index("image").reindex(images["image"])
    return given.assign(split=given["split"].fillna("out"))[["split", "identity"]]


# ----------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Job:
    """One run to measure: a method (or BEFORE: nothing trained) on a data set, from a seed."""

    method: str
    seed: int
    experiment: Experiment
    data: Parted
    work: Path
    code: str

    @property
    def title(self) -> str:
        return f"{self.data.name} {self.method} seed {self.seed}"

    @property
    def key(self) -> str:
        """Digest of the settings and the data; not of the code, which the result itself names."""
        return digest(self.method == BEFORE, _settings(self.experiment), self.data.key)

    @property
    def result(self) -> Path:
        return self.work / "results" / f"{self.data.name}-{self.method}-{self.seed}-{self.key}.json"

    @property
    def weight(self) -> float:
        """Work to expect, in pixels: of a step, about two thirds is the way back."""
        pixels = self.data.cache.size[0] * self.data.cache.size[1]
        seen = 0 if self.method == BEFORE else 3 * (self.experiment.train.images_seen or 0)
        return float(pixels * (seen + len(self.data.test_rows)))


def measure(job: Job) -> dict[str, Any]:
    """Train, embed the test images, compute the figures; the run's folder is removed again."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cost: dict[str, Any] = {}
    if job.method == BEFORE:
        config = job.experiment.model.model_copy(update={"neck": "none", "dropout": 0.0})
        embedder = build_embedder(config, read_settings().weights, size=job.data.cache.size).to(device).eval()
    else:
        embedder, cost = _train(job, device)
    batch = job.experiment.features.batch
    rows = extract_features(embedder, job.data.cache, job.data.test_rows, batch).cpu().numpy()
    same, different = pair_histogram(rows, job.data.test_labels, EDGES)
    return {
        "data": job.data.name,
        "method": job.method,
        "seed": job.seed,
        "code": job.code,
        "figures": asdict(retrieval_score(rows, job.data.test_labels)),
        **cost,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "settings": _settings(job.experiment),
        "pairs": {"edges": EDGES.tolist(), "same": same.tolist(), "different": different.tolist()},
    }


def _train(job: Job, device: torch.device) -> tuple[Embedder, dict[str, Any]]:
    """The trained embedder, on `device`, and what it cost."""
    out = job.work / "runs" / f"{job.data.name}-{job.key}"
    shutil.rmtree(out, ignore_errors=True)  # of a killed bench: begun anew, so that the seconds are true
    began, processor = time.perf_counter(), time.process_time()
    try:
        summary = train_run(
            job.experiment,
            None,
            job.data.images,
            pd.DataFrame(),
            job.data.cache,
            out,
            unknown=None,
            weights=read_settings().weights,
            key=job.code,
            save_seconds=float("inf"),
        )
        seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor
        embedder = load_run(out, device).embedder
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return embedder, {
        "train_seconds": round(seconds, 2),
        "train_processor_seconds": round(processor_seconds, 2),
        "images_seen": summary.images,
        "epochs": summary.epochs,
        "steps": summary.steps,
        "loss": summary.loss,
    }


def _settings(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", exclude={"name": True, "features": True, "train": {"workers"}})


def code_digest() -> str:
    """Digest of the code that figures depend on, without its comments and docstrings."""
    package = repository_root() / "src" / "whaleid"
    files = sorted({path for pattern in CODE for path in package.glob(pattern)})
    return digest([(str(path.relative_to(package)), _bare_code(path)) for path in files])


def _bare_code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(line: ast.AST) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


# ------------------------------------------------------------------------------------------------ processes


def measure_all(jobs: list[Job], at_once: int, work: Path) -> Iterator[list[tuple[Job, dict[str, Any] | WhaleidError]]]:
    """Measure the jobs in their order, `at_once` processes side by side.

    Yields twice a second the jobs that ended since, each with its result or what went wrong. A process does many
    runs, since importing torch takes seconds. It ends with this one, however that ends.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process in which torch runs threads can hang
    places = context.Queue()
    for place in range(at_once):
        places.put(place)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    pool = ProcessPoolExecutor(at_once, context, _begin_worker, (places, work, gpus, os.getpid()))
    waiting: dict[Future[dict[str, Any]], Job] = {pool.submit(measure, job): job for job in jobs}
    try:
        while waiting:
            ended = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done
            yield [(waiting.pop(future), _outcome(future)) for future in ended]
    except BrokenProcessPool as error:
        raise WhaleidError(
            f"a process of the bench was ended from outside, perhaps for want of memory; its log is in {work}; "
            "the same command goes on, with --jobs 1 in less memory"
        ) from error
    finally:
        pool.shutdown(wait=not waiting, cancel_futures=True)


def progress_files(work: Path, at_once: int) -> list[Path]:
    """Where the processes write how far their runs are."""
    return [work / f"process{place + 1}.progress" for place in range(at_once)]


def _outcome(future: Future[dict[str, Any]]) -> dict[str, Any] | WhaleidError:
    try:
        return future.result()
    except WhaleidError as error:  # a run that diverges must not end the others
        return error


def _begin_worker(places: Any, work: Path, gpus: int, parent: int) -> None:
    """Set up a process: its own GPU, its output in a log file, its progress in another."""
    place = places.get()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % gpus]
    path = progress_files(work, place + 1)[place]
    path.unlink(missing_ok=True)
    os.environ[PROGRESS_FILE] = str(path)
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def machine() -> dict[str, Any]:
    """What the seconds were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
