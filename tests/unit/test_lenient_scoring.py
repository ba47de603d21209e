"""A lenient scorer, as evaluations use it: whatever a reward function does, each sample has a result, and none ends the
run; the strict form raises."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.config import ScoringConfig
from rlkit.errors import RlkitError
from rlkit.interfaces.rewards import Sample, SampleKey
from rlkit.scoring import Scorer, WeightedReward

PLUGIN = """
import time
from rlkit import reward


# On samples whose response is `bad`.
def fails(samples, how):
    if any(s.response == "bad" for s in samples):
        if how == "raise":
            raise ValueError("my own mistake")
        if how == "hang":
            time.sleep(600)
        if how == "nan":
            return [float("nan") if s.response == "bad" else 1.0 for s in samples]
        if how == "count":
            return [1.0 for s in samples if s.response != "bad"]
        if how == "no list":
            return None
    return [1.0 for _ in samples]


@reward("lenient_fails")
def fails_there(samples, *, how: str):
    return fails(samples, how)


@reward("lenient_fails_here")
class FailsHere:
    in_process = True

    def __init__(self, *, how: str):
        self.how = how

    def __call__(self, samples):
        return fails(samples, self.how)


@reward("lenient_length")
def length(samples):
    return [float(len(s.response)) for s in samples]
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("lenient") / "lenient_plugin.py"
    file.write_text(PLUGIN)
    return str(file)


def sample(response: str, index: int = 0) -> Sample:
    key = SampleKey("9f2c", 4, 0, index)
    return Sample(key=key, prompt="", response=response, tokens=[], answer="", truncated=False)


def scorer_of(plugin: str, *rewards: WeightedReward, **changes: Any) -> Scorer:
    settings = {"timeout_s": 0.5, "max_no_value": 1.0, **changes}
    return Scorer(rewards, [plugin], ScoringConfig.model_validate(settings))


HOWS = ["raise", "nan", "count", "no list"]


@pytest.mark.parametrize("kind", ["lenient_fails", "lenient_fails_here"])
@pytest.mark.parametrize("how", HOWS)
def test_lenient_gives_one_result_a_sample_where_a_function_fails_on_some(plugin: str, kind: str, how: str) -> None:
    samples = [sample("bad" if index == 5 else "fine", index) for index in range(12)]
    with scorer_of(plugin, WeightedReward(kind, {"how": how}), workers=1, max_no_value=0.05) as scorer:
        results = scorer.score(samples, lenient=True)
        assert len(results) == 12
        assert (results[5].value, results[5].status) == (None, "error")
        said = {"raise": "my own mistake", "nan": "got nan", "count": "returned", "no list": "must return a list"}
        assert said[how] in results[5].info["error"]
        others = results[:5] + results[6:]
        if kind == "lenient_fails_here" or how in ("raise", "nan"):
            assert [(r.value, r.status) for r in others] == [(1.0, "ok")] * 11
        else:  # of those it was called with together, whose result is whose cannot be told
            assert {(r.value, r.status) for r in others} <= {(1.0, "ok"), (None, "error")}
        # It goes on.
        assert [r.value for r in scorer.score([sample("fine")] * 3)] == [1.0] * 3


@pytest.mark.parametrize("kind", ["lenient_fails", "lenient_fails_here"])
@pytest.mark.parametrize("how", HOWS)
def test_lenient_gives_results_where_a_function_fails_on_all_and_the_strict_form_raises(
    plugin: str, kind: str, how: str
) -> None:
    samples = [sample("bad", index) for index in range(4)]
    with scorer_of(plugin, WeightedReward(kind, {"how": how}), max_no_value=0.5) as scorer:
        assert [(r.value, r.status) for r in scorer.score(samples, lenient=True)] == [(None, "error")] * 4
        with pytest.raises(RlkitError, match=kind):
            scorer.score(samples)
        assert [(r.value, r.status) for r in scorer.score(samples, lenient=True)] == [(None, "error")] * 4


def test_lenient_gives_results_where_a_function_hangs_and_the_strict_form_raises(plugin: str) -> None:
    some = [sample("bad" if index == 1 else "fine", index) for index in range(4)]
    every = [sample("bad", index) for index in range(2)]
    with scorer_of(plugin, WeightedReward("lenient_fails", {"how": "hang"})) as scorer:
        results = scorer.score(some, lenient=True)
        assert [(r.value, r.status) for r in results] == [(1.0, "ok"), (0.0, "refused"), (1.0, "ok"), (1.0, "ok")]
        results = scorer.score(every, lenient=True)
        assert [(r.value, r.status) for r in results] == [(0.0, "refused")] * 2
        with pytest.raises(RlkitError, match="scored none of 2 samples"):
            scorer.score(every)


def test_lenient_with_several_rewards_has_no_value_where_one_has_none(plugin: str) -> None:
    rewards = [WeightedReward("lenient_length"), WeightedReward("lenient_fails_here", {"how": "raise"})]
    with scorer_of(plugin, *rewards) as scorer:
        bad, fine = scorer.score([sample("bad", 0), sample("fine", 1)], lenient=True)
    assert (bad.value, bad.status, bad.parts["lenient_length"]) == (None, "error", 3.0)
    assert (fine.value, fine.status) == (5.0, "ok")
