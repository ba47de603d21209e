"""The Hugging Face hub: whether it can be reached is found out once, in seconds, before anything is asked of it."""

from __future__ import annotations

import functools
import os
import socket
import sys
import urllib.request
import warnings
from urllib.parse import urlsplit

PATIENCE_S = 3.0
"""For the one attempt to connect."""


@functools.cache
def settle() -> None:
    """Where the hub cannot be reached, have its libraries use what is on this machine alone, and warn of it once.

    By themselves they try each file six times, for half a minute, and say each time that they do.
    """
    if os.environ.get("HF_HUB_OFFLINE"):
        return
    place = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = place.hostname or "", place.port or (80 if place.scheme == "http" else 443)
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return  # only the proxy can tell
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        _go_offline()
        if os.environ.get("RANK", "0") == "0":
            warnings.warn(
                f"{host} cannot be reached ({error}): only models and data sets that are on this machine already can "
                "be loaded. HF_HUB_OFFLINE=1 saves the attempt",
                stacklevel=3,
            )


def _go_offline() -> None:
    """Here, in libraries that are loaded already too, and in processes that this one starts."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
