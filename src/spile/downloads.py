"""Fetching what a library keeps on the network, and saying soon and clearly when that cannot be done."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies

from spile.errors import ModelError
from spile.loading import first_line

_PATIENCE = 3.0  # seconds to wait for a connection


@contextlib.contextmanager
def fetching(what: str, *, url: str, advice: str) -> Iterator[None]:
    """Let a library download inside this block; where it fails, one `ModelError` that ends in `advice`.

    Libraries announce downloads on stdout, which belongs to the program's own output: it goes to stderr here.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OSError as error:
        reason = first_line(error)
        where = urlsplit(url).hostname
        raise ModelError(f"{what} could not be fetched from {where}: {reason} {advice}") from error


@contextlib.contextmanager
def hub(what: str, *, advice: str) -> Iterator[None]:
    """`fetching` from the Hugging Face hub; out of reach, from its local cache, without retries."""
    from huggingface_hub import constants

    configured = constants.HF_HUB_OFFLINE
    try:
        constants.HF_HUB_OFFLINE = configured or not reachable(constants.ENDPOINT)
        with fetching(what, url=constants.ENDPOINT, advice=advice):
            yield
    finally:
        constants.HF_HUB_OFFLINE = configured


def reachable(url: str) -> bool:
    """Whether the host of `url` takes connections; taken for granted where a proxy is configured."""
    if getproxies():
        return True
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True
