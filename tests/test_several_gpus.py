"""A run of several GPUs: accelerate starts its processes inside its task; executors give the task so many."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawn import draw_sample
from safetensors.torch import load_file
from test_runner import COMPETITION

from whaleid.config import AugmentConfig
from whaleid.pipeline.executors import local, ray_cluster
from whaleid.pipeline.executors.local import LocalExecutor, last_error, launch_words, require_gpus
from whaleid.pipeline.executors.slurm import SlurmExecutor
from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.run_stages import train_tasks
from whaleid.pipeline.runner import Only, run
from whaleid.pipeline.sbatch import write_sbatch
from whaleid.pipeline.tasks import do
from whaleid.training.checkpoint import CHECKPOINT
from whaleid.utils.errors import WhaleidError

OFF = ", ".join(f"{name}: 0" for name in AugmentConfig.model_fields)
EXPERIMENT = f"""
extends: default
model: {{backbone: test_resnet, weights: random, embedding: 16, neck: linear}}
image: {{width: 64, height: 32}}
augment: {{{OFF}}}
head: {{name: softmax}}
train: {{epochs: 2, batch: 8, lr: 0.005, optimizer: sgd, freeze: {{batchnorm: true}}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw_sample(tmp_path / "data", identities=8, train_images=24, test_images=4)
    (tmp_path / "drawn.yaml").write_text(COMPETITION)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text("folds: 2\nexperiments: [tiny]\n")
    return tmp_path


def opened(place: Path, work: str, *overrides: str) -> tuple[Project, list[str]]:
    """A project, and the options of its command lines."""
    files = str(place / "drawn.yaml"), str(place / "recipe.yaml")
    sets = [word for pair in overrides for word in ("--set", pair)]
    options = ["--competition", files[0], "--recipe", files[1], "--work", str(place / work), *sets]
    return open_project(*files, place / work, list(overrides)), options


def weights_of(project: Project) -> dict[str, torch.Tensor]:
    return load_file(project.workspace.run("tiny", 0) / CHECKPOINT)


def test_two_processes_train_a_run_to_the_weights_of_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing couples a batch's images or draws numbers, the halves of a batch give its gradient."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = {}
    for gpus in (1, 2):
        project, options = opened(place, f"work{gpus}", f"train.gpus={gpus}")
        done = run(project, "train", LocalExecutor(1, options), Only("tiny", 0))
        assert "train/tiny/fold0" in [task.name for task in done]
        assert not run(project, "train", LocalExecutor(1, options), Only("tiny", 0))
        found[gpus] = weights_of(project)
    for name, tensor in found[1].items():
        assert torch.allclose(tensor.float(), found[2][name].float(), atol=1e-3), name
    log = place / "work2" / "drawn" / "logs" / "tiny.fold0.log"
    assert log.is_file() and not (place / "work1" / "drawn" / "logs" / "tiny.fold0.log").exists()


def test_the_number_of_gpus_is_in_no_key(place: Path) -> None:
    assert len({train_tasks(opened(place, "work", f"train.gpus={gpus}")[0])[0].key for gpus in (1, 2)}) == 1


def test_accelerate_is_told_all_that_it_would_guess(place: Path) -> None:
    project, options = opened(place, "work", "train.gpus=4")
    task = train_tasks(project)[1]
    words = launch_words(task, options)
    assert words[1:3] == ["-m", "accelerate.commands.launch"]
    assert words[words.index("--num_processes") + 1] == "4" and words[words.index("--main_process_port") + 1] == "0"
    assert words[words.index("--module") + 1 :] == [
        "whaleid",
        "train",
        *options,
        "--experiment",
        "tiny",
        "--fold",
        "1",
    ]


def test_a_process_that_accelerate_started_starts_no_others(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(local, "do", lambda task: done.append(task.item))
    assert len(list(LocalExecutor(1, ["-w", "w"]).run(train_tasks(opened(place, "work", "train.gpus=2")[0])[:1]))) == 1
    assert done == ["tiny/fold0"]


def test_one_process_alone_notes_what_all_have_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(train_tasks(opened(place, "work")[0])[0], reads=(), make=lambda: task.output.mkdir(parents=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    do(task)
    assert task.output.is_dir() and not task.current
    task.output.rmdir()
    monkeypatch.setenv("RANK", "0")
    do(task)
    assert task.current


# ---------------------------------------------------------------------------------------- what an executor gives it


def test_runs_at_once_are_as_many_as_have_their_gpus(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of four GPUs on a machine of four: one after the other."""
    asked: list[int] = []
    monkeypatch.setattr(local, "gpu_count", lambda: 4)
    monkeypatch.setattr(local, "sensible", lambda: 4)
    monkeypatch.setattr(LocalExecutor, "_processes", lambda _, tasks, jobs, start: asked.append(jobs) or iter(()))
    for gpus in (1, 4):
        project, options = opened(place, "work", f"train.gpus={gpus}")
        list(LocalExecutor(0, options).run(train_tasks(project)))
    assert asked == [2, 1, 1]


def test_runs_at_once_have_gpus_of_their_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpu_count", lambda: 4)
    seen: list[Any] = []
    monkeypatch.setattr(local, "_started", lambda task, words, environment: seen.append((words, environment)))
    tasks = train_tasks(opened(place, "work", "train.gpus=2")[0])
    for number, task in enumerate(tasks):
        local._start(task, number, [], 2)
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in seen] == ["0,1", "2,3"]
    assert [words[3] for words, _ in seen] == ["train", "train"]  # which starts accelerate itself


def test_a_node_of_ray_has_them_all(place: Path) -> None:
    with_gpus = {"Alive": True, "Resources": {"CPU": 16, "GPU": 4, "memory": 64 * 2**30}}
    share, at_once = ray_cluster._share_of_a_run([with_gpus, with_gpus], 2)
    assert (share["num_gpus"], share["num_cpus"], share["memory"], at_once) == (2, 8, 2 * local.MEMORY_OF_A_RUN, 4)
    with pytest.raises(WhaleidError, match="none of the 1 nodes of the Ray cluster has 8 GPUs and 24 GiB"):
        ray_cluster._share_of_a_run([with_gpus], 8)


def test_a_job_of_slurm_asks_for_them(place: Path, tmp_path: Path) -> None:
    project, options = opened(place, "work", "train.gpus=2")
    write_sbatch(project, options, 1.0, tmp_path / "runs.sh")
    lines = set((tmp_path / "runs.sh").read_text().splitlines())
    assert {"#SBATCH --cpus-per-task=2", "#SBATCH --mem=6G", "##SBATCH --gpus=2"} <= lines


class DrawnEngine:
    """submitit's, as far as jobs are sent."""

    asked: dict[str, Any]

    def __init__(self, **given: Any):
        DrawnEngine.asked = {}

    def update_parameters(self, **given: Any) -> None:
        self.asked.update(given)

    def batch(self) -> nullcontext[None]:
        return nullcontext()

    def submit(self, _: Any) -> SimpleNamespace:
        return SimpleNamespace(job_id="7")


def test_a_job_of_an_array_asks_for_them(place: Path, tmp_path: Path) -> None:
    for gpus in (1, 2):
        tasks = train_tasks(opened(place, f"work{gpus}", f"train.gpus={gpus}")[0])
        engine = SimpleNamespace(AutoExecutor=DrawnEngine)
        assert len(SlurmExecutor()._submit(tasks, engine)) == 2
        assert DrawnEngine.asked["cpus_per_task"] == gpus and DrawnEngine.asked["mem_gb"] == 3 * gpus
    assert DrawnEngine.asked["slurm_additional_parameters"] == {"gpus": 2}


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("there", "options", "message"),
    [
        (1, ["-w", "w"], "train.gpus=2: only 1 can be used here"),
        (0, [], "train.gpus=2: the commands of `whaleid` train by several GPUs, its functions do not"),
    ],
)
def test_what_cannot_be_is_one_line(
    there: int, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "gpu_count", lambda: there)
    with pytest.raises(WhaleidError, match=message):
        require_gpus(2, options)


def test_of_a_launcher_that_failed_the_error_of_the_run_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: of an earlier run\n")
    begins = log.stat().st_size
    log.write_text(log.read_text() + "error: the loss is nan\nTraceback ...\n========\n")
    assert last_error(log, begins) == "the loss is nan"
    assert last_error(log, log.stat().st_size) == "no output"
