"""What a node of a cluster is sent, and what is said where it cannot do it."""

import errno
import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_world import copying, in_folder

from whaleid.pipeline.executors import EXECUTORS, make_executor, ray_cluster, remote, slurm
from whaleid.pipeline.executors.remote import command_of, load_engine
from whaleid.utils.errors import WhaleidError
from whaleid.utils.progress import PROGRESS_FILE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder; what a command changes of this process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv(PROGRESS_FILE, "")
    return in_folder(tmp_path / "here", monkeypatch)


def test_a_command_counts_from_the_folder_of_the_sender(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEID_SETTINGS", "settings.json")
    command = command_of(copying(Path("work"), "a"), [])
    monkeypatch.chdir("/")
    assert command() is None
    assert Path.cwd() == here
    assert json.loads((here / "work" / "a.json").read_text()) == [os.getpid()]
    assert os.environ["WHALEID_SETTINGS"] == str(here / "settings.json")
    assert os.environ[PROGRESS_FILE] == str(here / "work" / "logs" / "a.progress")


def test_a_failure_names_the_node_and_its_last_line(here: Path) -> None:
    problem = command_of(copying(Path("work"), "a", "missing.json"), [])()
    assert problem is not None and problem.startswith(f"on node {socket.gethostname()} ended with code ")
    assert "missing.json" in problem
    assert "missing.json" in (here / "work" / "logs" / "a.log").read_text()


def test_a_node_whose_disk_is_full_is_named(here: Path) -> None:
    command = replace(command_of(copying(Path("work"), "a", "missing.json"), []), log=Path("/dev/full"))
    assert command() == f"on node {socket.gethostname()}: /dev/full: {os.strerror(errno.ENOSPC)}"


@pytest.mark.parametrize("unseen", ["folder", "log"])
def test_a_node_without_a_shared_folder_is_named(here: Path, unseen: str) -> None:
    command = replace(command_of(copying(Path("work"), "a"), []), **{unseen: here / "elsewhere"})
    node = socket.gethostname()
    assert command() == f"on node {node}: {here / 'elsewhere'}: not found; all nodes must share this folder"


# ------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(WhaleidError, match="--executor 'dask' not found; executors: local, ray, slurm"):
        make_executor("dask", 0, [])


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_says_how_to_install_it(
    executor: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "find_spec", lambda _: None)
    with pytest.raises(WhaleidError, match=rf"--executor {executor} needs the package {package}: pip install "):
        next(iter(EXECUTORS[executor](0, []).run([copying(tmp_path, "a")])))


def test_without_slurm_its_file_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "load_engine", lambda *_: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WhaleidError, match=r"sbatch is not found .* `whaleid plan --sbatch FILE`"):
        next(iter(EXECUTORS["slurm"](0, []).run([copying(tmp_path, "a")])))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head", "RAY_ADDRESS=head: the address of a Ray cluster is host:port"),
        ("127.0.0.1:{port}", "Connection refused"),
    ],
)
def test_an_address_that_does_not_answer_is_named(
    address: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:  # bound, but nothing listens
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv(ray_cluster.ADDRESS, address.format(port=unused.getsockname()[1]))
        ray = type("Ray", (), {"is_initialized": staticmethod(lambda: False)})
        monkeypatch.setattr(ray_cluster, "load_engine", lambda *_: ray)
        with pytest.raises(WhaleidError, match=message):
            next(iter(EXECUTORS["ray"](0, []).run([copying(tmp_path, "a")])))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Ray cluster"),
        (b"", "is no Ray cluster"),
        (None, "timed out"),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), "the cluster was asked"),
    ],
    ids=["web server", "closes", "mute", "HTTP/2"],
)
def test_another_server_at_the_address_is_told_from_a_cluster(
    answer: bytes | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(**_: object) -> None:
        raise ConnectionError("the cluster was asked")

    monkeypatch.setattr(ray_cluster, "PATIENCE", 0.5)
    ray = type("Ray", (), {"is_initialized": staticmethod(lambda: False), "init": staticmethod(asked)})
    monkeypatch.setattr(ray_cluster, "load_engine", lambda *_: ray)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        served = pool.submit(answer_once, server, answer)
        monkeypatch.setenv(ray_cluster.ADDRESS, f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(WhaleidError, match=message):
            next(iter(EXECUTORS["ray"](0, []).run([copying(tmp_path, "a")])))
        served.result()


def answer_once(server: socket.socket, answer: bytes | None) -> None:
    """Answer one client; None: wait until it gives up."""
    connection, _ = server.accept()
    with connection:
        if answer is None:
            while connection.recv(1024):
                pass
        else:
            connection.recv(1024)
            connection.sendall(answer)


# ---------------------------------------------------------------------------------------------- a run's share


def node(alive: bool = True, **resources: float) -> dict[str, object]:
    return {"Alive": alive, "Resources": {"memory": 64 * 2**30, **resources}}


def test_a_run_has_a_gpu_and_the_cores_beside_it() -> None:
    nodes = [node(CPU=16, GPU=4), node(CPU=6, GPU=2), node(CPU=64), node(alive=False, CPU=16, GPU=8)]
    share, at_once = ray_cluster._share_of_a_run(nodes)
    assert (share["num_gpus"], share["num_cpus"], at_once) == (1, 3, 6)


def test_without_gpus_a_run_has_a_core_while_the_memory_lasts() -> None:
    share, at_once = ray_cluster._share_of_a_run([node(CPU=4), node(CPU=8, memory=7 * 2**30)])
    assert (share["num_gpus"], share["num_cpus"], at_once) == (0, 1, 6)


def test_nodes_too_small_for_a_run_are_refused() -> None:
    with pytest.raises(WhaleidError, match="none of the 1 nodes of the Ray cluster has a core and 3 GiB"):
        ray_cluster._share_of_a_run([node(CPU=4, memory=2**30)])


def test_load_engine_gives_the_module() -> None:
    assert load_engine("json", "json").dumps(1) == "1"
