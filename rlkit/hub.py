"""The Hugging Face hub: whether it can be reached is found out once, in seconds, before anything is asked of it; how a
folder gets there."""

from __future__ import annotations

import functools
import os
import socket
import sys
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from rlkit.errors import ConfigError, RlkitError

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


def cached_commit(model: str) -> str | None:
    """Of a model on the hub, that which this machine has loaded last; None where it has none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent.name if isinstance(config, str) else None


def check_name(name: str, option: str) -> None:
    """ConfigError for what is no repository's name, ORG/NAME; `option` is for the message."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{option} {name}: {error}") from error
    if "/" not in name:
        raise ConfigError(f"{option} {name}: give whose it is too, as in ORG/{name}")


def check_token() -> None:
    """ConfigError where no token is known that would let anything be pushed."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push needs a token of the Hugging Face hub: `hf auth login`, or set HF_TOKEN")


LOADED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
"""What transformers and vLLM load of a model besides its weights."""


def fetch_model(name: str) -> None:
    """Into this machine's cache, what is loaded of a model. Raises as huggingface_hub does."""
    from huggingface_hub import HfApi, snapshot_download

    settle()
    there = [file.rfilename for file in HfApi().model_info(name).siblings or []]
    weights = "*.safetensors" if any("/" not in file and file.endswith(".safetensors") for file in there) else "*.bin"
    snapshot_download(name, allow_patterns=[*LOADED, weights], ignore_patterns=["*/*"])


def file_of(name: str, file: str) -> Path | None:
    """A file of a model on the hub, downloaded if need be; None where it is not there, or cannot be reached."""
    from huggingface_hub import hf_hub_download

    settle()
    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError):  # huggingface_hub's own errors are either
        return None


def push(folder: Path, name: str) -> str:
    """Upload a folder as the model repository `name`, made if need be, and return its address.

    A new one is as visible as the hub makes it by default: public, unless the organisation's settings say otherwise.
    RlkitError where the token does not do, or the hub does not; then the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    settle()
    stays = f"{folder} is written; push it when that is mended: hf upload {name} {folder}"
    try:
        api = HfApi()
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model trained with rlkit")
    except OfflineModeIsEnabled as error:
        raise RlkitError(
            f"{name} cannot be pushed: the hub cannot be reached, or HF_HUB_OFFLINE forbids it. {stays}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = {
            401: "the hub does not take the token: `hf auth login`, or set HF_TOKEN",
            403: f"the token may not write there: it needs the right to write to {name.partition('/')[0]}",
        }.get(status, f"the hub answers {status}: {str(error).strip().splitlines()[0]}")
        raise RlkitError(f"{name} cannot be pushed: {what}. {stays}") from error
    except Exception as error:  # of the library's transport: it may be any
        raise RlkitError(f"{name} cannot be pushed: {type(error).__name__}: {error}. {stays}") from error
    return str(made)
