"""Reward functions written for other projects, each the way that project's users write them, used unchanged."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from local_server import serving
from rlkit_rewards import function as function_module

from rlkit import config as configs
from rlkit import registry
from rlkit.config import ScoringConfig
from rlkit.errors import ConfigError, RlkitError, TokensUnknownError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey, UnknownTokens
from rlkit.scoring import Scorer, WeightedReward, score

assert function_module

TRL = """
    import re

    def right(completions, answer, **kwargs):
        found = [re.search(r"#### (.+)", text) for text in completions]
        return [1.0 if f and f[1] == gold else 0.0 for f, gold in zip(found, answer)]

    def chatty(prompts, completions, solution, level, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        assert all(prompt[-1]["role"] == "user" for prompt in prompts)
        return [float(text.endswith(gold)) * lv for text, gold, lv in zip(contents, solution, level)]

    def named(completions, completion_ids, answer):
        return [float(text.endswith(gold)) for text, gold in zip(completions, answer)]

    async def awaited(prompts, completions, completion_ids, **kwargs):
        import asyncio
        await asyncio.sleep(0)
        return [float(len(ids)) for ids in completion_ids]

    def only_sums(prompts, completions, source, **kwargs):
        return [1.0 if s == "sums" else None for s in source]

    def fixed(completions, bonus, **kwargs):
        return [bonus for _ in completions]

    def needs_a_column(completions, difficulty, **kwargs):
        return [0.0 for _ in completions]

    def one_number(completions, **kwargs):
        return 0.5

    def too_few(completions, **kwargs):
        return [1.0]

    def reads_messages(completions, **kwargs):
        return [len(c[0]["content"]) for c in completions]

    def raises(completions, **kwargs):
        raise KeyError("broken verifier")
"""

VERL = """
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        if data_source != "gsm8k":
            raise NotImplementedError(data_source)
        answer = solution_str.split("#### ")[-1]
        if answer == ground_truth:
            return 1.0
        return 0.1 if "####" in solution_str else 0

    def detailed(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
        right = solution_str.endswith(ground_truth)
        return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str[-3:], "digits": len(ground_truth),
                "index": extra_info["index"], "weight": kwargs.get("weight")}

    def verdict(data_source, solution_str, ground_truth, extra_info=None):
        return solution_str.endswith(ground_truth)

    async def asked(data_source, solution_str, ground_truth, extra_info=None):
        import asyncio
        await asyncio.sleep(0.001)
        return len(solution_str)

    def own_loop(data_source, solution_str, ground_truth, extra_info=None):
        import asyncio
        return asyncio.run(asked(data_source, solution_str, ground_truth))

    def batched(data_sources, solution_strs, ground_truths, extra_infos, **kwargs):
        return [{"score": float(s.endswith(g))} for s, g in zip(solution_strs, ground_truths)]

    def pieces(data_source, solution_str, ground_truth, extra_info=None):
        return [0.0, 1.0]

    def no_score(data_source, solution_str, ground_truth, extra_info=None):
        return {"reward": 1.0}
"""

OPENRLHF = """
    import torch

    def reward_func(queries, prompts, labels, **kwargs):
        rewards = torch.tensor([float(q[len(p):].endswith(l)) for q, p, l in zip(queries, prompts, labels)])
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"length": [len(q) for q in queries]}}

    def renamed(q, p, l):
        return torch.tensor([[1.0] for _ in q])

    def short(queries, prompts, labels):
        return {"rewards": torch.zeros(1)}

    def nameless(queries, prompts, labels):
        return {"scores": torch.zeros(len(queries))}
"""

VERIFIERS = """
    async def correct_answer(completion, answer) -> float:
        return 1.0 if answer in completion[-1]["content"] else 0.0

    def by_state(state, info):
        return float(state["answer"] == "7") + info["bonus"]

    def as_text(prompt, completion, answer, **kwargs):
        return len(completion.removesuffix(answer))

    def with_parser(completion, answer, parser):
        return 1.0
"""

AREAL = """
    def gsm8k_reward_fn(prompt, completions, prompt_ids, completion_ids, answer, **kwargs):
        return int(completions.split("#### ")[-1] == answer) + 0.1 * len(completion_ids)

    def own_names(_prompt, _text, _pids, _ids, level, **kwargs):
        return level
"""


def sample(response: str, answer: str = "7", index: int = 0, **columns: Any) -> Sample:
    key = SampleKey("p", 0, 0, index)
    tokens = list(range(len(response)))
    return Sample(
        key=key, prompt="3+4=", response=response, tokens=tokens, answer=answer, truncated=False, columns=columns
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name, text in (("trl", TRL), ("verl", VERL), ("openrlhf", OPENRLHF), ("vf", VERIFIERS), ("areal", AREAL)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    return tmp_path


def build(path: Path, name: str, style: str, **options: Any) -> Any:
    return registry.build("rewards", "function", {"path": str(path), "name": name, "style": style, **options})


def values(reward: Any, samples: Sequence[Sample]) -> list[float | None]:
    """As the scorer has it: checked."""
    return [r.value for r in results(reward, samples)]


def results(reward: Any, samples: Sequence[Sample]) -> list[RewardResult]:
    return score(reward, "function", samples)


def test_trl(file: Path) -> None:
    two = [sample("#### 7"), sample("#### 8", index=1)]
    assert values(build(file / "trl.py", "right", "trl"), two) == [1.0, 0.0]
    assert values(build(file / "trl.py", "awaited", "trl"), [sample("four"), sample("5five")]) == [4.0, 5.0]
    reward = build(file / "trl.py", "chatty", "trl", chat=True)
    assert values(reward, [sample("so 7", level=3), sample("7 so", level=2)]) == [3.0, 0.0]
    masked = results(build(file / "trl.py", "only_sums", "trl"), [sample("7", source="sums"), sample("7", source="x")])
    assert [(r.value, r.status) for r in masked] == [(1.0, "ok"), (None, "abstain")]
    assert values(build(file / "trl.py", "fixed", "trl", kwargs={"bonus": 0.5}), two) == [0.5, 0.5]


def test_tokens_that_nobody_has_are_missed_by_those_who_read_them(file: Path) -> None:
    """Such as a file's of responses: what is only passed on is not read."""
    unknown = [replace(sample(text), tokens=UnknownTokens("which FILE does not hold")) for text in ("#### 7", "8")]
    assert values(build(file / "trl.py", "right", "trl"), unknown) == [1.0, 0.0]
    assert values(build(file / "trl.py", "named", "trl"), unknown) == [1.0, 0.0]
    for name, style in (("awaited", "trl"), ("gsm8k_reward_fn", "areal")):
        with pytest.raises(TokensUnknownError, match="reward 'function' reads a response's tokens, which FILE does"):
            values(build(file / f"{style}.py", name, style), unknown)


def test_verl(file: Path) -> None:
    given = [sample("#### 7", data_source="gsm8k"), sample("#### 8", data_source="gsm8k"), sample("7", data_source="m")]
    plain = results(build(file / "verl.py", "compute_score", "verl"), given)
    assert [r.value for r in plain] == [1.0, 0.1, None]
    assert plain[2].status == "error"
    assert "NotImplementedError: m" in plain[2].info["error"]

    reward = build(file / "verl.py", "detailed", "verl", kwargs={"weight": "w"}, range=(-1, 1))
    right, wrong = results(reward, [sample("= 7", extra_info={"index": 4}), sample("= 8", extra_info={"index": 5})])
    assert (right.value, right.correct, wrong.value, wrong.correct) == (1.0, True, -1.0, False)
    assert right.parts == {"digits": 1.0, "index": 4.0}
    assert right.info == {"pred": "= 7", "weight": "w"}
    assert reward.range == (-1.0, 1.0)

    assert values(build(file / "verl.py", "verdict", "verl"), [sample("7"), sample("8")]) == [1.0, 0.0]
    for name in ("asked", "own_loop"):
        reward = build(file / "verl.py", name, "verl")
        assert [values(reward, [sample("7"), sample("1234")]) for _ in range(2)] == [[1.0, 4.0]] * 2
    assert values(build(file / "verl.py", "batched", "verl_batch"), [sample("7"), sample("8")]) == [1.0, 0.0]


def test_openrlhf(file: Path) -> None:
    given = [sample("so 7"), sample("8")]
    first, second = results(build(file / "openrlhf.py", "reward_func", "openrlhf"), given)
    assert (first.value, second.value) == (1.0, 0.0)
    assert (first.parts, first.info) == ({"length": 8.0}, {"score": 1.0})
    assert values(build(file / "openrlhf.py", "renamed", "openrlhf"), given) == [1.0, 1.0]


def test_verifiers(file: Path) -> None:
    reward = build(file / "vf.py", "correct_answer", "verifiers", chat=True)
    assert values(reward, [sample("it is 7"), sample("8")]) == [1.0, 0.0]
    assert values(build(file / "vf.py", "by_state", "verifiers"), [sample("x", info={"bonus": 2})]) == [3.0]
    assert values(build(file / "vf.py", "as_text", "verifiers"), [sample("1237")]) == [3.0]


def test_areal(file: Path) -> None:
    reward = build(file / "areal.py", "gsm8k_reward_fn", "areal")
    assert values(reward, [sample("#### 7"), sample("#### 8")]) == pytest.approx([1.6, 0.6])
    assert values(build(file / "areal.py", "own_names", "areal"), [sample("x", level=3)]) == [3.0]


def test_openrlhf_over_http() -> None:
    def answer(n: int, body: dict[str, Any]) -> Any:
        rewards = [float(q.endswith(label)) for q, label in zip(body["query"], body["labels"], strict=True)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"n": len(rewards)}}

    with serving(answer) as server:
        reward = registry.build("rewards", "function", {"style": "openrlhf_http", "url": server.url})
        many = values(reward, [sample("so 7"), sample("8"), *[sample("7")] * 98])
    assert reward.in_process
    assert many == [1.0, 0.0, *[1.0] * 98]
    assert sorted(len(body["query"]) for body in server.requests) == [36, 64]
    assert server.requests[0].keys() == {"query", "prompts", "labels"}
    first = min(server.requests, key=lambda body: body["query"] != ["3+4=so 7"])
    assert first["prompts"][0] == "3+4="


@pytest.mark.parametrize("bad", [404, {"rewards": [1.0]}, {"scores": [1.0, 1.0]}, {"rewards": ["a", "b"]}, b"x", []])
def test_a_server_s_nonsense_gives_no_value(bad: Any) -> None:
    with serving(lambda n, body: bad) as server:
        options = {"style": "openrlhf_http", "url": server.url, "timeout_s": 0.4}
        got = results(registry.build("rewards", "function", options), [sample("7"), sample("8")])
    assert [r.status for r in got] == ["error"] * 2
    assert server.url in got[0].info["error"]


@pytest.mark.parametrize(
    ("module", "name", "style", "fits"),
    [
        ("verl", "compute_score", "trl", "verl"),
        ("verl", "detailed", "areal", "verl"),
        ("verl", "batched", "verl", "verl_batch"),
        ("trl", "right", "verl", "trl"),
        ("trl", "chatty", "areal", "trl"),
        ("openrlhf", "reward_func", "trl", "openrlhf"),
        ("vf", "correct_answer", "trl", "verifiers"),
        ("vf", "by_state", "openrlhf", "verifiers"),
        ("areal", "gsm8k_reward_fn", "trl", "areal"),
    ],
)
def test_a_signature_of_another_style_names_it(file: Path, module: str, name: str, style: str, fits: str) -> None:
    with pytest.raises(ConfigError, match=f"set style: {fits}$") as error:
        build(file / f"{module}.py", name, style)
    assert f"{module}.py:{name}(" in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "options", "message"),
    [
        ("vf", "with_parser", {"style": "verifiers"}, "wants 'parser'"),
        ("openrlhf", "renamed", {"style": "areal"}, "by place, and it takes fewer"),
        ("openrlhf", "renamed", {"style": "verl"}, "would not see the response"),
        ("verl", "compute_score", {"style": "verl", "kwargs": {"wieght": 1}}, "no parameter 'wieght'"),
        ("verl", "compute_scoer", {"style": "verl"}, "did you mean 'compute_score'"),
        ("trl", "re", {}, "is a module"),
        ("missing", "f", {}, "does not exist"),
    ],
)
def test_what_cannot_be_called_is_named_at_the_start(
    file: Path, module: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        registry.build("rewards", "function", {"path": str(file / f"{module}.py"), "name": name, **options})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give path and name"),
        ({"path": "no.such.module", "name": "f"}, "module 'no.such.module' does not exist"),
        ({"style": "openrlhf_http"}, "give url"),
        ({"style": "openrlhf_http", "url": "b"}, "http://"),
        ({"style": "verl", "path": "json", "name": "loads", "chat": True}, "chat"),
        ({"path": "json", "name": "loads", "range": (1, 1)}, "below"),
        ({"style": "trll"}, "style"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.build("rewards", "function", options)
    assert message in str(error.value)


def test_file_and_function_are_short_for_it(file: Path) -> None:
    short = configs.load("embedded_xs", [f"reward={file / 'trl.py'}:right"])
    whole = configs.load("embedded_xs", [f"reward={{kind: function, path: {file / 'trl.py'}, name: right}}"])
    assert configs.resolve(short).reward == configs.resolve(whole).reward
    several = configs.load(
        "embedded_xs", [f"reward=[{{kind: '{file / 'trl.py'}:named', weight: 0.5, range: [0, 1]}}, final_answer]"]
    )
    first, second = configs.resolve(several).reward
    assert (first.kind, first.weight, first.options["name"], first.options["range"]) == (
        "function",
        0.5,
        "named",
        [0, 1],
    )
    assert second.kind == "final_answer"
    styled = configs.load("embedded_xs", [f"reward={file / 'verl.py'}:compute_score", "reward.style=verl"])
    assert configs.resolve(styled).reward[0].options["style"] == "verl"


def test_a_file_that_fails_to_import_shows_where(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("x = 1\nimport no_such_package\n")
    with pytest.raises(ConfigError, match="line 2"):
        build(tmp_path / "bad.py", "f", "trl")


@pytest.mark.parametrize(
    ("module", "name", "style", "message"),
    [
        ("trl", "needs_a_column", "trl", "'difficulty'.*columns level.*another style"),
        ("trl", "one_number", "trl", "must return a list.*of style verl, verifiers or areal"),
        ("trl", "too_few", "trl", "1 rewards for 2 samples"),
        ("verl", "pieces", "verl", "of style trl or verl_batch"),
        ("verl", "no_score", "verl", "without 'score' .its keys: reward."),
        ("openrlhf", "short", "openrlhf", "one number for each of 2 samples"),
        ("openrlhf", "nameless", "openrlhf", "without 'rewards' .its keys: scores."),
    ],
)
def test_what_shows_only_in_the_call_is_named_there(
    file: Path, module: str, name: str, style: str, message: str
) -> None:
    with pytest.raises(RlkitError, match=f"(?s){message}"):
        results(build(file / f"{module}.py", name, style), [sample("7", level=1), sample("8", level=2)])


def test_text_where_messages_were_expected_is_explained(file: Path) -> None:
    with pytest.raises(TypeError) as error:
        build(file / "trl.py", "reads_messages", "trl")([sample("7")])
    assert any("chat: true" in note for note in error.value.__notes__)
    (result,) = results(build(file / "vf.py", "correct_answer", "verifiers"), [sample("7")])
    assert "chat: true" in result.info["error"]


def test_a_range_and_a_place_that_the_function_declares(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "def f(completions): return [2.0] * len(completions)\nf.range = (0, 2)\nf.in_process = True\n"
    )
    reward = build(tmp_path / "f.py", "f", "trl")
    assert (reward.range, reward.in_process) == ((0, 2), True)
    assert results(reward, [sample("7")])[0].correct
    assert build(tmp_path / "f.py", "f", "trl", range=(0, 4)).range == (0, 4)


def test_it_runs_in_worker_processes(file: Path) -> None:
    """Where its own alarms work, and what it raises leaves no value."""
    (file / "alarm.py").write_text(
        textwrap.dedent("""
            import signal, time

            def slow(data_source, solution_str, ground_truth, extra_info=None):
                def ring(*_):
                    raise TimeoutError("own alarm")
                signal.signal(signal.SIGALRM, ring)
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                if solution_str == "loop":
                    time.sleep(60)
                return float(solution_str == ground_truth)
        """)
    )
    options = {"path": str(file / "alarm.py"), "name": "slow", "style": "verl"}
    config = ScoringConfig(workers=1, timeout_s=10, max_no_value=1.0)
    with Scorer([WeightedReward("function", options)], [], config) as scorer:
        got = scorer.score([sample("7"), sample("loop"), sample("8")])
    assert [(r.value, r.status) for r in got] == [(1.0, "ok"), (None, "error"), (0.0, "ok")]
    assert "own alarm" in got[1].info["error"]


SEES = """
    import json

    def trl(prompts, completions, answer, **kwargs):
        return [{"score": 1.0, "seen": [p, a]} for p, a in zip(prompts, answer)]

    def verl(data_source, solution_str, ground_truth, extra_info=None):
        return {"score": 1.0, "seen": ["", ground_truth]}

    def openrlhf(queries, prompts, labels):
        assert labels == [{"target": 3}], labels
        return [1.0]

    async def verifiers(prompt, completion, answer, state):
        assert state["prompt"] == prompt and state["answer"] == answer
        return {"score": 1.0, "seen": [prompt, answer]}

    def areal(prompt, completions, prompt_ids, completion_ids, solution):
        return {"score": 1.0, "seen": [prompt, solution]}
"""
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+4?"}]


@pytest.mark.parametrize("style", ["trl", "verl", "openrlhf", "verifiers", "areal"])
def test_a_function_gets_the_golds_cell(tmp_path: Path, style: str) -> None:
    (tmp_path / "sees.py").write_text(textwrap.dedent(SEES))
    one = replace(sample("7", answer='{"target": 3}'), gold={"target": 3})
    (result,) = results(build(tmp_path / "sees.py", style, style), [one])
    assert result.value == 1.0
    assert style == "openrlhf" or result.info["seen"][1] == {"target": 3}


@pytest.mark.parametrize("style", ["trl", "verifiers"])
@pytest.mark.parametrize(
    ("question", "messages"),
    [
        (MESSAGES, MESSAGES),
        ("3+4?", [{"role": "user", "content": "3+4?"}]),
        (None, [{"role": "user", "content": "3+4="}]),
    ],
)
def test_a_function_that_wants_messages_gets_the_rows_own(
    tmp_path: Path, style: str, question: Any, messages: Any
) -> None:
    (tmp_path / "sees.py").write_text(textwrap.dedent(SEES))
    one = replace(sample("7"), question=question)
    (result,) = results(build(tmp_path / "sees.py", style, style, chat=True), [one])
    assert result.info["seen"] == [messages, "7"]
    (result,) = results(build(tmp_path / "sees.py", style, style), [one])
    assert result.info["seen"] == ["3+4=", "7"]
