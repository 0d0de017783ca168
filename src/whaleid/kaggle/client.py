"""The official `kaggle` command, run as a separate process, and its failures as one line each.

It is not imported, for that connects to Kaggle. Its exit code does not tell all failures (a refused push ends with 0),
so a caller gives a pattern that only success prints. No line shows a secret or a signed address.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from whaleid.kaggle.credentials import masked, require_credentials
from whaleid.utils.errors import WhaleidError

TIMEOUT = 180.0
"""Seconds for a command that moves no large file."""
POLL_SECONDS = 0.2
LONGEST = 300
"""Characters of the client's output that a message repeats."""
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between questions whether something is ready; the last is repeated."""

Kind = Literal["rules", "key", "quota", "forbidden", "missing", "connection", "slow", "other"]


class KaggleError(WhaleidError):
    """A failure of the client, with its kind for callers that expect some kinds."""

    def __init__(self, message: str, kind: Kind):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Output:
    """Standard output, standard error and exit code of a command."""

    out: str
    err: str
    code: int


def kaggle(
    words: Sequence[str],
    action: str,
    expect: str | None = None,
    competition: str | None = None,
    timeout: float | None = TIMEOUT,
    watch: Callable[[], None] | None = None,
    keep_open: Sequence[int] = (),
) -> str:
    """Run ``kaggle <words>``.

    Parameters
    ----------
    words : sequence of str
    action : str
        What is being done; starts the error message.
    expect : str, optional
        Regular expression that only a successful command prints.
    competition : str, optional
        Slug, to name its rules page if the rules are not accepted.
    timeout : float, optional
        Seconds; None for no limit.
    watch : callable, optional
        Called several times a second; an exception of it ends the command.
    keep_open : sequence of int
        File descriptors that the command inherits, such as a lock's.

    Returns
    -------
    str
        Standard output.

    Raises
    ------
    KaggleError
        If the command fails or does not print what is expected.
    """
    credentials = require_credentials()
    if importlib.util.find_spec("kaggle") is None:
        raise WhaleidError("the kaggle package is not installed: make setup (or pip install kaggle six)")
    output = _run(words, action, timeout, watch, keep_open)
    if output.code == 0 and (expect is None or re.search(expect, output.out)):
        return output.out
    kind, cause = explain(output, competition, credentials.form)
    raise KaggleError(f"{action}: {cause}", kind)


def waits(limit: float) -> Iterator[None]:
    """Sleep before each further question, until `limit` seconds have passed."""
    end, turn = time.monotonic() + limit, 0
    while time.monotonic() < end:
        time.sleep(min(WAITS[min(turn, len(WAITS) - 1)], max(0.0, end - time.monotonic())))
        yield
        turn += 1


def competition_page(competition: str, page: str = "rules") -> str:
    return f"https://www.kaggle.com/competitions/{competition}/{page}"


def _run(
    words: Sequence[str],
    action: str,
    timeout: float | None,
    watch: Callable[[], None] | None,
    keep_open: Sequence[int],
) -> Output:
    # -P: ignore a folder named kaggle in the current one. -W: no advice on newer versions.
    command = [sys.executable, "-P", "-m", "kaggle", "-W", *words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=keep_open)
        began = time.monotonic()
        try:
            while process.poll() is None:
                if watch is not None:
                    watch()
                if timeout is not None and time.monotonic() - began > timeout:
                    raise KaggleError(f"{action}: no answer from Kaggle within {timeout:.0f} s; run it again", "slow")
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return Output(_read(out), _read(err), process.returncode)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r", "\n")


# -------------------------------------------------------------------------------------------------- failures

_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("rules", r"accept (this|the) competition'?s? rules"),
    ("key", r"401 Client Error|unauthori[sz]ed|unauthenticated|authentication required to call"),
    ("quota", r"\bquota\b|429 Client Error|too many requests|limit (reached|exceeded)|maximum .{0,80}\breached|"
     r"(reached|exceeded|used) .{0,40}\b(limit|submissions)"),
    ("forbidden", r"403 Client Error|forbidden|permission .{0,40} denied"),
    ("missing", r"404 Client Error|not found"),
    ("connection", r"ConnectionError|Connection aborted|RemoteDisconnected|Max retries|IncompleteRead|"
     r"Connection broken|timed out|Name or service not known|ProxyError|Connection reset"),
)  # fmt: skip
"""Tried in this order: unaccepted rules are a 403 too, and a quota may come with any number."""


def explain(output: Output, competition: str | None, form: str) -> tuple[Kind, str]:
    """Kind and cause of a failure, with what to do.

    Parameters
    ----------
    output : Output
    competition : str or None
        Slug, to name its rules page.
    form : str
        Form of the credentials, to name it if they are refused.
    """
    text = f"{output.out}\n{output.err}"
    kinds: list[Kind] = [kind for kind, pattern in _PATTERNS if re.search(pattern, text, re.IGNORECASE)]
    kind = kinds[0] if kinds else "other"
    line = _last_line(output)
    rules = competition_page(competition) if competition else "the competition's rules page"
    causes: dict[Kind, str] = {
        "rules": f"the rules are not accepted (403): open {rules} , accept them, and run it again",
        "key": f"Kaggle does not accept the credentials (401), found as {form}: make a new token at "
        "https://www.kaggle.com/settings/api",
        "quota": f"a quota of Kaggle is reached: {line}; run it again when it is renewed",
        "forbidden": f"Kaggle refuses it (403): {line}; "
        + (f"accept the rules at {rules} , or " if competition else "")
        + "check that the key's user owns it",
        "missing": f"Kaggle does not know it (404): {line}; check the name",
        "connection": f"the connection to Kaggle broke ({line}); run the same command again, it continues",
        "slow": line,
        "other": f"Kaggle says: {line}",
    }
    return kind, causes[kind]


def _last_line(output: Output) -> str:
    """The client's last line, which says what is wrong."""
    for text in (output.err, output.out):
        lines = [line.strip() for line in text.splitlines() if line.strip() and not _is_noise(line)]
        if lines:
            return plain(lines[-1])
    return f"nothing (exit code {output.code})"


def plain(line: str) -> str:
    """One line fit to be shown: no secret, no query of an address (it may be a signature), not too long."""
    line = re.sub(r" for url: \S+", "", " ".join(masked(line).split()))
    line = re.sub(r"((?:https?:/)?/[^\s?]*)\?[^\s)]+", r"\1", line)
    line = re.sub(r"^requests\.exceptions\.", "", line)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _is_noise(line: str) -> bool:
    """Progress bars and warnings."""
    return bool(re.match(r"\s*(Warning:|Request failed: .* Will retry|\d+%\|)", line)) or "B/s]" in line
