"""The runner: what is current is left alone, failures are told and nothing is left running."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from whaleid.pipeline.executors import Job, run_jobs
from whaleid.utils.errors import WhaleidError


@dataclass(frozen=True)
class ScriptJob(Job):
    """A job whose command is a line of Python."""

    script: str = ""

    def command(self, options: list[str]) -> list[str]:
        return [sys.executable, "-c", self.script, *options]


def test_current_jobs_are_not_done_again(tmp_path: Path) -> None:
    jobs = [Job("a", 0, "train", True), Job("a", 1, "train", False), Job("b", 0, "train", False)]
    done: list[str] = []
    assert run_jobs(jobs, lambda job: done.append(job.title), [], 1, tmp_path) == 2
    assert done == ["a fold 1", "b fold 0"]


def test_several_at_once_do_every_job(tmp_path: Path) -> None:
    jobs = [ScriptJob("a", fold, "train", False, f"open(r'{tmp_path}/{fold}', 'w').write('x')") for fold in range(5)]
    assert run_jobs(jobs, pytest.fail, [], 2, tmp_path / "logs") == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == list("01234")


def test_a_failed_job_is_told_with_its_last_line(tmp_path: Path) -> None:
    bad = ScriptJob("bad", 0, "train", False, "import sys; sys.exit('error: no such backbone')")
    slow = ScriptJob("slow", 0, "train", False, f"import time; time.sleep(30); open(r'{tmp_path}/late', 'w')")
    with pytest.raises(WhaleidError, match="bad fold 0 ended with code 1: no such backbone"):
        run_jobs([bad, slow], pytest.fail, [], 2, tmp_path / "logs")
    assert not (tmp_path / "late").exists()


def test_a_job_says_how_to_do_it_alone() -> None:
    command = Job("a", 3, "features", False).command(["--work", "w"])
    assert command[1:] == ["-m", "whaleid", "features", "--work", "w", "--experiment", "a", "--fold", "3"]
