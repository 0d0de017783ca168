"""The official `kaggle` command, run as a process of its own: one place that calls it and reads what it says.

It is never imported: that would authenticate, over the network for some credentials. Its exit code is not to be
relied on (a push that the server refuses ends with 0), so a caller names the words that only success prints, and
whatever else comes out becomes one line. A line never holds a secret or a signed address.
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

ANSWER_WITHIN = 180.0
"""Seconds that a command may take which moves no large file."""
LOOK_EVERY = 0.2
"""Seconds between two looks at a running command."""
LONGEST = 300
"""Characters of the client's own words that a message repeats."""
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between questions whether something is ready; the last is repeated."""

Kind = Literal["rules", "key", "quota", "forbidden", "missing", "connection", "slow", "other"]


class KaggleError(WhaleidError):
    """The one line, and what kind of failure it is, for callers to whom one of them is an answer."""

    def __init__(self, message: str, kind: Kind):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Output:
    """What the command wrote, and its exit code."""

    out: str
    err: str
    code: int


def kaggle(
    words: Sequence[str],
    action: str,
    expect: str | None = None,
    competition: str | None = None,
    within: float | None = ANSWER_WITHIN,
    watch: Callable[[], None] | None = None,
    keep_open: Sequence[int] = (),
) -> str:
    """Standard output of `kaggle <words>`; raises KaggleError (one line) where it did not do what it should.

    action: what is being done, the message's first words. expect: regular expression that only success prints.
    competition: slug whose rules page is named where they are not accepted. within: seconds, None for no limit.
    watch: called several times a second; what it raises ends the command. keep_open: file descriptors that the
    command inherits (a lock that must outlive this process with it).
    """
    credentials = require_credentials()
    if importlib.util.find_spec("kaggle") is None:
        raise WhaleidError("the kaggle package is not installed: make setup (or pip install kaggle six)")
    output = _run(words, action, within, watch, keep_open)
    if output.code == 0 and (expect is None or re.search(expect, output.out)):
        return output.out
    kind, cause = explain(output, competition, credentials.form)
    raise KaggleError(f"{action}: {cause}", kind)


def waits(limit: float) -> Iterator[float]:
    """Seconds slept before each further question, until `limit` seconds have passed."""
    end = time.monotonic() + limit
    turn = 0
    while time.monotonic() < end:
        pause = WAITS[min(turn, len(WAITS) - 1)]
        time.sleep(min(pause, max(0.0, end - time.monotonic())))
        yield pause
        turn += 1


def competition_page(competition: str, page: str = "rules") -> str:
    return f"https://www.kaggle.com/competitions/{competition}/{page}"


# ------------------------------------------------------------------------------------------------ the process


def _run(
    words: Sequence[str],
    action: str,
    within: float | None,
    watch: Callable[[], None] | None,
    keep_open: Sequence[int],
) -> Output:
    # -P: a folder named kaggle where the user stands is not the client. -W: no advice on newer versions.
    command = [sys.executable, "-P", "-m", "kaggle", "-W", *words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=keep_open)
        begun = time.monotonic()
        try:
            while process.poll() is None:
                if watch is not None:
                    watch()
                if within is not None and time.monotonic() - begun > within:
                    raise KaggleError(f"{action}: no answer from Kaggle within {within:.0f} s; run it again", "slow")
                time.sleep(LOOK_EVERY)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return Output(_read(out), _read(err), process.returncode)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r", "\n")


# ------------------------------------------------------------------------------------------ what went wrong


def explain(output: Output, competition: str | None, form: str) -> tuple[Kind, str]:
    """Kind of a failure, and its cause with what to do, in one line.

    form: that of the credentials, to be named where they are refused.
    """
    text = f"{output.out}\n{output.err}"
    kinds: list[Kind] = [kind for kind, pattern in _SIGNS if re.search(pattern, text, re.IGNORECASE)]
    kind = kinds[0] if kinds else "other"
    said = _said(output)
    rules = competition_page(competition) if competition else "the competition's rules page"
    causes: dict[Kind, str] = {
        "rules": f"the rules are not accepted (403): open {rules} , accept them, and run it again",
        "key": f"Kaggle does not accept the credentials (401), found as {form}: make a new token at "
        "https://www.kaggle.com/settings/api",
        "quota": f"a quota of Kaggle is reached: {said}; run it again when it is renewed",
        "forbidden": f"Kaggle refuses it (403): {said}; "
        + (f"accept the rules at {rules} , or " if competition else "")
        + "check that the key's user owns it",
        "missing": f"Kaggle does not know it (404): {said}; check the name",
        "connection": f"the connection to Kaggle broke ({said}); run the same command again, it carries on",
        "slow": said,
        "other": f"Kaggle says: {said}",
    }
    return kind, causes[kind]


_SIGNS: tuple[tuple[Kind, str], ...] = (
    ("rules", r"accept (this|the) competition'?s? rules"),
    ("key", r"401 Client Error|unauthori[sz]ed|unauthenticated|authentication required to call"),
    ("quota", r"\bquota\b|429 Client Error|too many requests|limit (reached|exceeded)|maximum .{0,80}\breached|"
     r"(reached|exceeded|used) .{0,40}\b(limit|submissions)"),
    ("forbidden", r"403 Client Error|forbidden|permission .{0,40} denied"),
    ("missing", r"404 Client Error|not found"),
    ("connection", r"ConnectionError|Connection aborted|RemoteDisconnected|Max retries|IncompleteRead|"
     r"Connection broken|timed out|Name or service not known|ProxyError|Connection reset"),
)  # fmt: skip
"""Looked for in this order: the rules are a 403 too, and a quota may come with any number."""


def _said(output: Output) -> str:
    """The client's last line, which is the one that tells; without secrets and without the query of an address."""
    for text in (output.err, output.out):
        lines = [line.strip() for line in text.splitlines() if line.strip() and not _is_noise(line)]
        if lines:
            return plain(lines[-1])
    return "nothing" if output.code == 0 else f"nothing (exit code {output.code})"


def plain(line: str) -> str:
    """One line fit to be shown: no secret, no address beyond its page, not endless."""
    line = re.sub(r" for url: \S+", "", " ".join(masked(line).split()))
    line = re.sub(r"((?:https?:/)?/[^\s?]*)\?[^\s)]+", r"\1", line)  # signed addresses open what they name
    line = re.sub(r"^requests\.exceptions\.", "", line)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _is_noise(line: str) -> bool:
    """Progress bars and warnings."""
    return bool(re.match(r"\s*(Warning:|Request failed: .* Will retry|\d+%\|)", line)) or "B/s]" in line
