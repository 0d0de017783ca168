"""Debian's headless Chromium, driven by its WebDriver over plain HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

WHERE = shutil.which("chromedriver")
KEYS = {"ArrowRight": "\ue014", "ArrowLeft": "\ue012", "ArrowDown": "\ue015", "Tab": "\ue004"}
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage")


class Browser:
    """A window of the browser. `url`: of its WebDriver session."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Value of the WebDriver's answer to a POST."""
        request = Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a page of the disk as on a screen of this size in CSS pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._command("Emulation.setDeviceMetricsOverride", size)
        self.ask("/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        """What a function body of JavaScript returns."""
        return self.ask("/execute/sync", {"script": script, "args": []})

    def press(self, key: str) -> None:
        """A key as a user presses it."""
        strokes = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        self.ask("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def console(self) -> list[str]:
        """Warnings and errors of the console so far."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses that were asked for so far."""
        messages = (json.loads(entry["message"])["message"] for entry in self.ask("/se/log", {"type": "performance"}))
        sent = (message for message in messages if message["method"] == "Network.requestWillBeSent")
        return [message["params"]["request"]["url"] for message in sent]

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        import base64

        shot = self._command("Page.captureScreenshot", {"format": "png"})
        path.write_bytes(base64.b64decode(shot["data"]))

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self.ask("/goog/cdp/execute", {"cmd": name, "params": parameters})


@contextmanager
def browser() -> Iterator[Browser]:
    """A window, closed at the end."""
    assert WHERE is not None
    driver = subprocess.Popen([WHERE, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(line.rsplit(" ", 1)[1].strip(".\n") for line in driver.stdout if "started successfully" in line)
        address = f"http://127.0.0.1:{port}"
        wanted = {
            "goog:chromeOptions": {"args": list(_FLAGS)},
            "goog:loggingPrefs": {"browser": "WARNING", "performance": "ALL"},
        }
        session = Browser(f"{address}/session").ask("", {"capabilities": {"alwaysMatch": wanted}})
        window = Browser(f"{address}/session/{session['sessionId']}")
        yield window
        with urlopen(Request(window.url, method="DELETE"), timeout=60):
            pass
    finally:
        driver.terminate()
        driver.wait()
