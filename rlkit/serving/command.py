"""The command line and the environment of a vLLM server."""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from rlkit import distribution
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.errors import ConfigError
from rlkit.serving.guard import KEY, UP


def serve(
    model: ModelConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    adapters: bool = False,
    key_variable: str | None = None,
    options: Sequence[str] = (),
) -> NoReturn:
    """Become vLLM's server of a model.

    adapters: the run trains LoRA adapters, which alone are sent. key_variable: the environment variable that holds its
    key. options: more of vLLM's own. ConfigError for what cannot be: vLLM is not there, the port is taken, a key or the
    model is missing.
    """
    from rlkit.engine import models

    distribution.check_extra("rlkit serve", "vllm")
    _check_options(options)
    key = _key(host, key_variable)
    _check_free(host, port)
    # What is wrong with a model is said as a run says it, not in vLLM's traceback.
    models.positions(model)
    models.load_tokenizer(model)
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *arguments(model, host, port, tensor_parallel, data_parallel, adapters=adapters),
        *options,
    ]
    environment = {**os.environ, **_environment(), UP: _said(host, port, key_variable)}
    environment.pop(KEY, None)
    if key is not None:
        environment[KEY] = key
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def arguments(
    model: ModelConfig, host: str, port: int, tensor_parallel: int, data_parallel: int, *, adapters: bool = False
) -> list[str]:
    """vLLM's options."""
    cpu = on_cpu()
    # vLLM's NCCL engine loads whole weights. Adapters are megabytes, for which gloo is quick enough.
    ours = cpu or adapters
    found = [
        *("--model", resolve(model.path), "--served-model-name", model.path),
        *("--host", host, "--port", str(port), "--dtype", model.settled().dtype),
        *("--tensor-parallel-size", str(tensor_parallel), "--data-parallel-size", str(data_parallel)),
        *("--middleware", "rlkit.serving.guard.Guard"),
        *("--weight-transfer-config", json.dumps({"backend": "rlkit_gloo" if ours else "nccl"})),
        *("--logprobs-mode", "processed_logprobs"),
        # Else what a model's generation config says of temperature and the like would be the default of each request.
        *("--generation-config", "vllm"),
        *("--enable-prefix-caching", "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"),
        "--enable-scale-out",  # opens the route that takes and gives tokens
    ]
    if model.trust_remote_code:
        found.append("--trust-remote-code")
    if ours:
        found += ["--worker-extension-cls", "rlkit.serving.worker.Extension"]
    if cpu:
        # Where a prompt is cut in two, vLLM winds the request's generator back, which a CPU's cannot do.
        found += ["--enforce-eager", "--no-enable-chunked-prefill"]
        if tensor_parallel == 1:
            found += ["--distributed-executor-backend", "uni"]  # see `_environment`
    return found


def on_cpu() -> bool:
    """Whether vLLM serves on the CPU here."""
    import torch

    return not torch.cuda.is_available()


def _environment() -> dict[str, str]:
    from rlkit.generation.vllm_cpu import ENVIRONMENT

    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",  # the CPU build has no other entry
        # On a CPU vLLM takes "uni" only so. The engine's process works itself then, and needs none beside it, whose
        # start takes a quarter of the server's.
        **({**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if on_cpu() else {}),
    }
    # The routes by which weights come.
    return {name: value for name, value in wanted.items() if name not in os.environ} | {"VLLM_SERVER_DEV_MODE": "1"}


def _key(host: str, variable: str | None) -> str | None:
    if variable is not None:
        if not (key := os.environ.get(variable)):
            raise ConfigError(f"--api-key-env names the environment variable {variable}, which is not set")
        return key
    if not loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, and who reaches the server can replace its model: give "
            "it a key, in an environment variable of its own, as in\n"
            f"  export RLKIT_KEY={secrets.token_hex(16)}\n"
            f"  rlkit serve ... --host {host} --api-key-env RLKIT_KEY"
        )
    return None


def _check_options(options: Sequence[str]) -> None:
    """ConfigError for options of vLLM's that would go round what is checked here; it takes their beginnings too."""
    for option in options:
        name = option.partition("=")[0].replace("_", "-")
        for ours in ("--host", "--port", "--api-key", "--middleware", "--trust-remote-code", "--uds"):
            if len(name) > 3 and ours.startswith(name):
                raise ConfigError(f"{option} behind `--`: leave it out there; `rlkit serve --help` has rlkit's own")


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened on ({error.strerror}): take another --port, or an address of this "
                "machine as --host"
            ) from error


def _said(host: str, port: int, key_variable: str | None) -> str:
    here = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    key = f", api_key_env: {key_variable}" if key_variable is not None else ""
    return f"rlkit: the server is up. In the run's config: sampler: {{kind: vllm_server, urls: [http://{here}:{port}]{key}}}"


def available() -> str | None:
    """Why this machine cannot serve; None: it can."""
    if importlib.util.find_spec("vllm") is None:
        return f"vLLM is not installed: {distribution.install('vllm')}"
    return None
