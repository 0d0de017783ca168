"""The page's server: for this machine alone, and for those who know the address.

The address holds a random token, so that no other user of the machine and no other page in the browser can read
pictures or decide; the Host header is checked, so that no name of another site can be made to lead here.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from whaleid.review.desk import Desk
from whaleid.utils.errors import WhaleidError

PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What the page may load: nothing but its own parts."""
LARGEST = 10_000
"""Bytes of a request's body; a decision has fewer than 100."""


class ReviewServer(ThreadingHTTPServer):
    """Serves a desk on 127.0.0.1. port 0: any that is free."""

    daemon_threads = True

    def __init__(self, desk: Desk, port: int = 0) -> None:
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise WhaleidError(f"port {port}: {os.strerror(error.errno or 0)}; name another one with --port") from error
        self.desk, self.token = desk, secrets.token_urlsafe(16)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        desk = self.server.desk
        self._answer(
            {
                "": lambda _: (PAGE.read_bytes(), "text/html; charset=utf-8"),
                "state": lambda _: _as_json(desk.state()),
                "picture": lambda row: (desk.picture(int(row)), "image/jpeg"),
                "matches": lambda number: _as_json(desk.matches(int(number))),
            }
        )

    def do_POST(self) -> None:
        desk = self.server.desk
        self._answer(
            {"decide": lambda _: _as_json(desk.decide(**self._body())), "undo": lambda _: _as_json(desk.undo())}
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each picture would hide the address."""

    def _answer(self, routes: dict[str, Callable[[str], tuple[bytes, str]]]) -> None:
        _, token, name, item = [*self.path.split("/"), "", "", ""][:4]
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if not known or self.headers.get("Host") not in self.server.hosts:
            return self._refuse(HTTPStatus.FORBIDDEN, "open the address that whaleid review printed")
        if name not in routes:
            return self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        try:
            content, kind = routes[name](item)
        except (WhaleidError, ValueError, TypeError) as error:
            return self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"not kept: {error}")
        self._send(HTTPStatus.OK, content, kind)

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length", 0))
        if length > LARGEST:
            raise ValueError("the request is too large")
        content = json.loads(self.rfile.read(length))
        if not isinstance(content, dict) or not {"number", "same"} <= set(content):
            raise ValueError("number and same are needed")
        return {"number": int(content["number"]), "same": str(content["same"])}

    def _refuse(self, status: HTTPStatus, line: str) -> None:
        self._send(status, *_as_json({"error": line}))

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "private, max-age=600" if kind == "image/jpeg" else "no-store")
        self.end_headers()
        self.wfile.write(content)


def _as_json(content: Any) -> tuple[bytes, str]:
    return json.dumps(content).encode(), "application/json"
