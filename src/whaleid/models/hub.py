"""Files of the model hub: from its cache on this machine, or downloaded, with a short patience."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

PATIENCE = 5.0
"""Seconds to wait for the hub's first response; huggingface_hub itself would retry for most of a minute."""


def from_hub(repository: str, name: str) -> Path | None:
    """A file of a repository `<owner>/<name>`, downloaded where it is not in the cache; None where it has none.

    Raises OSError, with the reason in a line, within seconds where the hub cannot be reached.
    """
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask(f"{constants.ENDPOINT}/{repository}/resolve/main/{name}")
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # whatever the hub's HTTP library raises
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise OSError(" ".join(str(error).split())[:120] or type(error).__name__) from error


def _ask(url: str) -> None:
    """A short request before the download, which raises where the hub does not respond."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(url, method="HEAD")
    # An HTTP error is a response too: the hub's client has the clearer message (a token, another file).
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=PATIENCE).close()
