"""A Kaggle of our own for the tests: an HTTP forward proxy on 127.0.0.1 that answers what the real command asks.

The unmodified client is told to speak to `http://localhost` and to use this proxy, so its requests arrive here with
absolute addresses. Every request is remembered; faults are set by the method that they befall.
"""

from __future__ import annotations

import base64
import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from secret_search import KEY, TOKEN, USER

MODIFIED = 1_700_000_000
STALLED_FOR = 20.0
"""Seconds that a stalled download hangs at the longest: the test kills the client long before."""

QUICK = '''"""Read by Python as it starts: the client's pauses between tries are noted, and cut short."""

import os
import sys
import time

if "kaggle" in sys.orig_argv:
    asked = time.sleep

    def sleep(seconds):
        with open(os.environ["PAUSES_NOTED"], "a") as file:
            file.write(f"{seconds}\\n")
        asked(min(seconds, 0.01))

    time.sleep = sleep
'''
SOURCE = Path(__file__).resolve().parents[1] / "src"


@dataclass(frozen=True)
class Fault:
    """What befalls one call. status: of HTTP. code: said inside the answer. drop: the connection ends without one."""

    status: int = 200
    code: int | None = None
    message: str = ""
    answer: dict[str, Any] | None = None
    drop: bool = False


@dataclass
class DataSet:
    """A data set: its versions' files (name -> bytes), and how often it still says that it is not ready."""

    versions: list[dict[str, bytes]] = field(default_factory=list)
    waiting: int = 0


@dataclass
class State:
    """What this Kaggle holds, and what was asked of it."""

    archives: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    data_sets: dict[str, DataSet] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    kernel_status: str = "COMPLETE"
    failure: str = ""
    outputs: dict[str, bytes] = field(default_factory=dict)
    log: str = ""
    blobs: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    pending: int = 1
    """Listings in which a new submission still has no score."""
    scores: tuple[str, str] = ("0.91234", "0.90123")
    waiting: int = 1
    """Targets to which a new version of a data set is still not ready."""
    break_at: deque[tuple[str, int]] = field(default_factory=deque)
    """For the next downloads: ("drop" or "stall", after how many bytes)."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, fault: Fault, times: int = 1) -> None:
        self.faults.setdefault(method, deque()).extend([fault] * times)

    def methods(self) -> list[str]:
        return [method for method, _ in self.asked]


class _Server(ThreadingHTTPServer):
    """Says nothing where a client hangs up: it shares its standard error with the commands that are tested."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FakeKaggle:
    """The running server, to be used in a `with`; `environment` makes the client speak to it."""

    def __init__(self) -> None:
        self.state = State()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self.state, self.stopped))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> FakeKaggle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Variables for a command whose client speaks to this server; home: an empty folder of the test's own."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("KAGGLE")}
        kept = {name: value for name, value in kept.items() if name.lower() not in _PROXIES}
        quick = home / "quick"
        quick.mkdir(parents=True, exist_ok=True)
        (quick / "sitecustomize.py").write_text(QUICK)
        return kept | {
            "PYTHONPATH": os.pathsep.join([str(quick), str(SOURCE), *kept.get("PYTHONPATH", "").split(os.pathsep)]),
            "PAUSES_NOTED": str(home / "pauses.txt"),
            "HOME": str(home),
            "TMPDIR": str(home),
            "KAGGLE_CONFIG_DIR": str(home / "cfg"),
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{self._server.server_address[1]}",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    @staticmethod
    def pauses(home: Path) -> list[float]:
        """Seconds of every pause that a client with this home asked for."""
        path = home / "pauses.txt"
        return [float(line) for line in path.read_text().splitlines()] if path.is_file() else []


_PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}


def _handler(state: State, stopped: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

        def do_POST(self) -> None:
            body = json.loads(self._body() or b"{}")
            method = urlsplit(self.path).path.rsplit("/", 1)[-1]
            with state.lock:
                state.asked.append((method, body))
                faults = state.faults.get(method)
                fault = faults.popleft() if faults else None
            if fault is not None:
                self._befall(fault)
            elif not self._known() and method != "IntrospectToken":
                self._json({"code": 401, "message": "Unauthenticated"}, 401)
            elif method in ("DownloadDataFiles", "DownloadDataFile"):
                self._redirect(method, body)
            else:
                with state.lock:
                    answer = _ANSWERS[method](state, body)
                self._json(answer, answer.get("code", 200) if "code" in answer else 200)

        def do_PUT(self) -> None:
            content = self._body()
            name = urlsplit(self.path).path.rsplit("/", 1)[-1]
            with state.lock:
                faults = state.faults.get("PUT")
                fault = faults.popleft() if faults else None
                if fault is None:
                    state.blobs[name] = (state.blobs[name][0], content)
            if fault is not None:
                self._befall(fault)
            else:
                self._send(200, b"", "text/plain")

        def do_GET(self) -> None:
            folder, name = urlsplit(self.path).path.strip("/").split("/", 1)
            held = {"archives": state.archives, "files": state.files, "outputs": state.outputs}[folder]
            if name not in held:
                self._send(404, b"<html>not here</html>", "text/html")
            else:
                self._serve(held[name], folder == "archives")

        # ------------------------------------------------------------------------------------------ parts

        def _serve(self, content: bytes, is_archive: bool) -> None:
            asked = self.headers.get("Range")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            broken = None
            if is_archive:
                with state.lock:
                    state.ranges.append(asked)
                    broken = state.break_at.popleft() if state.break_at else None
            self.send_response(206 if asked else 200)
            self.send_header("Content-Type", "application/zip")
            self.send_header("Content-Length", str(len(content) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Last-Modified", formatdate(MODIFIED, usegmt=True))
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if broken is None:
                self._write(content[start:])
                return
            how, after = broken
            self._write(content[start : start + after])
            if how == "stall":
                stopped.wait(STALLED_FOR)
            self.close_connection = True

        def _write(self, content: bytes) -> None:
            try:
                self.wfile.write(content)
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _redirect(self, method: str, body: dict[str, Any]) -> None:
            name = body["competitionName"]
            if method == "DownloadDataFile":
                address = f"http://localhost/files/{body['fileName']}?X-Signature=signed"
            elif f"{name}.zip" in state.archives:
                address = f"http://localhost/archives/{name}.zip?X-Signature=signed"
            else:
                self._json({"code": 404, "message": "Not found"}, 404)
                return
            self.send_response(302)
            self.send_header("Location", address)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _befall(self, fault: Fault) -> None:
            if fault.drop:
                self.close_connection = True
            elif fault.answer is not None:
                self._json(fault.answer, fault.status)
            elif fault.code is not None or fault.message:
                self._json({"code": fault.code or fault.status, "message": fault.message}, fault.status)
            else:
                self._send(fault.status, b"<html>error</html>", "text/html")

        def _known(self) -> bool:
            pair = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
            return self.headers.get("Authorization") in (f"Basic {pair}", f"Bearer {TOKEN}")

        def _json(self, content: dict[str, Any], status: int) -> None:
            self._send(status, json.dumps(content).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self._write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    return Handler


# ------------------------------------------------------------------------------------------------ the answers


def _introspect(state: State, body: dict[str, Any]) -> dict[str, Any]:
    del state
    known = body.get("token") == TOKEN
    return {"active": known, "username": USER if known else ""}


def _start_upload(state: State, body: dict[str, Any]) -> dict[str, Any]:
    token = f"blob{len(state.blobs)}"
    state.blobs[token] = (body.get("fileName") or body["name"], b"")
    return {"token": token, "createUrl": f"http://localhost/upload/{token}?X-Signature=signed"}


def _submit(state: State, body: dict[str, Any]) -> dict[str, Any]:
    name, content = state.blobs[body["blobFileTokens"]]
    state.submissions.insert(
        0,
        {
            "ref": len(state.submissions) + 1,
            "fileName": name,
            "date": "2026-11-24T08:00:00Z",
            "description": body.get("submissionDescription", ""),
            "status": "PENDING",
            "content": content,
            "pending": state.pending,
        },
    )
    return {"message": "Successfully submitted to Whales", "ref": len(state.submissions)}


def _submissions(state: State, body: dict[str, Any]) -> dict[str, Any]:
    del body
    for one in state.submissions:
        if one["status"] == "PENDING":
            if one["pending"] <= 0:
                one |= {"status": "COMPLETE", "publicScore": state.scores[0], "privateScore": state.scores[1]}
            one["pending"] -= 1
    hidden = ("content", "pending")
    return {
        "submissions": [{key: value for key, value in one.items() if key not in hidden} for one in state.submissions]
    }


def _limits(state: State, body: dict[str, Any]) -> dict[str, Any]:
    del state, body
    return {"numToday": 1, "numTotal": 1, "numAllowedNow": 4}


def _data_set(state: State, body: dict[str, Any]) -> DataSet | None:
    return state.data_sets.get(f"{body['ownerSlug']}/{body.get('datasetSlug') or body.get('slug')}")


def _data_set_status(state: State, body: dict[str, Any]) -> dict[str, Any]:
    found = _data_set(state, body)
    if found is None:
        return {"code": 404, "message": "Dataset not found"}
    if found.waiting > 0:
        found.waiting -= 1
        return {"status": "BLOBS_RECEIVED"}
    return {"status": "READY"}


def _get_data_set(state: State, body: dict[str, Any]) -> dict[str, Any]:
    found = _data_set(state, body)
    if found is None:
        return {"code": 404, "message": "Dataset not found"}
    return {"currentVersionNumber": len(found.versions) - (found.waiting > 0)}


def _files(state: State, files: list[dict[str, Any]]) -> dict[str, bytes]:
    return dict(state.blobs[one["token"]] for one in files)


def _create(state: State, body: dict[str, Any]) -> dict[str, Any]:
    name = f"{body['ownerSlug']}/{body['slug']}"
    state.data_sets[name] = DataSet([_files(state, body["files"])], state.waiting)
    return {"status": "ok", "url": f"http://localhost/datasets/{name}", "error": ""}


def _version(state: State, body: dict[str, Any]) -> dict[str, Any]:
    found = _data_set(state, body)
    if found is None:
        return {"code": 404, "message": "Dataset not found"}
    found.versions.append(_files(state, body["body"]["files"]))
    found.waiting = state.waiting
    return {"status": "ok", "url": "http://localhost/datasets/x", "error": ""}


def _save_kernel(state: State, body: dict[str, Any]) -> dict[str, Any]:
    state.kernels.append(body)
    lost = [name for name in body.get("datasetDataSources", []) if name not in state.data_sets]
    answer = {"ref": body["slug"], "url": f"http://localhost/code/{body['slug']}", "versionNumber": len(state.kernels)}
    return answer | ({"invalidDatasetSources": lost} if lost else {})


def _kernel_status(state: State, body: dict[str, Any]) -> dict[str, Any]:
    if not state.kernels:
        return {"code": 404, "message": "Kernel not found"}
    del body
    return {"status": state.kernel_status} | ({"failureMessage": state.failure} if state.failure else {})


def _kernel_output(state: State, body: dict[str, Any]) -> dict[str, Any]:
    del body
    files = [{"url": f"http://localhost/outputs/{name}", "fileName": name} for name in state.outputs]
    return {"files": files, "log": state.log}


_ANSWERS = {
    "IntrospectToken": _introspect,
    "StartSubmissionUpload": _start_upload,
    "CreateSubmission": _submit,
    "ListSubmissions": _submissions,
    "GetSubmissionLimits": _limits,
    "StartBlobUpload": _start_upload,
    "GetDatasetStatus": _data_set_status,
    "GetDataset": _get_data_set,
    "CreateDataset": _create,
    "CreateDatasetVersion": _version,
    "SaveKernel": _save_kernel,
    "GetKernelSessionStatus": _kernel_status,
    "ListKernelSessionOutput": _kernel_output,
}


# ------------------------------------------------------------------------------------------------- the client


class ForkedClient:
    """The client in a fork of this process, which has imported what the client imports: that takes 1 s of a core."""

    def __init__(self, command: list[str], *, stdout: IO[bytes], stderr: IO[bytes], **_: object) -> None:
        import bleach  # noqa: F401
        import kagglesdk  # noqa: F401

        self.returncode: int | None = None
        self._child = os.fork()
        if self._child == 0:
            code = 1
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                code = _run_client(command)
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)

    def _ended(self, options: int) -> int | None:
        if self.returncode is None and (found := os.waitpid(self._child, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode


def _run_client(command: list[str]) -> int:
    """Exit code of `python -P -m kaggle ...` as a new process would end."""
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.orig_argv, sys.argv = command, command[command.index("kaggle") :]
    tempfile.tempdir = None  # TMPDIR is the client's own
    exec(QUICK, {})
    code: object = 0
    try:
        runpy.run_module("kaggle", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(str(code or 0))
