"""How a process learns which rank it is, from whoever started it; and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rank_worker import TwoRanks

from rlkit import config as configs
from rlkit import ranks
from rlkit.assembly import fetching, launch, plan
from rlkit.cli import main
from rlkit.engine import distributed
from rlkit.errors import ConfigError, LostRankError, RlkitError
from rlkit.ranks import first_host

SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
STEP = {**SRUN, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[07-08]"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "PMIX_NAMESPACE": "prterun-vm-7@1",
}
HYDRA = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "2000"}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put these variables, and no other launcher's, into the environment."""

    def put(variables: Mapping[str, str]) -> None:
        for name in [*os.environ]:
            if name.startswith(("SLURM_", "OMPI_", "PMI_", "MPI_", "MASTER_")) or name in (*BY_HAND, ranks.STARTER):
                monkeypatch.delenv(name)
        for name in (*BY_HAND, ranks.STARTER):  # so that what is written is taken back
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def rlkit(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("variables", "rank", "world", "local", "host", "by"),
    [
        (STEP, "3", "4", "1", "node07", "srun"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "1"}, "3", "4", "1", "127.0.0.1", "srun"),
        ({**STEP, "MASTER_ADDR": "mine"}, "3", "4", "1", "mine", "srun"),
        (OPEN_MPI, "2", "4", "2", "127.0.0.1", "mpirun"),
        # Its helpers, one a node, were started by srun.
        ({**STEP, **OPEN_MPI, "SLURM_PROCID": "0"}, "2", "4", "2", "127.0.0.1", "mpirun"),
        (HYDRA, "1", "2", "1", "127.0.0.1", "mpirun"),
        ({**STEP, "PMI_RANK": "3", "PMI_SIZE": "4"}, "3", "4", "1", "node07", "srun"),  # with --mpi=pmi2
        ({**STEP, **BY_HAND}, "1", "2", "1", "here", "the launcher"),
        ({**BY_HAND, "TORCHELASTIC_RUN_ID": "x"}, "1", "2", "1", "here", "torchrun"),
    ],
)
def test_a_rank_knows_what_its_launcher_says(
    variables: dict[str, str], rank: str, world: str, local: str, host: str, by: str, said: Any
) -> None:
    said(variables)
    ranks.adopt()
    found = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]
    assert found == [rank, world, local, host]
    assert ranks.starter() == by
    assert (ranks.rank(), ranks.world_size()) == (int(rank), int(world))
    once = dict(os.environ)
    ranks.adopt()
    assert dict(os.environ) == once


@pytest.mark.parametrize("variables", [STEP, OPEN_MPI])
def test_tasks_of_one_start_find_one_port_and_those_of_another_another(variables: dict[str, str], said: Any) -> None:
    ports = []
    for changes in ({}, {"SLURM_PROCID": "0"}, {"SLURM_STEP_ID": "1", "PMIX_NAMESPACE": "prterun-vm-8@1"}):
        said({**variables, **changes})
        ranks.adopt()
        ports.append(os.environ["MASTER_PORT"])
    assert ports[0] == ports[1] != ports[2]
    assert all(10000 <= int(port) < 30000 for port in ports)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SRUN,  # a batch script, or a shell of salloc: the job has four tasks, but nothing has started them
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {**STEP, **OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
    ],
)
def test_one_process_is_alone(variables: dict[str, str], said: Any) -> None:
    said(variables)
    ranks.adopt()
    assert (ranks.starter(), ranks.rank(), ranks.world_size()) == ("", 0, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node3", "node3"),
        ("node[07-09,12],big1", "node07"),
        ("big1,node[07-09]", "big1"),
        ("r[1-2]n[04-05]-ib,x", "r1n04-ib"),
    ],
)
def test_the_first_of_slurm_s_list_of_nodes(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("variables", "rank", "text"),
    [
        (
            {name: value for name, value in STEP.items() if "NODE" not in name},
            "SLURM_PROCID",
            "srun has started 4 tasks of this command, and nothing says on which machine the first one runs",
        ),
        (
            {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            "OMPI_COMM_WORLD_RANK",
            "mpirun -x MASTER_ADDR=HOST ...",
        ),
        ({**HYDRA, "MPI_LOCALNRANKS": "1"}, "PMI_RANK", "mpirun -genv MASTER_ADDR HOST ..."),
        ({"PMI_SIZE": "4"}, "PMI_RANK", "something has started 4 tasks of this command (PMI_SIZE)"),
        ({"WORLD_SIZE": "2"}, "RANK", "RANK=0, WORLD_SIZE=2, but no MASTER_ADDR and no MASTER_PORT"),
        ({}, "RANK", "RANK=0, but no WORLD_SIZE and no MASTER_ADDR and no MASTER_PORT"),
        ({**BY_HAND, "MASTER_PORT": "high"}, "RANK", "MASTER_PORT=high: it must be a number below 65536"),
    ],
)
def test_tasks_that_cannot_find_each_other_are_refused_and_the_first_says_it(
    variables: dict[str, str], rank: str, text: str, said: Any
) -> None:
    for number in "01":
        said({**variables, rank: number})
        result = rlkit("run", "embedded_xs", "--dry-run")
        assert result.exit_code == 2
        assert (text in result.output) == (number == "0")


def test_a_rank_that_is_none_of_those_there_are_says_so_itself(said: Any) -> None:
    said({**BY_HAND, "RANK": "2"})
    result = rlkit("run", "embedded_xs", "--dry-run")
    assert result.exit_code == 2
    assert "RANK=2: it must be a number below 2" in result.output


def test_nproc_is_refused_where_ranks_are_started_already(said: Any) -> None:
    said({**STEP, "SLURM_PROCID": "0"})
    result = rlkit("run", "embedded_xs", "--nproc", "2")
    assert result.exit_code == 2
    assert "--nproc starts ranks, and srun has started 4 ranks already: leave it out" in result.output


def test_a_sweep_is_started_once(said: Any, tmp_path: Path) -> None:
    said({**STEP, "SLURM_PROCID": "0"})
    result = rlkit("sweep", "--algos", "grpo", "--out", str(tmp_path), "--dry-run")
    assert result.exit_code == 2
    assert "srun has started 4 of this sweep" in result.output


@pytest.mark.parametrize(
    "arguments", [("--local_rank=0", "run"), ("run", "--local_rank", "0"), ("run", "--local-rank=0")]
)
def test_what_deepspeed_s_launcher_adds_is_taken(arguments: tuple[str, ...]) -> None:
    assert rlkit(*arguments, "embedded_xs", "--dry-run").exit_code == 0
    assert "local" not in rlkit("run", "--help").output


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_built_for_cpus", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_machine_runs_a_rank_on_each(said: Any) -> None:
    said({})
    assert [launch.ranks_here(nproc) for nproc in (None, 1, 4)] == [4, 1, 4]
    result = rlkit("run", "embedded_xs", "--dry-run")
    assert "4 ranks, one on each GPU (--nproc for fewer)" in result.output
    assert ", 2 ranks, micro" in rlkit("run", "embedded_xs", "--dry-run", "--nproc", "2").output
    refused = rlkit("run", "embedded_xs", "--nproc", "5")
    assert refused.exit_code == 2
    assert "--nproc 5, but there are 4 GPUs (4, 5, 6, 7): a rank needs one to itself" in refused.output


def test_a_cpu_runs_one_rank_unless_asked(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said({})
    monkeypatch.setattr(ranks, "_built_for_cpus", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # which a PyTorch for CPUs does not use
    assert [launch.ranks_here(nproc) for nproc in (None, 3)] == [1, 3]


def test_a_rank_takes_its_own_gpu_or_the_only_one_it_sees() -> None:
    assert [distributed.device_of(local, visible) for local, visible in ((0, 1), (3, 4), (3, 1))] == [0, 3, 0]
    with pytest.raises(ConfigError, match=r"number 2 there \(LOCAL_RANK, from 0 on\), but sees 2 GPUs"):
        distributed.device_of(2, 2)


def test_two_ranks_with_one_gpu_are_refused() -> None:
    distributed.check_gpus(["a", "a", "b", "b"], ["x", "y", "x", "y"])
    distributed.check_gpus(["a", "a"], ["", ""])
    with pytest.raises(ConfigError, match=r"ranks 1 and 3 have the same GPU of b \(x\).*--gpus-per-task=1"):
        distributed.check_gpus(["a", "b", "b", "b"], ["x", "x", "y", "x"])


def test_a_plan_says_on_how_many_machines_ranks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_hosts", ["a", "a", "b", "b"])
    assert plan._placed(4) == " on 2 machines"


def test_ranks_that_stand_elsewhere_take_rank_0_s_folder(two_ranks: TwoRanks, tmp_path: Path) -> None:
    here = [tmp_path / "a", tmp_path / "b"]
    for folder in here:
        folder.mkdir()
    assert two_ranks.run("share", here, Path("runs/x")) == [Path("runs/x"), here[0] / "runs" / "x"]
    assert two_ranks.run("share", here, tmp_path / "y") == [tmp_path / "y"] * 2
    assert not list((here[0] / "runs" / "x").iterdir()), "the sign is gone"
    assert not list(here[1].iterdir())


def test_a_folder_that_is_not_shared_is_refused(two_ranks: TwoRanks, tmp_path: Path) -> None:
    here = [tmp_path / "a", tmp_path / "b"]
    for folder in here:
        folder.mkdir()
    # The same path, but in each process another folder, as on machines with disks of their own.
    first, second = two_ranks.run("share", here, Path("/proc/self/cwd/x"))
    assert first == second
    assert first.startswith("the ranks do not share the run's folder: what rank 0, on ")
    assert "writes to /proc/self/cwd/x is not seen by" in first
    assert "(rank 1)" in first
    assert not list(here[0].iterdir()), "nothing is left of the try"


def test_a_folder_that_cannot_be_made_is_refused_by_all(two_ranks: TwoRanks, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first, second = two_ranks.run("share", [tmp_path] * 2, Path("file/x"))
    assert first == second
    assert f"cannot make the run's folder {tmp_path / 'file' / 'x'}" in first


@pytest.mark.parametrize(("hosts", "order"), [(["a", "a"], "0 "), (["a", "b"], "0 1 ")])
def test_rank_0_fetches_first_then_the_first_of_each_machine(
    hosts: list[str], order: str, two_ranks: TwoRanks, tmp_path: Path
) -> None:
    two_ranks.run("take_turns", hosts, tmp_path / "order")
    assert (tmp_path / "order").read_text() == order


def test_what_is_fetched_is_what_the_hub_has_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = ["reward=exact", "eval.suites=[aime24]", "data.eval_path=org/held-out", "critic.path=org/critic"]
    config = configs.load("embedded_xs", [f"model.path={tmp_path / 'model'}", "data.path=org/data", *given])
    assert [*fetching.wants(config)] == ["org/critic", "org/data", "org/held-out", "suite aime24"]
    local = ["data.path=mine.jsonl", "eval.suites=[aime24]", f"eval.suite_data={tmp_path}"]
    assert not fetching.wants(configs.load("embedded_xs", local))


def test_a_rank_that_does_not_come_is_said_with_the_setting(two_ranks: TwoRanks) -> None:
    (text, code), _ = two_ranks.run("wait_in_vain")
    assert code == 4
    assert text.startswith("rank 0 of 2, on ")
    assert "has lost another rank: it has not come within engine.timeout_minutes" in text
    assert text.endswith("where it was merely slow, raise that. Go on with: this")


def test_a_rank_that_is_not_there_at_the_start_is_named(two_ranks: TwoRanks) -> None:
    text, _ = two_ranks.run("miss_one", "test")
    assert text.startswith("1 rank of 2 (1) did not come within 0.005 minutes: they were not started, or have ended")


def test_an_error_is_said_by_the_rank_that_has_it_first(two_ranks: TwoRanks) -> None:
    lost = LostRankError("another is gone")
    first, second = two_ranks.run("fail", [ConfigError("no such thing"), lost])
    assert first == (2, "rlkit: no such thing\n")
    assert second == (1, ""), "what follows from it is not said"
    first, second = two_ranks.run("fail", [RlkitError("the same thing"), RlkitError("the same thing")])
    assert (first, second) == ((1, "rlkit: the same thing\n"), (1, ""))


def test_a_traceback_is_printed_once_with_its_rank(two_ranks: TwoRanks) -> None:
    (code, text), second = two_ranks.run("fail", [KeyError("of 12 MiB"), KeyError("of 13 MiB")])
    assert code == 1
    assert text.startswith("rank 0 of 2, on ")
    assert text.endswith("KeyError: 'of 12 MiB'\n")
    assert second == (1, "")


@pytest.mark.parametrize(
    ("ends", "code", "says"),
    [
        (
            "kill -9 $$",
            137,
            "rlkit: rank 1 was killed by SIGKILL. That is what a system does that has run out of memory",
        ),
        ("kill -6 $$", 134, "rlkit: rank 1 was killed by SIGABRT: what a library in it printed last, above, says why"),
        ("exit 3", 3, ""),
    ],
)
def test_a_rank_that_dies_without_a_word_is_named(
    ends: str, code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rank = tmp_path / "rank"
    rank.write_text(f"#!/bin/sh\n[ $RANK = 1 ] && {ends}\nexec sleep 60\n")
    rank.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(rank))
    assert launch.launch(2, []) == code
    printed = capfd.readouterr().err
    assert printed.startswith(says)
    assert bool(printed) == bool(says), "one that ends by itself has said why"
