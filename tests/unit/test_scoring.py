"""Scoring: sound results pass, with the verdict filled in; a fault names the reward, the sample and what is allowed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit import reward
from rlkit.blame import DEBUG, place
from rlkit.config import ScoringConfig
from rlkit.errors import ConfigError, RlkitError, TokensUnknownError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey, UnknownTokens
from rlkit.scoring import Scorer, WeightedReward, score
from rlkit.scoring.checks import in_brief

KEYS = [SampleKey("9f2c", 4, 0, index) for index in range(3)]
SAMPLES = [Sample(key=key, prompt="", response="", tokens=[], answer="", truncated=False) for key in KEYS]


class Returns:
    """A reward that returns what it was given."""

    def __init__(self, values: Any, range: tuple[float, float] | None = None) -> None:
        self.values = values
        if range is not None:
            self.range = range

    def __call__(self, samples: Sequence[Sample]) -> Any:
        return self.values


def one(value: Any, **options: Any) -> RewardResult:
    return score(Returns([0.0, value, 0.0], **options), "mine", SAMPLES)[1]


@pytest.mark.parametrize(
    ("returned", "value", "status", "correct"),
    [
        (1, 1.0, "ok", True),
        (0.5, 0.5, "ok", False),
        (True, 1.0, "ok", True),
        (False, 0.0, "ok", False),
        (np.float32(1), 1.0, "ok", True),
        (Fraction(1, 4), 0.25, "ok", False),
        (None, None, "abstain", None),
        (RewardResult(value=1), 1.0, "ok", True),
        (RewardResult(value=0.2, correct=True), 0.2, "ok", True),
        (RewardResult(value=1.0, correct=False), 1.0, "ok", False),
        (RewardResult(value=0, status="no_answer"), 0.0, "no_answer", False),
        (RewardResult(value=0.0, status="refused"), 0.0, "refused", False),
        (RewardResult(value=None, status="bad_gold"), None, "bad_gold", None),
        (RewardResult(value=None, status="timeout"), None, "timeout", None),
    ],
)
def test_sound_results(returned: Any, value: float | None, status: str, correct: bool | None) -> None:
    result = one(returned)
    assert (result.value, result.status, result.correct) == (value, status, correct)
    assert result.value is None or type(result.value) is float


def test_correct_is_the_highest_of_the_declared_range() -> None:
    assert one(1.0, range=(-1.0, 2.0)).correct is False
    assert one(2.0, range=(-1.0, 2.0)).correct is True
    with pytest.raises(RlkitError, match=r"got 3\.0, outside the range \(-1\.0, 2\.0\)"):
        one(3.0, range=(-1.0, 2.0))
    # Without a declared range 1 is what verifiers give.
    assert one(2.0).correct is True
    assert one(0.9).correct is False
    # 0 is the highest here, but there was no answer to be correct.
    assert one(RewardResult(value=0.0, status="no_answer"), range=(-1.0, 0.0)).correct is False


def test_parts_and_info_are_kept() -> None:
    result = one(RewardResult(value=1.0, parts={"format": 0.5}, info={"answer": "5"}))
    assert (result.parts, result.info) == ({"format": 0.5}, {"answer": "5"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), r"got nan \(float\)"),
        (float("-inf"), r"got -inf \(float\)"),
        ("1.0", r"got 1\.0 \(str\)"),
        ({"score": 1.0}, r"got \{'score': 1\.0\} \(dict\)"),
        (torch.ones(2), r"\(Tensor\)"),
        (1j, r"\(complex\)"),
        (RewardResult(value=float("nan")), r"got nan"),
        (RewardResult(value="1"), r"got 1 \(str\)"),  # type: ignore[arg-type]
        (RewardResult(value=None), r"no value, but status 'ok'.*abstain"),
        (RewardResult(value=1.0, status="timeout"), r"status 'timeout' has no value, but got 1\.0"),
        (RewardResult(value=1.0, status="refused"), r"status 'refused' has the value 0, but got 1\.0"),
        (RewardResult(value=1.0, status="timed_out"), r"unknown status 'timed_out'; did you mean 'timeout'"),  # type: ignore[arg-type]
        (RewardResult(value=1.0, parts={"format": float("nan")}), r"part 'format' is nan"),
    ],
)
def test_faults_name_the_reward_the_sample_and_the_value(value: Any, said: str) -> None:
    with pytest.raises(
        RlkitError, match=r"reward 'mine', sample 2 of 3 \(prompt 9f2c, step 4, index 1\): .*" + said
    ) as e:
        one(value)
    assert e.value.exit_code == 1


def test_what_is_allowed_is_said() -> None:
    with pytest.raises(RlkitError, match=r"allowed are a finite number, True or False, None .* or a RewardResult"):
        one("good")


@pytest.mark.parametrize("values", [[1.0], [1.0] * 4, []])
def test_a_wrong_count_is_named(values: list[float]) -> None:
    with pytest.raises(RlkitError, match=rf"reward 'mine' returned {len(values)} results for 3 samples"):
        score(Returns(values), "mine", SAMPLES)


@pytest.mark.parametrize("values", ["abc", None, 1.0, {0: 1.0}, (v for v in [1.0] * 3), torch.ones(3, 2), np.ones(())])
def test_anything_but_a_list_is_refused(values: Any) -> None:
    with pytest.raises(RlkitError, match=r"reward 'mine' returned a \w+ .*must return a list"):
        score(Returns(values), "mine", SAMPLES)


def test_an_exception_comes_with_its_place() -> None:
    def fragile(samples: Sequence[Sample]) -> list[float]:
        return [1 / len(s.response) for s in samples]

    with pytest.raises(RlkitError, match=r"reward 'fragile' raised on a batch of 3 samples") as caught:
        score(fragile, "fragile", SAMPLES)
    said = str(caught.value)
    assert "return [1 / len(s.response) for s in samples]" in said
    assert said.endswith("ZeroDivisionError: division by zero")
    assert "rlkit/scoring" not in said


def test_an_exception_in_brief_is_itself_and_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(samples: Sequence[Sample]) -> list[float]:
        raise ValueError("no such\nanswer")

    with pytest.raises(RlkitError) as caught:
        score(fragile, "fragile", SAMPLES)
    line = fragile.__code__.co_firstlineno + 1
    assert in_brief(str(caught.value)) == f"{place(__file__, line)}: ValueError: no such\nanswer"
    assert in_brief("reward 'mine' returned 0 results") == "reward 'mine' returned 0 results"
    hung = "step gave no answer within 2 s; it was at mine.py:14, in step"
    frames = 'hread 0x00007f7abe4b3b80 (most recent call first):\n  File "mine.py", line 14 in step\n'
    assert in_brief(f"{hung}\nTimeout (0:00:01.600000)!\nT{frames}") == hung
    assert in_brief(f"it was killed by SIGSEGV\nCurrent t{frames}") == "it was killed by SIGSEGV"
    monkeypatch.setenv(DEBUG, "1")
    assert in_brief(str(caught.value)) == str(caught.value)


def test_a_reward_that_takes_other_arguments_is_an_error_too() -> None:
    def wrong(prompts: list[str], completions: list[str]) -> list[float]:
        return []

    with pytest.raises(RlkitError, match=r"(?s)reward 'wrong' raised.*missing 1 required positional argument"):
        score(wrong, "wrong", SAMPLES)  # type: ignore[arg-type]


def test_no_samples_need_no_reward() -> None:
    assert score(Returns("never looked at"), "mine", []) == []


def test_interrupts_pass_through() -> None:
    def interrupted(samples: Sequence[Sample]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, "mine", SAMPLES)


# Rewards that come on the way

THREE = replace(SAMPLES[1], tokens=[4, 5, 6])


def shared(values: Any, value: float = 1.0, **changes: Any) -> RewardResult:
    """What comes of a result with these token values, for a response of three tokens."""
    result = RewardResult(value=value, token_values=values, **changes)
    return score(Returns([0.0, result, 0.0]), "mine", [SAMPLES[0], THREE, SAMPLES[2]])[1]


@pytest.mark.parametrize(
    "values",
    [
        [0.5, 0, 0.5],
        (Fraction(1, 2), True, np.float32(-0.5)),
        np.array([0.5, 0.0, 0.5]),
        np.array([2, -2, 1]),
        torch.tensor([0.5, 0.25, 0.25]),
        [1 / 3] * 3,
        [0.5, 0.5, 5e-7],
    ],
)
def test_token_values_are_a_list_of_numbers_that_add_up_to_the_value(values: Any) -> None:
    result = shared(values)
    assert type(result.token_values) is list
    assert all(type(value) is float for value in result.token_values)
    assert result.token_values == pytest.approx([float(value) for value in values])
    assert (result.value, result.correct) == (1.0, True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, 0.5], r"2 token_values for a response of 3 tokens; give one for each"),
        ([], r"0 token_values for a response of 3 tokens"),
        ([0.25] * 4, r"4 token_values for a response of 3 tokens"),
        ([float("nan"), 0.5, 0.5], r"token_values hold nan \(float\); they must be finite numbers"),
        ([1.0, float("inf"), float("-inf")], r"token_values hold inf \(float\)"),
        ([1.0, None, 0.0], r"token_values hold None \(NoneType\)"),
        (np.array([[1.0], [0.0], [0.0]]), r"token_values hold \[1\.0\] \(list\)"),
        ([0.5, 0.5, 0.5], r"token_values add up to 1\.5, but the value is 1; it must be their sum"),
        ([0.5, 0.5, 1e-4], r"token_values add up to 1\.0001, but the value is 1"),
        (1.0, r"token_values are 1\.0 \(float\); give a list, one number for each token"),
        ("100", r"token_values are 100 \(str\)"),
        ({0: 0.5, 1: 0.25, 2: 0.25}, r"token_values are \{.*\} \(dict\)"),
        ((v for v in (0.5, 0.5, 0.0)), r"token_values are .* \(generator\)"),
        (np.array(1.0), r"token_values are 1\.0 \(ndarray\)"),
    ],
)
def test_token_values_that_cannot_be_name_the_sample(values: Any, said: str) -> None:
    with pytest.raises(
        RlkitError, match=r"reward 'mine', sample 2 of 3 \(prompt 9f2c, step 4, index 1\): " + said
    ) as e:
        shared(values)
    assert e.value.exit_code == 1


def test_a_refused_answer_may_have_shares_that_cancel() -> None:
    assert shared([1.0, -1.0, 0.0], 0.0, status="no_answer").token_values == [1.0, -1.0, 0.0]


# In worker processes. What hangs, dies or floods is in promises/test_a_hung_verifier_costs_one_sample.py.

PLUGIN = """
import asyncio, os, sys, threading, time
from rlkit import reward
from rlkit.blame import DEBUG, place
from rlkit.interfaces.rewards import RewardResult


@reward("scoring_length")
def length(samples, *, scale: float = 1.0):
    return [RewardResult(value=scale * len(s.response), parts={"letters": len(s.response)}) for s in samples]


@reward("scoring_right")
def right(samples):
    return [
        RewardResult(value=float(s.response == s.answer), info={"seen": s.response}) if s.response
        else RewardResult(value=0.0, status="no_answer")
        for s in samples
    ]


right.range = (0.0, 1.0)


@reward("scoring_signed")
def signed(samples):
    return [{"": None, "bomb": RewardResult(value=0.0, status="refused")}.get(s.response, -1.0) for s in samples]


signed.range = (-1.0, 3.0)


@reward("scoring_async")
async def awaited(samples):
    start = time.monotonic()
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in samples))
    return [1.0 for _ in samples]


@reward("scoring_slow")
def slow(samples):
    time.sleep(0.12 * len(samples))
    return [1.0 for _ in samples]


@reward("scoring_where")
def where(samples):
    info = {
        "pid": os.getpid(),
        "main": threading.current_thread() is threading.main_thread(),
        "heavy": sorted({"torch", "numpy", "transformers"} & set(sys.modules)),
        "columns": dict(samples[0].columns),
    }
    print("never to be seen")
    return [RewardResult(value=1.0, info=info) for _ in samples]


@reward("scoring_here")
class Here:
    in_process = True
    range = (0.0, 2.0)

    def __call__(self, samples):
        return [RewardResult(value=2.0, info={"pid": os.getpid(), "together": len(samples)}) for _ in samples]


@reward("scoring_warm")
class Warm:
    def __init__(self):
        self.warm = False

    def warm_up(self):
        time.sleep(0.7)
        self.warm = True

    def __call__(self, samples):
        return [float(self.warm) for _ in samples]


@reward("scoring_marks")
def marks(samples, *, folder: str):
    for s in samples:
        open(os.path.join(folder, str(s.key.index)), "w").close()
    return [1.0 for _ in samples]


@reward("scoring_shares")
def shares(samples, *, first: float = 0.0, form: str = "list"):
    import array
    found = []
    for s in samples:
        values = [first, *(float(token) for token in s.tokens[1:])]
        values = {"list": values, "array": array.array("d", values), "number": 1.0}[form]
        found.append(RewardResult(value=sum(values) if form != "number" else 1.0, token_values=values))
    return found


@reward("scoring_broken")
def broken(samples, *, how: str):
    return {
        "count": [1.0],
        "none": [],
        "text": "good",
        "nan": [float("nan")] * len(samples),
        "dict": [{"verdict": 1}] * len(samples),
        "string": ["yes"] * len(samples),
    }[how]
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("scoring") / "scoring_plugin.py"
    file.write_text(PLUGIN)
    return str(file)


def sample(response: str, index: int = 0, answer: str = "right") -> Sample:
    return replace(SAMPLES[0], key=SampleKey("9f2c", 4, 0, index), response=response, answer=answer)


def scorer_of(plugin: str, *rewards: WeightedReward, **changes: Any) -> Scorer:
    settings = {"timeout_s": 0.5, "max_no_value": 1.0, **changes}
    return Scorer(rewards, [plugin], ScoringConfig.model_validate(settings))


def test_results_come_in_the_order_of_submission(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_length"), workers=3) as scorer:
        for _ in range(2):
            lengths = [i * 7 % 31 for i in range(100)]
            results = scorer.score([sample("x" * n, i) for i, n in enumerate(lengths)])
            assert [r.value for r in results] == lengths
            assert [r.parts for r in results] == [{"letters": n} for n in lengths]
        assert scorer.finish() == []
        assert scorer.score([sample("xx")])[0].value == 2.0


def test_scoring_goes_on_while_samples_still_come(plugin: str, tmp_path: Path) -> None:
    with scorer_of(plugin, WeightedReward("scoring_marks", {"folder": str(tmp_path)})) as scorer:
        for index in range(32):
            scorer.submit(sample("", index))
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 32:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        scorer.submit(sample("", 32))
        assert [r.value for r in scorer.finish()] == [1.0] * 33


def test_several_rewards_are_summed_by_weight(plugin: str) -> None:
    rewards = [WeightedReward("scoring_right"), WeightedReward("scoring_length", {"scale": 2.0}, -0.5)]
    with scorer_of(plugin, *rewards, WeightedReward("scoring_length", {}, 0.25)) as scorer:
        right, wrong, nothing = scorer.score([sample("right", 0), sample("no", 1), sample("", 2)])
    assert (right.value, right.correct, right.status) == (1 - 5 + 1.25, True, "ok")
    assert right.parts == {
        "scoring_right": 1.0,
        "scoring_length": 10.0,
        "scoring_length/letters": 5,
        "scoring_length_2": 5.0,
        "scoring_length_2/letters": 5,
    }
    assert right.info == {"scoring_right": {"seen": "right"}}
    assert (wrong.value, wrong.correct) == (0 - 2 + 0.5, False)
    assert (nothing.value, nothing.status, nothing.correct) == (0.0, "no_answer", False)


def test_a_part_without_a_value_leaves_the_sample_without(plugin: str) -> None:
    rewards = [WeightedReward("scoring_length"), WeightedReward("scoring_signed")]
    with scorer_of(plugin, *rewards) as scorer:
        nothing, bomb, other = scorer.score([sample("", 0), sample("bomb", 1), sample("x", 2)])
    assert (nothing.value, nothing.status, nothing.parts["scoring_length"]) == (None, "abstain", 0.0)
    assert (bomb.value, bomb.status, bomb.correct) == (0.0, "refused", False)
    assert (other.value, other.status) == (0.0, "ok")


def test_the_range_is_the_weighted_sums(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_right"), WeightedReward("scoring_signed", {}, -0.5)) as scorer:
        assert scorer.range == (-1.5, 1.5)
    with scorer_of(plugin, WeightedReward("scoring_right"), WeightedReward("scoring_length")) as scorer:
        assert scorer.range is None


def test_one_reward_with_a_weight(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_right", {}, 0.5)) as scorer:
        (result,) = scorer.score([sample("right")])
        assert (result.value, result.correct, result.parts) == (0.5, True, {})
        assert scorer.range == (0.0, 0.5)


def long(tokens: list[int], index: int = 0, response: str = "xx") -> Sample:
    return replace(sample(response, index), tokens=tokens)


@pytest.mark.parametrize("form", ["list", "array"])
def test_shares_of_several_rewards_are_summed_by_weight_and_what_has_none_comes_at_the_end(
    plugin: str, form: str
) -> None:
    rewards = [
        WeightedReward("scoring_shares", {"first": 3.0, "form": form}, 0.5),
        WeightedReward("scoring_length", {}, -2.0),
        WeightedReward("scoring_shares", {"first": 1.0, "form": form}, 2.0),
    ]
    with scorer_of(plugin, *rewards) as scorer:
        found = scorer.score([long([7, 5, 4]), long([7], 1), long([7, 1], 2, "")])
    assert found[0].token_values == [0.5 * 3 + 2 * 1, 2.5 * 5, 2.5 * 4 - 2.0 * 2]
    assert found[1].token_values == [0.5 * 3 + 2 * 1 - 2.0 * 2]
    assert found[2].token_values == [0.5 * 3 + 2 * 1, 2.5 * 1]
    for result in found:
        assert result.token_values is not None
        assert result.value == pytest.approx(sum(result.token_values))


def test_shares_of_one_reward_are_weighted_with_it(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_shares", {"first": 3.0}, 0.5)) as scorer:
        (result,) = scorer.score([long([7, 5, 4])])
    assert (result.value, result.token_values) == (6.0, [1.5, 2.5, 2.0])
    with scorer_of(plugin, WeightedReward("scoring_length"), WeightedReward("scoring_right")) as scorer:
        assert scorer.score([long([7, 5, 4])])[0].token_values is None


def test_shares_that_are_no_list_cost_no_worker(plugin: str) -> None:
    with (
        scorer_of(plugin, WeightedReward("scoring_shares", {"form": "number"})) as scorer,
        pytest.raises(RlkitError, match=r"index 0\): token_values are 1\.0 \(float\); give a list"),
    ):
        scorer.score([long([7, 5, 4], index) for index in range(4)])


def test_async_functions_are_awaited(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_async")) as scorer:
        assert [r.value for r in scorer.score([sample("", i) for i in range(20)])] == [1.0] * 20


def test_a_deadline_is_for_one_sample_not_for_a_message(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_slow")) as scorer:
        results = scorer.score([sample("", i) for i in range(16)])
        assert [(r.value, r.status) for r in results] == [(1.0, "ok")] * 16


def test_what_is_slow_the_first_time_is_warmed_up(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_warm")) as scorer:
        assert scorer.score([sample("")])[0].value == 1.0


def test_workers_are_other_processes_without_torch(plugin: str, capfd: pytest.CaptureFixture[str]) -> None:
    rewards = [WeightedReward(kind) for kind in ("final_answer", "exact", "math", "scoring_where")]
    with scorer_of(plugin, *rewards) as scorer:
        (result,) = scorer.score([replace(sample("#### 1", answer="1"), columns={"level": [1, {"a": "b"}]})])
    info = result.info["scoring_where"]
    assert info["pid"] != os.getpid()
    assert (info["main"], info["heavy"], info["columns"]) == (True, [], {"level": [1, {"a": "b"}]})
    assert result.correct is True
    assert "never to be seen" not in "".join(capfd.readouterr())


def test_a_function_may_ask_to_stay_in_the_trainers_process(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_where"), WeightedReward("scoring_here", {}, 2.0)) as scorer:
        results = scorer.score([sample("", i) for i in range(10)])
    assert [r.value for r in results] == [5.0] * 10
    assert all(r.info["scoring_here"] == {"pid": os.getpid(), "together": 10} for r in results)
    assert all(r.info["scoring_where"]["pid"] != os.getpid() for r in results)


def test_a_function_of_main_stays_and_that_is_said() -> None:
    def mine(samples: Sequence[Sample]) -> list[float]:
        return [1.0 for _ in samples]

    mine.__module__ = "__main__"
    reward("scoring_of_main")(mine)
    with (
        pytest.warns(UserWarning, match="'scoring_of_main' is defined in __main__.*without a deadline"),
        Scorer([WeightedReward("scoring_of_main")], [], ScoringConfig()) as scorer,
    ):
        assert scorer.score([sample("")])[0].value == 1.0


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("count", r"reward 'scoring_broken' returned 1 results for \d samples"),
        ("none", r"reward 'scoring_broken' returned 0 results for \d samples"),
        ("text", r"returned a str \('good'\): it must return a list"),
        ("nan", r"reward 'scoring_broken' \(prompt 9f2c, step 4, index 0\): got nan"),
        ("dict", r"got \{'verdict': 1\} \(dict\)"),
        ("string", r"got yes \(str\)"),
    ],
)
def test_a_function_that_breaks_the_contract_every_time_is_to_blame(plugin: str, how: str, said: str) -> None:
    with (
        scorer_of(plugin, WeightedReward("scoring_broken", {"how": how})) as scorer,
        pytest.raises(RlkitError, match=said) as caught,
    ):
        scorer.score([sample("", i) for i in range(4)])
    assert caught.value.exit_code == 1


def test_where_faults_are_counted_none_of_them_stops_the_scoring(plugin: str) -> None:
    with scorer_of(plugin, WeightedReward("scoring_broken", {"how": "none"})) as scorer:
        for _ in range(2):  # nor the one after it
            results = scorer.score([sample("", i) for i in range(4)], lenient=True)
            assert [r.status for r in results] == ["error"] * 4
            assert re.search(r"returned 0 results for \d samples", str(results[0].info["error"]))


READERS = """
import numpy
from rlkit import reward
from rlkit.blame import DEBUG, place


def length(samples):
    return [float(len(s.tokens)) for s in samples]


def where_right(samples):
    return [1.0 - 0.01 * len(s.tokens) if s.response == s.answer else 0.0 for s in samples]


def careful(samples):
    try:
        return length(samples)
    except Exception:
        return [0.0 for _ in samples]


def array(samples):
    return [float(numpy.asarray(s.tokens).size) for s in samples]


def empty(samples):
    return [float(s.tokens == [] or not s.tokens) for s in samples]


def end(samples):
    return [float(2 in s.tokens or list(s.tokens)[-1:] == [2] or s.tokens[-1] == 2) for s in samples]


async def waits(samples):
    return length(samples)


for function in (length, where_right, careful, array, empty, end, waits):
    reward("reads_" + function.__name__)(function)


@reward("reads_inside")
class Inside:
    in_process = True

    def __call__(self, samples):
        return careful(samples)


@reward("reads_none")
def reads_none(samples):
    assert "unknown tokens" in repr(samples[0])
    return [float(s.response == s.answer) for s in samples]
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("plugin") / "readers.py"
    file.write_text(READERS)
    return str(file)


def without_tokens() -> list[Sample]:
    found = [sample(response, i) for i, response in enumerate(["wrong", "wrong", "right", "wrong"])]
    return [replace(s, tokens=UnknownTokens("which x.jsonl does not hold")) for s in found]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("name", ["length", "where_right", "careful", "array", "empty", "end", "waits", "inside"])
def test_a_reward_that_reads_tokens_nobody_has_is_named(readers: str, name: str, lenient: bool) -> None:
    said = rf"^reward 'reads_{name}' reads a response's tokens, which x\.jsonl does not hold$"
    with scorer_of(readers, WeightedReward(f"reads_{name}")) as scorer:
        with pytest.raises(TokensUnknownError, match=said) as caught:
            scorer.score(without_tokens(), lenient=lenient)
        assert caught.value.exit_code == 2
        known = [replace(s, tokens=[1, 2]) for s in without_tokens()]
        assert all(r.status == "ok" for r in scorer.score(known, lenient=lenient))


def test_a_reward_that_reads_no_tokens_needs_none(readers: str) -> None:
    with scorer_of(readers, WeightedReward("reads_none")) as scorer:
        assert [r.value for r in scorer.score(without_tokens())] == [0.0, 0.0, 1.0, 0.0]


def test_token_values_of_tokens_nobody_has_are_not_counted() -> None:
    values = RewardResult(value=1.0, token_values=[0.5, 0.5])
    assert score(Returns([values] * 4), "mine", without_tokens())[0].value == 1.0


def test_a_plugin_that_only_the_parent_can_import(tmp_path: Path) -> None:
    file = tmp_path / "fickle.py"
    file.write_text(
        f"import os\nfrom rlkit import reward\nassert os.getpid() == {os.getpid()}, 'not here'\n"
        "@reward('scoring_fickle')\ndef fickle(samples):\n    return [1.0 for _ in samples]\n"
    )
    with scorer_of(str(file), WeightedReward("scoring_fickle")) as scorer:
        with pytest.raises(RlkitError, match=r"(?s)cannot be built in a worker process.*fickle\.py.*not here"):
            scorer.score([sample("")])
        with pytest.raises(RlkitError, match="not here"):
            scorer.score([sample("")])


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"timeout_s": 0.05}, "no answer within 0.05 s"), ({"memory_gib": 0.01}, "scoring.memory_gib")],
)
def test_a_limit_that_no_sample_can_keep_is_said(plugin: str, changes: dict[str, float], said: str) -> None:
    with (
        scorer_of(plugin, WeightedReward("scoring_slow"), **changes) as scorer,
        pytest.raises(RlkitError, match=re.escape(said)),
    ):
        scorer.score([sample("", i) for i in range(2)])


def test_mistakes_in_a_reward_are_found_at_once(plugin: str) -> None:
    with pytest.raises(ConfigError, match="unknown reward 'scoring_rihgt'; did you mean 'scoring_right'"):
        scorer_of(plugin, WeightedReward("scoring_rihgt"))
    with pytest.raises(ConfigError, match="unknown key 'sacle'"):
        scorer_of(plugin, WeightedReward("scoring_length", {"sacle": 1}))
    with pytest.raises(ConfigError, match=r"nowhere\.py' does not exist"):
        scorer_of("nowhere.py", WeightedReward("exact"))


def test_closing_twice_is_harmless(plugin: str) -> None:
    scorer = scorer_of(plugin, WeightedReward("scoring_right"))
    scorer.close()
    scorer.close()
    scorer = scorer_of(plugin, WeightedReward("scoring_right"))
    scorer.submit(sample(""))
    scorer.close()
    scorer.close()


def test_what_functions_print_in_workers_is_kept_in_a_log(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(
        "import os, sys\nfrom rlkit import reward\n@reward('scoring_prints')\ndef prints(samples):\n"
        "    for s in samples:\n        print('seen', s.response)\n        print('aside', file=sys.stderr)\n"
        "        if s.response == 'dies':\n            sys.stdout.flush()\n            os._exit(3)\n"
        "    return [1.0 for _ in samples]\n"
    )
    log = tmp_path / "rewards.log"
    log.write_text("from before\n")
    with scorer_of(str(tmp_path / "prints.py"), WeightedReward("scoring_prints"), workers=1) as scorer:
        scorer.log_to(log)
        scorer.score([sample("one"), sample("two"), sample("dies"), sample("z" * 100_000)])
    text = log.read_text()
    assert text.startswith("from before\n")
    assert all(f"seen {said}\n" in text for said in ("one", "two", "dies", "z" * 100_000))
    assert "aside\n" in text
