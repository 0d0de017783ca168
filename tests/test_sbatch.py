"""`whaleid plan --sbatch`: the file's commands are those of the runs that are missing."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from drawn import draw_sample
from test_runner import COMPETITION, EXPERIMENT

from whaleid.pipeline.project import Project, open_project
from whaleid.pipeline.run_stages import feature_tasks, train_tasks
from whaleid.pipeline.sbatch import write_sbatch
from whaleid.utils.errors import WhaleidError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    draw_sample(tmp_path / "data", identities=8, train_images=40, test_images=10)
    (tmp_path / "drawn.yaml").write_text(COMPETITION)
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    (tmp_path / "recipe.yaml").write_text("folds: 2\nexperiments: [tiny]\n")
    return open_project(str(tmp_path / "drawn.yaml"), str(tmp_path / "recipe.yaml"), tmp_path / "a work")


def job(script: Path, number: int) -> list[str]:
    """Words that the script would run as this job of the array: `exec` only prints them."""
    text = script.read_text().replace("exec ", "printf '%s\\n' ")
    done = subprocess.run(
        ["bash"], input=text, env=dict(os.environ, SLURM_ARRAY_TASK_ID=str(number)), capture_output=True, text=True
    )
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else [done.stderr.strip()]


def finish(tasks: list, folds: list[int]) -> None:
    """Note tasks as done."""
    for task in tasks:
        if task.run[1] in folds:
            task.output.mkdir(parents=True)
            task.workspace.mark_current(task.output, task.key)


def test_each_job_is_a_run_that_is_missing(project: Project, tmp_path: Path) -> None:
    script, options = tmp_path / "runs.sh", ["--work", "a work"]
    assert write_sbatch(project, options, 0.8, script) == 2
    expected = ["features", *options, "--experiment", "tiny", "--fold"]
    assert [job(script, number)[3:] for number in (0, 1)] == [[*expected, "0"], [*expected, "1"]]
    assert job(script, 2) == ["no run 2: this file has 0 to 1"]
    lines = script.read_text().splitlines()
    assert {"#SBATCH --array=0-1", "#SBATCH --mem=3G", "#SBATCH --time=2:00:00"} <= set(lines)
    assert f"cd {shlex.quote(str(Path.cwd()))}" in lines

    finish(train_tasks(project), [0, 1])
    finish(feature_tasks(project), [0])
    assert write_sbatch(project, options, 0.1, script) == 1
    assert job(script, 0)[3:] == [*expected, "1"]
    assert "#SBATCH --time=1:00:00" in script.read_text().splitlines()

    finish(feature_tasks(project), [1])
    with pytest.raises(WhaleidError, match="all runs of recipe recipe are done"):
        write_sbatch(project, options, 1, script)
