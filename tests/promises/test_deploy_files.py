"""The files in docs/examples/deploy/ and the Dockerfiles name what is there, and the SLURM job runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from rlkit import config as configs
from rlkit.cli import main
from rlkit.commands.run import run
from rlkit.commands.serve import serve

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "examples" / "deploy"
INSTRUCTIONS = {"FROM", "RUN", "ARG", "ENV", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions(name: str) -> list[tuple[str, str]]:
    """Of a Dockerfile, in order: continued lines are joined, comments left out."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_a_dockerfile_copies_what_is_there_and_starts_rlkit(name: str) -> None:
    found = instructions(name)
    assert found[0][0] == "FROM"
    assert {word for word, _ in found} <= INSTRUCTIONS
    for word, rest in found:
        if word == "COPY":
            source = rest.split()[0]
            assert (ROOT / source).exists()
            assert source not in (ROOT / ".dockerignore").read_text().splitlines()
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
    last = dict(found)
    assert json.loads(last["ENTRYPOINT"]) == ["rlkit"]
    assert CliRunner().invoke(main, json.loads(last["CMD"])).exit_code == 0
    copied = [rest.split()[0] for word, rest in found if word == "COPY"]
    locked = next(source for source in copied if source.startswith("requirements/"))
    assert any(Path(locked).name in rest for word, rest in found if word == "RUN")


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not here")
@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_hadolint_finds_nothing(name: str) -> None:
    # Debian's own versions are pinned by the base image.
    done = subprocess.run(["hadolint", "--ignore", "DL3008", ROOT / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_builds_from_the_checkout() -> None:
    trainer = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["trainer"]
    context = (DEPLOY / trainer["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / trainer["build"]["dockerfile"]).is_file()


def test_compose_s_server_and_trainer_fit_together() -> None:
    file = (DEPLOY / "compose-server.yaml").read_text()
    server, trainer = (yaml.safe_load(file)["services"][name] for name in ("server", "trainer"))
    assert (DEPLOY / server["build"]["context"]).resolve() == ROOT
    name, *words = shlex.split(server["command"])
    given = {"serve": serve}[name].make_context("serve", words).params
    typed = file.partition("trainer run ")[2].partition("services:")[0].replace("\\\n#", "").replace("\n", " ")
    config = configs.load(run.make_context("run", shlex.split(typed)).params["words"][0], [shlex.split(typed)[-1]])
    assert config.sampler.kind == "vllm_server"
    assert config.sampler.options["urls"] == [f"http://server:{given['port']}"]
    assert config.sampler.options["api_key_env"] == given["api_key_env"]
    assert given["api_key_env"] in server["environment"]
    assert given["api_key_env"] in trainer["environment"]
    gpus = [each["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for each in (server, trainer)]
    assert gpus[0] != gpus[1]


def test_the_commands_of_the_kubernetes_job_are_rlkit_s() -> None:
    job = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    lines = [line.partition("rlkit run ")[2] for line in script.splitlines() if "rlkit run " in line]
    resume, begin = (run.make_context("run", shlex.split(line)).params for line in lines)
    assert resume["resume"] == Path("runs") / begin["name"]
    assert f"-d {resume['resume']}/checkpoints" in script
    assert begin["nproc"] == resume["nproc"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert begin["words"][0] in configs.presets()


@pytest.mark.slow
def test_the_slurm_job_trains_on_two_ranks(tmp_path: Path) -> None:
    """`srun` runs the command here, `scontrol` names this machine; the rest is as under SLURM."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": "echo 127.0.0.1",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "RLKIT_ENV": sys.prefix,
        "RLKIT_PORT": port,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    script = ["bash", DEPLOY / "slurm.sh", "embedded_xs", "--algo", "vimpo", "--name", "mine"]
    settings = ["-s", "steps=1", "-s", "eval.problems=2"]
    done = subprocess.run([*script, *settings], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ", 2 ranks," in done.stdout
    assert (tmp_path / "runs" / "mine" / "metrics.jsonl").is_file()
