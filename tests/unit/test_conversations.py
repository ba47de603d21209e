"""Trajectories from prompts to what is learnt from: tokens as sampled, context as context, limits, rewards, losses."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rlkit import config as configs
from rlkit import registry
from rlkit.cli import main
from rlkit.config import ConversationConfig, DataConfig, ModelConfig, PluginRef, ScoringConfig
from rlkit.data import Problem, as_problems
from rlkit.data.prompts import prompt_tokens
from rlkit.embedded import resolve
from rlkit.engine.models import load_tokenizer
from rlkit.environments.pool import Environments
from rlkit.errors import ConfigError, PluginError
from rlkit.generation.acting import declared, glue_of, setting_of
from rlkit.generation.assemble import assemble
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import Scored, draws
from rlkit.interfaces.generation import Completion, Request, Requests, SamplingParams
from rlkit.loop.describe import describe
from rlkit.loop.dynamic_sampling import Gatherer
from rlkit.loop.rollouts import restored, saved, take
from rlkit.loop.state import Place
from rlkit.records.checkpoints import MANIFEST, Manifest
from rlkit.records.folder import RunFolder
from rlkit.scoring import Scorer, WeightedReward

HERE = str(Path(__file__).parents[1] / "acting.py")
TOKENIZER = load_tokenizer(ModelConfig(path="embedded:xs", dtype="float32"))
END = TOKENIZER.eos_token_id
DATA = DataConfig(path="")
PARAMS = SamplingParams(max_tokens=60)


class Says:
    """A sampler whose responses follow from seed and prompt; what it was asked is kept."""

    def __init__(self, longest: int = 8) -> None:
        self.longest = longest
        self.asked: list[Request] = []
        self.batches: list[list[int]] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        self.batches.append([request.seed for request in requests])
        order = list(range(len(requests)))
        random.Random(len(self.batches)).shuffle(order)
        for at in order:
            yield at, self.answer(requests[at])

    def answer(self, request: Request) -> Completion:
        self.asked.append(request)
        rng = random.Random(f"{request.seed} {list(request.prompt_tokens)}")
        # Digits of one token each, as no tokenizer would have to spell them.
        tokens = [rng.choice([5, 6, 7, 8, 9]) for _ in range(rng.randint(1, self.longest))]
        tokens = [*tokens, END][: request.params.max_tokens]
        return Completion(tokens=tokens, logprobs=[-0.5] * len(tokens), truncated=tokens[-1] != END, version=3)


class Streams(Says):
    """Takes them as they come, one at a time, the newest first."""

    def stream(self, requests: Requests) -> Iterator[tuple[int, Completion]]:
        waiting: list[tuple[int, Request]] = []
        count = 0
        while (more := requests.take(wait=not waiting)) is not None or waiting:
            for request in more or ():
                waiting.append((count, request))
                count += 1
            if waiting:
                number, request = waiting.pop()
                yield number, self.answer(request)


def problems(count: int, **columns: Any) -> list[Problem]:
    found = []
    for number in range(count):
        text = f"{number + 1}+{2 * number}="
        tokens = prompt_tokens(text, DATA, TOKENIZER)
        found.append(Problem(text, text, tokens, str(3 * number + 1), columns, text, str(3 * number + 1)))
    return found


@contextmanager
def collecting(
    sampler: Any,
    kind: str = "sums",
    rewards: Sequence[WeightedReward] = (),
    context: int = 200,
    lenient: bool = False,
    **given: Any,
) -> Iterator[Collector]:
    registry.load([HERE])
    conversation = {key: given.pop(key) for key in list(given) if key in ConversationConfig.model_fields}
    ref = PluginRef(kind=kind, **given)
    environment = declared(ref)
    assert environment is not None
    with ExitStack() as stack:
        scorer = stack.enter_context(
            Scorer(rewards, [HERE], ScoringConfig(max_no_value=float(lenient) or 0.05), environment)
        )
        config = ConversationConfig(**conversation)
        glue = glue_of(config, environment, DATA, TOKENIZER, [END])
        setting = setting_of(ref, environment, config, glue, context, [HERE], stack)
        yield Collector(sampler, scorer, TOKENIZER, 7, setting=setting)


def collected(sampler: Any, count: int = 3, params: SamplingParams = PARAMS, **given: Any) -> list[Scored]:
    columns = given.pop("columns", {})
    with collecting(sampler, **given) as collector:
        return collector.collect(draws(problems(count, **columns), 2, 1), params, "train", lenient=True)[0]


def test_what_was_sampled_is_kept_and_what_was_said_stands_between() -> None:
    sampler = Says()
    found = collected(sampler)
    answers = [(list(request.prompt_tokens), sampler.answer(request).tokens) for request in list(sampler.asked)]
    for one in found:
        assert one.turns is not None
        assert len(one.turns) == 3
        tokens, prompt = list(one.completion.tokens), list(one.problem.tokens)
        for number, (start, end) in enumerate(one.turns):
            assert ([*prompt, *tokens[:start]], tokens[start:end]) in answers
            after = one.turns[number + 1][0] if number < 2 else len(tokens)
            said = TOKENIZER.decode(tokens[end:after])
            assert (said.endswith("=") and "+" in said) if number < 2 else said == ""
        assert one.turns[-1][1] == len(tokens)
    rollout = assemble(found)
    for row, one in enumerate(found):
        mask = torch.zeros(rollout.mask.shape[1], dtype=torch.bool)
        for start, end in one.turns or ():
            mask[start:end] = True
        assert torch.equal(rollout.mask[row], mask)
        assert torch.equal(rollout.sampler_logprobs[row] != 0, mask)
        assert rollout.turns is not None
        assert rollout.turns[row] == list(one.turns or ())
    assert rollout.version.tolist() == [3] * len(found)


def test_no_token_is_encoded_that_was_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is given what the environment says, and nothing that the model has said."""
    encoded: list[str] = []
    usual = type(TOKENIZER).__call__

    def record(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        encoded.extend([text] if isinstance(text, str) else text)
        return usual(self, text, *args, **kwargs)

    monkeypatch.setattr(type(TOKENIZER), "__call__", record)
    found = collected(Says())
    questions = {one.problem.text for one in found}
    assert encoded
    assert all(text in questions or (text.endswith("=") and text.count("+") == 1) for text in encoded), encoded


def test_samplers_that_stream_and_those_that_do_not_give_the_same() -> None:
    by_turns, streamed = Says(), Streams()
    one, other = collected(by_turns, count=5), collected(streamed, count=5)
    assert one == other
    assert len({request.seed for request in by_turns.asked}) == len(by_turns.asked) == 5 * 2 * 3
    # Two parts, so that one is sampled while the other waits.
    assert [len(batch) for batch in by_turns.batches] == [5] * 6


def test_how_long_an_environment_takes_changes_no_batch() -> None:
    quick, slow = Says(), Says()
    assert collected(quick, count=4) == collected(slow, count=4, pause=0.02)
    assert quick.batches == slow.batches


def test_samples_of_a_prompt_begin_alike() -> None:
    sampler = Says(longest=1)
    found = collected(sampler, count=6)
    second = {
        one.key: TOKENIZER.decode(one.completion.tokens[one.turns[0][1] : one.turns[1][0]])
        for one in found
        if one.turns
    }
    pairs = [[said for key, said in second.items() if key.prompt_id == prompt.id] for prompt in problems(6)]
    assert all(one == other for one, other in pairs)
    assert len({one for one, _ in pairs}) > 1


@pytest.mark.parametrize("sampler", [Says, Streams])
def test_rewards_on_the_way_stand_on_their_turns_last_tokens(sampler: Any) -> None:
    for one in collected(sampler(), count=4):
        said = one.result.info["environment"]
        rewards = [turn["reward"] for turn in said["turns"]]
        assert one.result.value == sum(rewards)
        assert said["counts"] == {"right": sum(rewards)}
        assert [turn["info"] for turn in said["turns"]] == [{"at": 1}, {"at": 2}, {"at": 3}]
        if any(rewards[:-1]):
            assert one.result.token_values is not None
            assert one.turns is not None
            assert [one.result.token_values[end - 1] for _, end in one.turns] == rewards
            assert sum(one.result.token_values) == sum(rewards)
        else:
            assert one.result.token_values is None
    assert all(one.result.token_values is None for one in collected(sampler(), at_the_end=True))


def test_reward_functions_judge_the_last_turn_and_are_added() -> None:
    found = collected(Says(), rewards=[WeightedReward("length", {"max_tokens": 40, "buffer": 20}, 0.5)])
    for one in found:
        last = list(one.completion.tokens)[slice(*(one.turns or ())[-1])]
        assert one.last == TOKENIZER.decode(last, skip_special_tokens=True)
        assert one.sample.response == one.last
        assert one.result.value == pytest.approx(0.5 * one.result.parts["length"] + one.result.parts["environment"])


@pytest.mark.parametrize("sampler", [Says, Streams])
def test_a_trajectory_is_cut_at_its_limits(sampler: Any) -> None:
    by_turns = collected(sampler(), max_turns=2)
    assert all(len(one.turns or ()) == 2 and one.completion.truncated for one in by_turns)
    assert {one.result.info["environment"]["ended"] for one in by_turns} == {"max_turns"}
    asked = sampler()
    with collecting(asked) as collector:
        for limit in range(1, 24):
            params = replace(PARAMS, max_tokens=limit)
            found, _ = collector.collect(draws(problems(3), 2, 1), params, "train", lenient=True)
            assert max(len(one.completion.tokens) for one in found) <= limit
            assert all(len(request.prompt_tokens) + request.params.max_tokens <= 5 + limit for request in asked.asked)
            for one in found:
                cut = one.result.info["environment"]["ended"] == "tokens"
                assert one.completion.truncated == cut == (len(one.turns or ()) < 3 or one.completion.tokens[-1] != END)
                # What is said last is the model's: nobody learns from what comes after.
                assert (one.turns or ())[-1][1] == len(one.completion.tokens)
    short = collected(sampler(longest=9), turn_tokens=3)
    assert all(end - start <= 3 for one in short for start, end in one.turns or ())
    assert {one.result.info["environment"]["ended"] for one in short} <= {"tokens", "done"}


def test_what_is_said_at_the_start_belongs_to_the_prompt_and_counts() -> None:
    sampler = Says()
    found = collected(sampler, opens="12345", params=replace(PARAMS, max_tokens=30), context=4 + 30)
    for one, wanted in zip(found, draws(problems(3), 2, 1), strict=True):
        assert one.problem.text == wanted.problem.text + "12345"
        assert list(one.problem.tokens) == prompt_tokens(one.problem.text, DATA, TOKENIZER)
        assert len(one.problem.tokens) + len(one.completion.tokens) <= 4 + 30
    assert assemble(found).prompt_tokens[0].tolist() == found[0].problem.tokens
    none = collected(Says(), opens="12345", params=replace(PARAMS, max_tokens=5), context=9)
    assert {one.result.status for one in none} == {"error"}
    assert "leaves no room to answer: raise sampling.max_tokens" in none[0].result.info["environment"]["error"]


@pytest.mark.parametrize("sampler", [Says, Streams])
def test_so_many_are_under_way_and_no_more(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    most, live = [0], set()
    start, end = Environments.start, Environments.end

    def started(self: Environments, number: int, *args: Any) -> None:
        live.add(number)
        most[0] = max(most[0], len(live))
        start(self, number, *args)

    def ended(self: Environments, number: int) -> None:
        live.discard(number)
        end(self, number)

    monkeypatch.setattr(Environments, "start", started)
    monkeypatch.setattr(Environments, "end", ended)
    assert len(collected(sampler(), count=4, at_once=3)) == 8
    assert most == [3]
    assert not live


def test_where_all_that_are_under_way_have_ended_others_begin() -> None:
    found = collected(Streams(), kind="odd", count=2, columns={"odd": "fine"}, at_once=1)
    assert [one.result.value for one in found] == [1.0] * 4


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("raises", "KeyError: 'no such room'"),
        ("over at once", "start says that all is over before the model has acted"),
        ("nan", "nan"),
        ("number", "3"),
    ],
)
def test_an_environment_that_fails_costs_its_sample(odd: str, said: str) -> None:
    rows = [*problems(3, odd=odd), *problems(6, odd="fine")[3:]]
    with collecting(Says(), kind="odd") as collector:
        found, _ = collector.collect(draws(rows, 1, 1), PARAMS, "train", lenient=True)
        for one in found[:3]:
            assert (one.result.value, one.result.status) == (None, "error")
            assert said in one.result.info["environment"]["error"]
            assert one.result.info["environment"]["error"].startswith("environment 'odd'")
        assert [one.result.value for one in found[3:]] == [1.0] * 3
        rollout = assemble(found)
        assert rollout.valid.tolist() == [False] * 3 + [True] * 3
        assert not rollout.mask[:3].any()
        metrics = describe(found, rollout)
        assert metrics["samples/no_value"] == metrics["samples/error"] == 3
        with pytest.raises(PluginError, match=r"3 of 6 samples have no value.*the environment: 3 error"):
            collector.collect(draws(rows, 1, 1), PARAMS, "train")
        if odd in ("nan", "number"):
            with pytest.raises(PluginError, match="environment 'odd'"):
                collector.collect(draws(rows[:3], 1, 1), PARAMS, "train")


def test_one_that_never_ends_is_cut() -> None:
    found = collected(
        Says(), kind="odd", columns={"odd": "never ends"}, max_turns=5, params=replace(PARAMS, max_tokens=150)
    )
    assert {len(one.turns or ()) for one in found} == {5}
    assert {one.result.info["environment"]["ended"] for one in found} == {"max_turns"}
    metrics = describe(found, assemble(found))
    assert metrics["environment/turns"] == 5
    assert metrics["environment/cut"] == 1
    assert metrics["environment/errors"] == 0


@pytest.mark.parametrize("sampler", [Says, Streams])
def test_an_environment_hears_where_its_turns_are_over(sampler: Any) -> None:
    found = collected(sampler(), kind="hears", count=4, columns={"odd": "fine"}, max_turns=2, at_once=3)
    for one in found:
        said = one.result.info["environment"]
        assert (said["ended"], one.completion.truncated, len(one.turns or ())) == ("max_turns", True, 2)
        assert [turn["reward"] for turn in said["turns"]] == [0.25, 1.25]
        assert said["turns"][-1]["info"] == {"stepped": one.last, "unheard": ""}
        assert (said["counts"], said["last"]) == ({"heard": 1}, "cut in ''")
        assert (one.result.value, one.result.correct) == (1.5, True)
        assert one.result.token_values is not None
        assert one.result.token_values[-1] == 1.25
        assert sum(one.result.token_values) == 1.5
    metrics = describe(found, assemble(found))
    assert metrics["environment/heard"] == metrics["environment/cut_turns"] == metrics["response/truncated"] == 1
    assert collected(sampler(), kind="hears", count=4, columns={"odd": "fine"}, max_turns=2, at_once=8) == found


@pytest.mark.parametrize("sampler", [Says, Streams])
def test_an_environment_hears_the_turn_in_which_its_tokens_were_over(sampler: Any) -> None:
    unheard, between = 0, 0
    with collecting(sampler(), kind="hears") as collector:
        for limit in range(1, 24):
            params = replace(PARAMS, max_tokens=limit)
            found, _ = collector.collect(draws(problems(3, odd="fine"), 2, 1), params, "train", lenient=True)
            for one in found:
                said = one.result.info["environment"]
                assert (said["ended"], one.completion.truncated) == ("tokens", True)
                in_a_turn = one.completion.tokens[-1] != END
                assert said["turns"][-1]["info"]["unheard"] == (one.last if in_a_turn else "")
                assert ("stepped" in said["turns"][-1]["info"]) == (not in_a_turn)
                assert one.result.value == 1 + 0.25 * (len(said["turns"]) - in_a_turn)
                unheard, between = unheard + in_a_turn, between + (not in_a_turn)
    assert unheard > 10
    assert between > 10


def test_one_that_ends_a_trajectory_itself_hears_of_no_cut() -> None:
    for one in collected(Says(), kind="hears", columns={"odd": "done"}, max_turns=1):
        said = one.result.info["environment"]
        assert (one.result.value, said["ended"], said["counts"]) == (0.25, "done", {})


def test_what_an_environment_says_to_an_earlier_turn_is_not_its_last_word() -> None:
    found = collected(Says(), kind="odd", count=6, columns={"odd": "never ends"}, params=replace(PARAMS, max_tokens=12))
    in_a_turn = [one for one in found if one.completion.tokens[-1] != END]
    assert any(len(one.turns or ()) > 1 for one in in_a_turn)
    assert {one.result.info["environment"]["last"] for one in in_a_turn} == {""}


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("raises", "environment 'hears': cut raised:"),
        ("nan", "environment 'hears': cut: its reward is nan (float); it must be a finite number"),
        ("number", "environment 'hears': cut returned int (3); it must return text or an rlkit.Observation"),
        ("too much", "environment 'hears': cut: its rewards add up to 4.25, outside the range (0.0, 3.0)"),
    ],
)
def test_what_fails_where_it_is_cut_costs_its_sample(odd: str, said: str) -> None:
    with collecting(Says(), kind="hears", max_turns=1) as collector:
        rows = [*problems(2, odd=odd), *problems(4, odd="fine")[2:]]
        found, _ = collector.collect(draws(rows, 1, 1), PARAMS, "train", lenient=True)
        for one in found[:2]:
            assert (one.result.value, one.result.status) == (None, "error")
            assert one.result.info["environment"]["ended"] == "lost"
            assert one.result.info["environment"]["error"].startswith(said)
        assert [one.result.value for one in found[2:]] == [1.25] * 2
        if odd != "raises":  # it has broken its contract
            with pytest.raises(PluginError, match="environment 'hears': cut"):
                collector.collect(draws(rows[:2], 1, 1), PARAMS, "train")


def test_an_environment_may_ask_the_question_itself() -> None:
    """Rows without a prompt are told apart by their other columns; one for which it says nothing is lost."""
    registry.load([HERE])
    environment = declared(PluginRef(kind="odd"))
    rows: list[dict[str, Any]] = [{"prompt": "", "answer": "", "odd": odd} for odd in ("asks", "silent", "asks")]
    rows += [{"prompt": None, "answer": "", "odd": "asks", "level": level} for level in (1, 2)]
    found = as_problems(rows, DATA.model_copy(update={"answer": None}), TOKENIZER, "rows", environment).problems
    assert [problem.tokens for problem in found] == [[]] * 5
    assert found[0].id == found[2].id
    assert len({problem.id for problem in found}) == 4
    with collecting(Says(), kind="odd") as collector:
        scored, _ = collector.collect(draws(found, 1, 1), PARAMS, "train", lenient=True)
    lost = scored.pop(1)
    assert (lost.result.value, lost.result.status) == (None, "error")
    assert "the row's prompt is empty, and its start says nothing" in lost.result.info["environment"]["error"]
    assert [one.result.value for one in scored] == [1.0] * 4
    for one in scored:
        assert one.problem.text == "2+2="
        assert list(one.problem.tokens) == prompt_tokens("2+2=", DATA, TOKENIZER)
    with pytest.raises(ConfigError, match="rows, row 1: the prompt is empty"):
        as_problems(rows, DATA.model_copy(update={"answer": None}), TOKENIZER, "rows")


def test_one_that_is_lost_before_it_has_spoken_ends_no_run() -> None:
    """Of no weights, it is taken for a sample of those that the sampler has."""
    rows = [*problems(2, odd="over at once"), *problems(4, odd="fine")[2:]]
    config = configs.load("embedded_xs", ["batch.prompts_per_step=4", "batch.samples_per_prompt=2"])
    with collecting(Says(), kind="odd", lenient=True) as collector:
        gatherer = Gatherer(collector, [], 2, PARAMS, lambda _: True, False, 0)
        taken = take(config, gatherer, rows, 1, Place(), version=3)
    scored = taken.gathered.scored
    assert sorted(len(one.completion.tokens) == 0 for one in scored) == [False] * 4 + [True] * 4
    assert {one.completion.version for one in scored} == {3}
    again = restored(saved(taken), rows).gathered.scored
    assert [(one.problem.tokens, one.turns, list(one.completion.tokens)) for one in again] == [
        (one.problem.tokens, one.turns, list(one.completion.tokens)) for one in scored
    ]


def test_a_question_that_the_data_do_not_have_has_no_gold(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", configs.resolve(configs.load("embedded_keys", [])))
    shutil.copytree(resolve("embedded:xs-turns"), run.checkpoints / "step-00000001/hf")
    (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
    asked = CliRunner().invoke(main, ["sample", str(run.path), "1,2="])
    assert asked.exit_code == 1
    assert re.search(r"^no value \(\S+:\d+: ValueError: the gold must be .*\) · lost$", asked.output, re.MULTILINE)
    assert "the environment failed each time. It was given the prompt alone, without gold" in asked.output
    assert "Traceback" not in asked.output


def test_a_runs_model_acts_in_its_environment_when_it_is_asked_and_measured(tmp_path: Path) -> None:
    settings = ["environment={kind: sums, turns: 2}", f"plugins=[{HERE}]", "reward=[]", "sampling.max_tokens=40"]
    run = RunFolder.create(tmp_path / "run", configs.resolve(configs.load("embedded_xs", settings)))
    shutil.copytree(resolve("embedded:xs"), run.checkpoints / "step-00000001/hf")
    (run.checkpoints / "step-00000001" / MANIFEST).write_text(Manifest().text())
    asked = CliRunner().invoke(
        main, ["sample", str(run.path), "34+47=", "-n", "2", "--temperature", "0", "--trust-remote-code"]
    )
    assert asked.exit_code == 0, asked.output
    lines = asked.output.splitlines()
    assert lines[:5] == lines[5:]
    assert (lines[0], lines[1][:2], lines[3][:2]) == ("34+47=", "> ", "> ")
    assert re.fullmatch(r"\d\+\d=", lines[2])
    assert re.fullmatch(r"reward [012] · done", lines[4])
    measured = ["eval", "--model", str(run.path), "--data", "embedded:arithmetic", "--limit", "3", "-n", "2"]
    done = CliRunner().invoke(main, [*measured, "-s", "max_tokens=40", "--out", str(tmp_path / "found")])
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "found/results.json").read_text()).values()
    assert {"mean@2", "pass@2"} <= found["metrics"].keys()
    assert found["settings"]["environment"]["kind"] == "sums"
    assert found["statuses"] == {"ok": 6}
