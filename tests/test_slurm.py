"""The executor of SLURM: with processes of this machine, and with a drawn SLURM whose jobs outlive the sender."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_world import copying, in_folder

from whaleid.pipeline.executors.slurm import SlurmExecutor
from whaleid.utils.errors import WhaleidError

pytest.importorskip("submitit", reason="submitit is not installed (the extra `cluster`)")

SBATCH = """#!/bin/bash
# starts the jobs of an array here, in sessions of their own
script="${@: -1}"
echo sent >> calls.txt
for number in $(seq 0 "$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")"); do
  SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$number setsid bash "$script" > /dev/null 2>&1 < /dev/null &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] && shift || shift 2; done
while [ ! -e go ]; do sleep 0.1; done
exec "$@"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return in_folder(tmp_path / "here", monkeypatch)


@pytest.fixture
def drawn_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of SLURM on the path: sacct knows no job, so that only its result says that one is done."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", "#!/bin/bash\n"), ("scancel", "#!/bin/bash\n")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_processes_in_the_place_of_jobs_do_every_task(here: Path) -> None:
    tasks = [copying(Path("work"), str(number)) for number in range(3)]
    assert {task.item for task in SlurmExecutor(cluster="local").run(tasks)} == set("012")
    for number in range(3):
        assert json.loads((here / "work" / f"{number}.json").read_text()) == [os.getpid()]


def test_a_failed_job_is_reported_with_its_node(here: Path) -> None:
    with pytest.raises(WhaleidError, match=r"train a on node .* ended with code .*missing\.json.*a\.log"):
        list(SlurmExecutor(cluster="local").run([copying(Path("work"), "a", "missing.json")]))


def test_the_sender_dies_and_the_same_command_waits_for_its_jobs(
    here: Path, drawn_slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    sender = (
        "from pathlib import Path; from cluster_world import copying; "
        "from whaleid.pipeline.executors.slurm import SlurmExecutor; "
        "print(*[task.item for task in SlurmExecutor().run([copying(Path('work'), name) for name in 'ab'])])"
    )
    first = subprocess.Popen([sys.executable, "-c", sender])
    notes = here / "work" / "logs"
    while not (notes / "b.job").is_file():
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert not (here / "work" / "a.json").exists()
    second = subprocess.Popen([sys.executable, "-c", sender], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None and second.stderr.readline().startswith("train a: job 7_0 ")
    (here / "go").touch()
    assert sorted(second.communicate()[0].split()) == ["a", "b"]
    assert (here / "work" / "a.json").is_file() and (here / "work" / "b.json").is_file()
    assert (here / "calls.txt").read_text().split() == ["sent"]
