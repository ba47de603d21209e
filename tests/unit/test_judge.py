"""The judge, held against a real server that is well, busy, broken, talks nonsense, or is silent."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from local_server import serving
from rlkit_rewards import judge as judge_module

from rlkit import registry
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import score

assert judge_module


def sample(response: str = "so it is 7", answer: str = "7", index: int = 0) -> Sample:
    key = SampleKey("p", 0, 0, index)
    return Sample(key=key, prompt="3+4=", response=response, tokens=[], answer=answer, truncated=False)


def says(words: Any, **usage: int) -> dict[str, Any]:
    counts = {"prompt_tokens": 11, "completion_tokens": 3, **usage}
    return {"choices": [{"message": {"role": "assistant", "content": words}}], "usage": counts}


def build(url: str, **options: Any) -> Any:
    quick = {"backoff_s": 0.01, "timeout_s": 10.0}
    return registry.build("rewards", "judge", {"base_url": url + "/v1", "model": "j", **quick, **options})


def judged(judge: Any, samples: Sequence[Sample]) -> list[RewardResult]:
    """As the scorer has it: checked."""
    return score(judge, "judge", samples)


def test_it_asks_as_openai_clients_do_and_reads_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving(lambda n, body: says("It is right.\nVerdict: 1")) as server:
        judge = build(server.url, api_key_env="JUDGE_KEY", request={"temperature": 0.5, "seed": 3})
        (result,) = judged(judge, [sample(response="{answer} or {prompt}: 7")])
    assert (result.value, result.correct, result.status) == (1.0, True, "ok")
    assert result.info == {
        "judge": "It is right.\nVerdict: 1",
        "cached": False,
        "prompt_tokens": 11,
        "completion_tokens": 3,
    }
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["authorization"] == "Bearer secret"
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["seed"]) == ("j", 0.5, 3)
    (message,) = request["messages"]
    for part in ("\n3+4=\n", "\n7\n", "\n{answer} or {prompt}: 7\n"):
        assert part in message["content"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("Verdict: 0", 0.0),
        ("**Verdict:** 1", 1.0),
        ("verdict: 0, no: Verdict: 1.", 1.0),
        ("Verdict: yes", 1.0),
        ("Verdict: No.", 0.0),
        ("Verdict: 0.25", 0.25),
        ("Verdict: 10", None),
        ("Verdict: -1", None),
        ("I would rather not say", None),
        ("", None),
        (None, None),
    ],
)
def test_the_last_verdict_within_the_range_counts(words: str | None, value: float | None) -> None:
    with serving(lambda n, body: says(words)) as server:
        (result,) = judged(build(server.url, retries=1), [sample()])
    assert result.value == value
    assert result.status == ("error" if value is None else "ok")
    assert len(server.requests) == (2 if value is None else 1)


def test_a_scale_of_its_own() -> None:
    with serving(lambda n, body: says("score=8/10")) as server:
        judge = build(server.url, verdict=r"score=(\d+)/10", range=(0, 10), template="Rate this: {response}")
        (result,) = judged(judge, [sample(answer="")])
    assert judge.range == (0, 10)
    assert (result.value, result.correct) == (8.0, False)
    assert server.requests[0]["messages"][0]["content"] == "Rate this: so it is 7"


def test_without_a_gold_nothing_is_asked() -> None:
    with serving(lambda n, body: says("Verdict: 1")) as server:
        results = judged(build(server.url), [sample(answer=" "), sample()])
    assert [r.status for r in results] == ["bad_gold", "ok"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("bad", [500, 503, 429, 408, b"<html>", {"choices": []}, {}, [], (200, {}, "text")])
def test_a_passing_trouble_is_overcome(bad: Any) -> None:
    with serving(lambda n, body: says("Verdict: 1") if n == 2 else bad) as server:
        (result,) = judged(build(server.url, retries=2), [sample()])
    assert result.value == 1.0
    assert len(server.requests) == 3


@pytest.mark.parametrize("bad", [500, b"nonsense", says("nonsense"), {"choices": "x"}])
def test_a_lasting_trouble_leaves_no_value_after_bounded_attempts(bad: Any) -> None:
    with serving(lambda n, body: bad) as server:
        judge = build(server.url, retries=2)
        (result,) = judged(judge, [sample()])
        assert len(server.requests) == 3
        assert (result.value, result.status) == (None, "error")
        assert server.url in result.info["error"]
        assert "attempt 3 of 3" in result.info["error"]
        judged(judge, [sample()])  # a failure is not remembered
    assert len(server.requests) == 6


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_no_attempt_can_mend_is_not_tried_again(status: int) -> None:
    with serving(lambda n, body: status) as server:
        (result,) = judged(build(server.url), [sample()])
    assert (result.status, len(server.requests)) == ("error", 1)
    assert f"status {status}" in result.info["error"]


def test_a_silent_judge_costs_its_sample_alone() -> None:
    never = threading.Event()
    with serving(lambda n, body: never if "7!" in str(body) else says("Verdict: 1")) as server:
        results = judged(build(server.url, timeout_s=0.5), [sample("7!"), sample("7")])
        never.set()
    assert [(r.value, r.status) for r in results] == [(None, "timeout"), (1.0, "ok")]
    assert "0.5 s" in results[0].info["error"]


def test_nobody_there() -> None:
    with serving(lambda n, body: 500) as server:
        pass
    (result,) = judged(build(server.url, retries=1), [sample()])
    assert (result.status, "ConnectError" in result.info["error"]) == ("error", True)


def test_a_dead_judge_is_not_asked_for_every_sample() -> None:
    with serving(lambda n, body: 400) as server:
        results = judged(build(server.url, concurrency=2), [sample(str(i)) for i in range(50)])
    assert {r.status for r in results} == {"error"}
    assert 8 <= len(server.requests) <= 10
    assert "not sent" in results[-1].info["error"]


def test_a_long_retry_after_ends_the_attempts() -> None:
    with serving(lambda n, body: (429, {"retry-after": "3600"}, {})) as server:
        (result,) = judged(build(server.url), [sample()])
    assert (result.status, len(server.requests)) == ("error", 1)


def test_an_endless_reply_is_cut() -> None:
    with serving(lambda n, body: b"x" * (17 * 2**20)) as server:
        (result,) = judged(build(server.url, retries=0), [sample()])
    assert result.status == "error"
    assert "larger than" in result.info["error"]


def test_no_more_requests_at_once_than_allowed() -> None:
    gate = threading.Barrier(3)

    def together(n: int, body: dict[str, Any]) -> Any:
        gate.wait(10)  # passes only where three are under way
        return says("Verdict: 1")

    with serving(together) as server:
        results = judged(build(server.url, concurrency=3), [sample(str(i)) for i in range(12)])
    assert [r.value for r in results] == [1.0] * 12
    assert server.most_at_once == 3


def test_the_same_question_is_paid_for_once(tmp_path: Path) -> None:
    with serving(lambda n, body: says("Verdict: 1" if "7" in str(body["messages"][0])[-400:] else "x")) as server:
        judge = build(server.url, cache=tmp_path / "verdicts")
        first = judged(judge, [sample(), sample(index=1)])
        again = judged(judge, [sample()])
        assert len(server.requests) == 1
        assert [r.info["prompt_tokens"] for r in (*first, *again)] == [11, 0, 0]
        assert [r.info["cached"] for r in (*first, *again)] == [False, True, True]
        assert (judge.usage.replies, judge.usage.prompt_tokens, judge.usage.completion_tokens) == (1, 11, 3)

        another = build(server.url, cache=tmp_path / "verdicts")
        assert judged(another, [sample()])[0].value == 1.0
        assert another.usage.replies == 0
        judged(build(server.url, cache=tmp_path / "verdicts", request={"temperature": 1.0}), [sample()])
        assert len(server.requests) == 2  # another request, another verdict

        (kept, *_) = (tmp_path / "verdicts").rglob("*.json")
        for file in (tmp_path / "verdicts").rglob("*.json"):
            file.write_text("{")
        assert judged(build(server.url, cache=tmp_path / "verdicts"), [sample()])[0].value == 1.0
        assert len(server.requests) == 3
        assert kept.exists()


def test_unusable_replies_are_counted_in_the_cost() -> None:
    with serving(lambda n, body: says("Verdict: 1" if n else "hm")) as server:
        judge = build(server.url)
        judged(judge, [sample()])
    assert (judge.usage.replies, judge.usage.completion_tokens) == (2, 6)


# Several servers


def several(*servers: Any, **options: Any) -> Any:
    return build("http://unused", base_url=[f"{server.url}/v1" for server in servers], **options)


def shown(server: Any) -> list[str]:
    """The responses that it was asked of."""
    return [re.search(r"<response>\n(.*)\n</response>", body["messages"][0]["content"])[1] for body in server.requests]


def test_samples_are_spread_over_several_judges() -> None:
    gate = threading.Barrier(4)

    def together(n: int, body: dict[str, Any]) -> Any:
        gate.wait(10)  # two at each of the two
        return says("Verdict: 1")

    with serving(together) as one, serving(together) as other:
        results = judged(several(one, other, concurrency=2), [sample(str(i)) for i in range(16)])
    assert [r.value for r in results] == [1.0] * 16
    assert one.most_at_once == other.most_at_once == 2
    assert sorted(shown(one) + shown(other)) == sorted(map(str, range(16)))


@pytest.mark.filterwarnings("ignore:a server is left out")
@pytest.mark.parametrize("bad", [500, 429, "gone"])
def test_what_one_judge_cannot_answer_another_does(bad: Any) -> None:
    with serving(lambda n, body: bad) as one, serving(lambda n, body: says("Verdict: 1")) as other:
        judge = several(one, other, concurrency=2, backoff_s=5.0)
        if bad == "gone":
            one.close()
        results = judged(judge, [sample(str(i)) for i in range(20)])
    assert [r.value for r in results] == [1.0] * 20
    assert len(one.requests) <= 2, "it rests"
    assert {*shown(other)} == {*map(str, range(20))}


@pytest.mark.filterwarnings("ignore:a server is left out")
def test_a_judge_that_is_back_gets_work_again() -> None:
    held = threading.Event()

    def slow(n: int, body: dict[str, Any]) -> Any:
        held.wait(10)
        return says("Verdict: 1")

    def once_broken(n: int, body: dict[str, Any]) -> Any:
        if n == 3:
            held.set()
        return says("Verdict: 1") if n else 503

    with serving(once_broken) as one, serving(slow) as other:
        results = judged(several(one, other, concurrency=1), [sample(str(i)) for i in range(8)])
    assert [r.value for r in results] == [1.0] * 8
    assert len(one.requests) >= 4


def test_a_silent_judge_of_two_costs_its_samples_alone() -> None:
    never = threading.Event()
    with serving(lambda n, body: never) as one, serving(lambda n, body: says("Verdict: 1")) as other:
        with pytest.warns(UserWarning, match=r"left out until it is back: .* no answer within 0.5 s"):
            results = judged(several(one, other, concurrency=1, timeout_s=0.5), [sample(str(i)) for i in range(6)])
        never.set()
    assert [r.status for r in results].count("timeout") == 1
    assert [r.value for r in results].count(1.0) == 5


@pytest.mark.filterwarnings("ignore:a server is left out")
def test_no_judge_of_two() -> None:
    with serving(lambda n, body: 500) as one, serving(lambda n, body: 500) as other:
        results = judged(several(one, other, retries=2), [sample(str(i)) for i in range(4)])
        assert {(r.value, r.status) for r in results} == {(None, "error")}
        assert "attempt 3 of 3" in results[0].info["error"]
        assert len(one.requests) + len(other.requests) == 12
        results = judged(several(one, other, backoff_s=9.0, timeout_s=0.6), [sample(str(i)) for i in range(40)])
    # Which of the two limits, the same number here, comes first is chance.
    ends = ("no server has been of use for 0.6 s", "no answer within 0.6 s")
    assert any(said in results[-1].info["error"] for said in ends)


def test_nonsense_is_a_sample_s_fault_and_no_server_s() -> None:
    with serving(lambda n, body: says("hm")) as one, serving(lambda n, body: says("hm")) as other:
        (result,) = judged(several(one, other, retries=1), [sample()])
    assert (result.status, "no verdict in it" in result.info["error"]) == ("error", True)
    assert sorted([len(one.requests), len(other.requests)]) == [0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "http://"),
        ({"base_url": []}, "at least 1"),
        ({"base_url": ["http://h/v1", "http://h/v1/"]}, "http://h/v1 stands there twice"),
        ({"base_url": "http://h/v1/chat/completions"}, "leave /chat/completions away"),
        ({"template": "Is {answer} right?"}, "{response}"),
        ({"verdict": "yes|no"}, "group"),
        ({"verdict": "("}, "not a regular expression"),
        ({"range": (1, 0)}, "below"),
        ({"request": {"stream": True}}, "stream"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE"),
        ({"concurrency": 0}, "concurrency"),
        ({"modle": "x"}, "did you mean 'model'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=None) as error:
        registry.build("rewards", "judge", {"base_url": "http://h/v1", "model": "j", **options})
    assert message in str(error.value)


def test_it_works_where_an_event_loop_runs() -> None:
    import asyncio

    async def notebook() -> list[RewardResult]:
        return judged(build(server.url), [sample()])

    with serving(lambda n, body: says("Verdict: 1")) as server:
        assert asyncio.run(notebook())[0].value == 1.0
