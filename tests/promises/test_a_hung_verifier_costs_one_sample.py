"""A reward function that hangs, dies, floods or leaves things behind costs the one sample it does so on."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlkit.config import ScoringConfig
from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import Scorer, WeightedReward

PLUGIN = """
import os, signal, subprocess, sys, time
from rlkit import reward


@reward("hostile")
def hostile(samples, *, folder: str):
    return [one(s, folder) for s in samples]


def one(sample, folder):
    match sample.response:
        case "loop":
            while True:
                pass
        case "memory":
            return float(len(bytearray(8 << 30)))
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(0)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "close":
            os.closerange(3, 256)
            time.sleep(60)
        case "fork":  # one child in the group, one in a session of its own
            subprocess.Popen(["sleep", "600"])
            leave(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, folder)
            return 1.0
        case "fork and hang":
            leave(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, folder)
            time.sleep(600)
        case "fork and return":
            os.fork()
            return 1.0
        case "print":
            for _ in range(64):
                print("x" * (1 << 20))
            return 1.0
        case "alarm":
            signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                time.sleep(600)
            except TimeoutError:
                return 1.0
        case "leave an alarm":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            return 1.0
        case "system exit":
            sys.exit("left")
        case "raise":
            raise ValueError("my own mistake")
        case "nan":
            return float("nan")
        case "dict":
            return {"verdict": 1.0}
        case "unpicklable":
            from rlkit.interfaces.rewards import RewardResult
            return RewardResult(value=1.0, info={"f": lambda: 0})
    return float(sample.response == sample.answer)


def leave(pid, folder):
    with open(os.path.join(folder, str(pid)), "w"):
        pass
"""


def sample(response: str, index: int = 0) -> Sample:
    key = SampleKey("9f2c", 4, 0, index)
    return Sample(key=key, prompt="", response=response, tokens=[], answer="right", truncated=False)


def settings(**changes: Any) -> ScoringConfig:
    return ScoringConfig.model_validate({"timeout_s": 0.5, "max_no_value": 1.0, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.py").write_text(PLUGIN)
    return folder


def scorer_of(folder: Path, **changes: Any) -> Scorer:
    reward = WeightedReward("hostile", {"folder": str(folder)})
    return Scorer([reward], [str(folder / "hostile.py")], settings(**changes))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[Scorer]:
    with scorer_of(folder) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def patient(folder: Path) -> Iterator[Scorer]:
    with scorer_of(folder, timeout_s=20) as scorer:
        yield scorer


def among_neighbours(scorer: Scorer, response: str) -> RewardResult:
    """The result of a response that stands between right and wrong ones, which keep their rewards."""
    responses = ["right", "wrong", "right", response, "right", "wrong"]
    results = scorer.score([sample(r, i) for i, r in enumerate(responses)])
    assert [r.value for r in results[:3] + results[4:]] == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert [r.status for r in results[:3] + results[4:]] == ["ok"] * 5
    assert [r.correct for r in results[:3] + results[4:]] == [True, False, True, True, False]
    return results[3]


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("loop", "no answer within 0.5 s"),
        ("stop", "no answer within 0.5 s"),
        ("memory", "out of memory (scoring.memory_gib is 4)"),
        ("sigkill", "killed by SIGKILL"),
        ("exit", "exited with code 0"),
        ("close", "closed its connection"),
        ("fork and hang", "no answer within 0.5 s"),
    ],
)
def test_what_takes_its_worker_down_is_refused(scorer: Scorer, response: str, said: str) -> None:
    result = among_neighbours(scorer, response)
    assert (result.value, result.status, result.correct) == (0.0, "refused", False)
    assert "two worker processes" in result.info["error"]
    assert said in result.info["error"]


def test_where_it_hung_is_kept(folder: Path) -> None:
    with scorer_of(folder, timeout_s=2) as scorer:  # a busy machine may take a while to write it down
        said = scorer.score([sample("loop", 0)])[0].info["error"]
    assert re.search(r'hostile\.py", line 1[45] in one', said)


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("raise", "ValueError: my own mistake"),
        ("system exit", "SystemExit: left"),
        ("nan", "reward 'hostile' (prompt 9f2c, step 4, index 3): got nan"),
        ("dict", "got {'verdict': 1.0} (dict)"),
        ("unpicklable", "cannot leave the worker process"),
    ],
)
def test_what_raises_or_returns_no_result_has_no_value(scorer: Scorer, response: str, said: str) -> None:
    result = among_neighbours(scorer, response)
    assert (result.value, result.status) == (None, "error")
    assert said in result.info["error"]
    assert "rlkit/scoring" not in result.info["error"]


@pytest.mark.parametrize("response", ["print", "alarm", "leave an alarm", "fork and return", "fork"])
def test_what_is_rude_is_scored_all_the_same(patient: Scorer, response: str) -> None:
    for _ in range(2):
        result = among_neighbours(patient, response)
        assert (result.value, result.status) == (1.0, "ok")


def test_children_end_with_their_worker(folder: Path) -> None:
    for pid in folder.glob("[0-9]*"):
        pid.unlink()
    with scorer_of(folder) as scorer:
        among_neighbours(scorer, "fork and hang")
        hung = {int(p.name) for p in folder.glob("[0-9]*")}
        # Once in the message, and twice alone.
        assert len(hung) == 3
        assert not any(alive(pid) for pid in hung)
        among_neighbours(scorer, "fork")
        (left,) = {int(p.name) for p in folder.glob("[0-9]*")} - hung
        assert alive(left)
    assert not alive(left)


def alive(pid: int) -> bool:
    """It runs; a child that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_after_twenty_bombs_right_answers_are_right(folder: Path) -> None:
    bombs = ["sigkill", "exit", "memory", "raise"] * 5
    with scorer_of(folder) as scorer:
        mixed = [r for bomb in bombs for r in ("right", bomb, "wrong")]
        results = scorer.score([sample(r, i) for i, r in enumerate(mixed)])
        assert [r.value for r in results[0::3]] == [1.0] * 20
        assert [r.value for r in results[2::3]] == [0.0] * 20
        assert [r.status for r in results[1::3]] == ["refused", "refused", "refused", "error"] * 5
        assert [r.value for r in scorer.score([sample("right", i) for i in range(20)])] == [1.0] * 20


def test_the_run_stops_when_too_many_have_no_value(folder: Path) -> None:
    with scorer_of(folder, max_no_value=0.05) as scorer:
        # One of a few is no share to judge by.
        assert scorer.score([sample("raise"), sample("right")])[0].status == "error"
        bad, good = [sample("raise", i) for i in range(4)], [sample("right", i) for i in range(16)]
        with pytest.raises(RlkitError) as caught:
            scorer.score(bad + good)
        said = str(caught.value)
        for words in ("4 of 20 samples", "max_no_value (0.05)", "reward 'hostile': 4 error", "ValueError: my own mis"):
            assert words in said
        assert said.count("prompt 9f2c") == 3
        # What it was given is done with.
        assert [r.value for r in scorer.score(good)] == [1.0] * 16


def among_ranks(scorer: Scorer, samples: list[Sample], others: list[Any]) -> list[RewardResult]:
    """Score as a rank beside others, whose part of a gather `others` holds; its own part is added to them."""
    for one in samples:
        scorer.submit(one)

    def gather(said: Any) -> list[Any]:
        others.append(pickle.loads(pickle.dumps(said)))
        return others

    return scorer.finish(gather=gather)


def test_the_limit_is_on_the_samples_of_all_ranks(folder: Path) -> None:
    """Two lost samples of a rank's few are none too many of the run's, and a rank that has lost all of its own is as
    any other; what is too many is raised on a rank that has lost none."""
    with scorer_of(folder, max_no_value=0.05) as scorer:
        right = [sample("right", i) for i in range(38)]
        for lost in ([sample("raise", i) for i in range(2)], [sample("sigkill", i) for i in range(2)]):
            ranks: list[Any] = []
            among_ranks(scorer, right, ranks)
            assert len(among_ranks(scorer, lost, ranks)) == 2
        ranks.clear()
        with pytest.raises(RlkitError):
            among_ranks(scorer, [sample("raise", i) for i in range(3)], ranks)
        with pytest.raises(RlkitError, match=r"3 of 39 samples .* reward 'hostile': 3 error\. Among them: prompt 9f2c"):
            among_ranks(scorer, right[:36], ranks)
        ranks.clear()
        among_ranks(scorer, [], ranks)
        with pytest.raises(RlkitError, match="scored none of 2 samples"):
            among_ranks(scorer, [sample("sigkill", i) for i in range(2)], ranks)


TRAINER = """
import os, signal, sys, time
from pathlib import Path
from rlkit.config import ScoringConfig
from rlkit.interfaces.rewards import Sample, SampleKey
from rlkit.scoring import Scorer, WeightedReward

folder = Path(sys.argv[1])
scorer = Scorer([WeightedReward("endless", {"folder": str(folder)})], [str(folder / "endless.py")], ScoringConfig())
for index in range(16):
    key = SampleKey("9f2c", 4, 0, index)
    scorer.submit(Sample(key=key, prompt="", response="", tokens=[], answer="", truncated=False))
while not list(folder.glob("[0-9]*")):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
ENDLESS = """
import os
from pathlib import Path
from rlkit import reward


@reward("endless")
def endless(samples, *, folder: str):
    (Path(folder) / str(os.getpid())).touch()
    while True:
        pass
"""


def test_a_trainer_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(ENDLESS)
    trainer = subprocess.run([sys.executable, "-c", TRAINER, str(tmp_path)], timeout=60, check=False)
    assert trainer.returncode == -signal.SIGKILL
    workers = [int(p.name) for p in tmp_path.glob("[0-9]*")]
    assert workers
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
