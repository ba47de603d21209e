"""A step read back, and what is surprising in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from inspected import EOS, Sampled, config, conversation, letters, loaded, two_plus, write, wrong

from rlkit.errors import ConfigError, RlkitError
from rlkit.inspection.steps import Response, choose_step, find_prompts, in_common
from rlkit.inspection.surprises import KINDS, find_all
from rlkit.inspection.words import label
from rlkit.interfaces.learning import Rollout, Targets
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.records.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", config())


def test_a_step_reads_back(folder: RunFolder) -> None:
    result = RewardResult(value=0.5, status="ok", correct=False, parts={"format": 0.25}, info={"answer": "é<b>"})
    write(folder, 1, [
        [letters("ab", result=result, noisy=0.75, credit=[0.5, 0.25, -0.5], value=[0.5, 1.0, 1.25]),
         letters("c", result=wrong(), credit=[0.125, -0.25], value=[0.5, 0.625], truncated=True)],
        [letters("d", result=RewardResult(value=None, status="timeout"))],
    ])  # fmt: skip
    step = loaded(folder)
    assert (step.algorithm, step.number, step.has_critic, step.notes) == ("vimpo", 1, False, [])
    first, second = step.groups
    assert (first.prompt_id, first.prompt, first.gold, first.baseline) == ("0000ab", "0+2=", "4", 0.375)
    assert (second.baseline, [r.index for r in first.responses]) == (None, [0, 1])
    one, two, lost = step.responses
    assert (one.reward, one.clean_reward, one.correct, one.parts) == (0.75, 0.5, False, {"format": 0.25})
    assert (one.info, one.text, one.tokens) == ({"answer": "é<b>"}, "ab", [2, 3, EOS])
    assert one.series == {"credit": [0.5, 0.25, -0.5], "value": [0.5, 1.0, 1.25], "sampler_logprobs": [-0.5] * 3}
    assert two.series["credit"] == [0.125, -0.25]
    assert (two.truncated, two.valid, lost.valid) == (True, True, False)
    assert (lost.reward, lost.clean_reward, lost.status, lost.series) == (None, None, "timeout", {})
    assert "".join(piece.text for piece in one.pieces) == "ab"


def test_what_is_not_finite_is_a_gap(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab", credit=[float("nan"), float("inf"), 1.0])]])
    assert loaded(folder).responses[0].series["credit"] == [None, None, 1.0]


def test_tokens_that_the_policy_did_not_choose_have_no_numbers(folder: RunFolder) -> None:
    write(folder, 1, [[letters("abc", advantages=[0.5, 0.0, 0.0, 0.5], others=(1, 2))]])
    (response,) = loaded(folder).responses
    assert response.series["advantages"] == [0.5, None, None, 0.5]
    assert response.one_number == 0.5


def test_a_conversation_is_read_in_stretches(folder: RunFolder) -> None:
    write(folder, 1, [[conversation(credit=[0.25, 0.0, -0.5, 0.125]), two_plus(credit=[0.0] * 5)]])
    one, plain = loaded(folder).responses
    assert [(s.start, s.end, s.turn, s.reward, s.credit) for s in one.stretches] == [
        (0, 1, 1, 0.5, 0.25), (1, 2, None, None, None), (2, 4, 2, 0.0, -0.375),
    ]  # fmt: skip
    assert one.series["credit"] == [0.25, None, -0.5, 0.125]
    assert one.last_words == "well done"
    assert one.noted == {"environment": {"ended": "done", "counts": {"calls": 1.0}}}
    assert (plain.stretches, plain.last_words, plain.noted) == ([], "", {"answer": "4"})


def test_one_number_is_told_from_one_for_each_token(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab", advantages=[0.5] * 3), letters("b", advantages=[-1.0] * 2)]])
    write(folder, 2, [[letters("ab", advantages=[0.5, 0.5, 0.25]), letters("b", advantages=[-1.0] * 2)]])
    write(folder, 3, [[Sampled([EOS], "", advantages=[0.5])]])
    assert [loaded(folder, step).one_number for step in (1, 2, 3)] == [True, False, False]
    assert [r.one_number for r in loaded(folder, 1).responses] == [0.5, -1.0]


def test_the_algorithms_words(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab", advantages=[0.5] * 3)]])
    write(folder, 2, [[letters("ab", advantages=[1.0, 2.0, 3.0], value=[0.1] * 3)]], values=True)
    write(folder, 3, [[letters("ab", credit=[0.5] * 3, value=[0.1] * 3)]])
    grpo, ppo, vimpo = (loaded(folder, step) for step in (1, 2, 3))
    assert label(grpo, "advantages") == "advantage, one number for all tokens"
    assert label(ppo, "advantages") == "advantage A_t"
    assert label(ppo, "value") == "critic's value V(s_t)"
    assert label(vimpo, "value") == "implied value V(s_t)"
    assert (vimpo.responses[0].credited, ppo.responses[0].credited) == ("credit", "advantages")
    assert "values" not in ppo.responses[0].series


def test_a_step_without_a_record_of_credit_says_so(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab")]], credit=False)
    (note,) = loaded(folder).notes
    assert "no record of what the algorithm credited" in note
    assert loaded(folder).responses[0].credited is None


def test_the_last_step_is_shown_that_was_learnt_from(folder: RunFolder) -> None:
    """While a run goes on, its newest samples are written before what they are credited."""
    write(folder, 1, [[letters("ab")]])
    write(folder, 2, [[letters("ab")]], credit=False)
    assert choose_step([folder], None) == 1
    assert choose_step([folder], 2) == 2
    folder.credit_file(1).unlink()
    assert choose_step([folder], None) == 2


def test_an_unknown_step_is_answered_by_those_there_are(folder: RunFolder) -> None:
    for step in (1, 2, 3, 7):
        write(folder, step, [[letters("ab")]])
    with pytest.raises(ConfigError, match=r"no samples of step 5; it has those of 1 to 3, 7$"):
        choose_step([folder], 5)


def test_an_unknown_prompt_is_answered_by_some_that_exist(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab")] for _ in range(5)], ["1+1=", "\x1b[31m2+2=", "3+3=", "4+4=", "5+5="])
    groups = loaded(folder).groups
    with pytest.raises(ConfigError, match=r"no prompt of this step begins with 'ff'; .*0000ab \('1\+1='\)") as caught:
        find_prompts(groups, "ff")
    assert "\x1b" not in str(caught.value)
    assert [g.prompt for g in find_prompts(groups, "0002")] == ["3+3="]
    assert len(find_prompts(groups, "000")) == 5


def test_a_damaged_file_is_named(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab")]])
    folder.rollout_file(1).write_bytes(folder.rollout_file(1).read_bytes()[:-9])
    with pytest.raises(RlkitError, match=r"step-000001\.parquet is damaged .*: delete it") as caught:
        loaded(folder)
    assert caught.value.exit_code == 1


def test_a_damaged_credit_is_left_out_and_noted(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab", credit=[0.5, 0.25, -0.5])]])
    folder.credit_file(1).write_bytes(folder.credit_file(1).read_bytes()[:-9])
    step = loaded(folder)
    assert step.responses[0].text == "ab"
    assert step.responses[0].credited is None
    (note,) = step.notes
    assert re.search(r"credit/step-000001\.parquet is damaged .*: delete it, and rlkit does without$", note)


def test_two_runs_meet_on_the_prompts_that_both_saw(tmp_path: Path) -> None:
    one, two = (RunFolder.create(tmp_path / name, config()) for name in ("one", "two"))
    write(one, 1, [[letters("a")], [letters("b")], [letters("c")]])
    write(two, 1, [[letters("d")], [letters("e")]])
    pairs = in_common(loaded(one), loaded(two))
    assert [(a.responses[0].text, b.responses[0].text) for a, b in pairs] == [("a", "d"), ("b", "e")]
    other = loaded(two)
    for group in other.groups:
        group.prompt_id = "f" + group.prompt_id
    with pytest.raises(
        ConfigError, match="one and two saw other prompts in step 1: they differ in seed, data or batch"
    ):
        in_common(loaded(one), other)


def test_a_response_is_shown_as_it_is_without_its_decoder(folder: RunFolder) -> None:
    write(folder, 1, [[letters("ab")]])
    assert isinstance(loaded(folder).responses[0], Response)
    assert "decode" not in repr(loaded(folder).responses[0])


def test_credit_must_be_a_number_a_token_under_a_name_of_its_own(folder: RunFolder) -> None:
    write(folder, 1, [[two_plus()]])
    rollout = Rollout(
        keys=[SampleKey("a", 1, 0, 0)], prompt_tokens=[torch.tensor([1])], tokens=torch.ones(1, 3, dtype=torch.long),
        length=torch.tensor([3]), mask=torch.ones(1, 3, dtype=torch.bool), valid=torch.tensor([True]),
        group=torch.tensor([0]), reward=torch.ones(1), clean_reward=torch.ones(1), sampler_logprobs=torch.zeros(1, 3),
        version=torch.zeros(1), truncated=torch.tensor([False]),
    )  # fmt: skip
    for credit, said in (
        ({"mine": torch.ones(1)}, r"credit 'mine' is \[1\]; expected \[b, T\], \[1, 3\]"),
        ({"row": torch.ones(1, 3)}, "'row', which is taken"),
        ({"advantages": torch.ones(1, 3)}, "'advantages', which is taken"),
    ):
        with pytest.raises(RlkitError, match=said):
            folder.log_credit(2, rollout, [([0], Targets(credit=credit))])


def surprising(folder: RunFolder, *groups: Sequence[Sampled], **more: Any) -> dict[str, set[int]]:
    write(folder, 1, groups, **more)
    found = find_all(loaded(folder))
    assert found.keys() == KINDS.keys()
    return found


def test_reward_without_answer(folder: RunFolder) -> None:
    none, blank = wrong(status="no_answer", info={}), RewardResult(value=1.0, info={"answer": " "})
    found = surprising(folder, [
        letters("ab"),
        letters("ab", result=none, noisy=1.0),  # flipped
        letters("ab", result=none),  # no reward either
        letters("ab", result=blank),
        letters("ab", result=RewardResult(value=1.0)),  # others have an answer in info, this one does not
        letters(" "),
    ])  # fmt: skip
    assert found["reward-without-answer"] == {1, 3, 4, 5}


def test_of_several_rewards_each_that_reads_answers_must_have_found_one(folder: RunFolder) -> None:
    def scored(value: float, **info: Any) -> Sampled:
        return letters("ab", result=RewardResult(value=value, info=info))

    found = surprising(folder, [
        scored(1.2, math={"answer": "4"}),
        scored(1.2, format={"open": 1}),  # paid by the other reward alone
        scored(0.2, format={"open": 1}),
        scored(1.2, math={"answer": "4"}, format={"open": 1}),
    ])  # fmt: skip
    assert found["reward-without-answer"] == {1}


def test_a_reward_that_never_notes_answers_says_nothing_of_them(folder: RunFolder) -> None:
    found = surprising(folder, [letters("ab", result=RewardResult(value=1.0)), letters("b", result=wrong(info={}))])
    assert found["reward-without-answer"] == set()


def test_credit_at_the_end_and_on_white_space(folder: RunFolder) -> None:
    found = surprising(folder, [
        letters("ab", credit=[0.1, 0.2, 0.3]),
        letters("ab", credit=[0.1, 0.3, 0.2]),
        letters("a b", credit=[0.1, 0.3, 0.2, 0.0]),
        letters("ab\n", credit=[0.1, 0.1, 0.3, 0.2]),
        letters("ab", credit=[0.3, 0.1, 0.3]),  # no token stands out
        Sampled([EOS], "", credit=[1.0]),  # nor here
        letters("ab", credit=[-0.3, -0.2, -0.1]),
        letters("ab", credit=[0.1, 0.2, 0.3], valid=False),
    ])  # fmt: skip
    assert found["credit-at-end"] == {0}  # of the seventh, no token has credit: the last merely loses least
    assert found["credit-on-space"] == {2, 3}


def test_one_number_for_all_tokens_stands_out_nowhere(folder: RunFolder) -> None:
    found = surprising(folder, [letters("a b", advantages=[0.5] * 4)])
    assert found["credit-at-end"] == found["credit-on-space"] == set()


def test_longest(folder: RunFolder) -> None:
    found = surprising(folder, [letters("abc"), letters("a")], [letters("ab"), letters("ab")])
    assert found["longest"] == {0}
    assert surprising(folder, [letters("abc"), letters("a")], [letters("abc"), letters("ab")])["longest"] == set()
    assert surprising(folder, [letters("ab"), letters("cd")])["longest"] == set()


def test_no_value(folder: RunFolder) -> None:
    lost = [
        letters("a", result=RewardResult(value=None, status=s)) for s in ("abstain", "error", "timeout", "bad_gold")
    ]
    kept = [letters("a", result=wrong(status=status)) for status in ("ok", "no_answer", "refused")]
    assert surprising(folder, [*lost, *kept])["no-value"] == {0, 1, 2, 3}


def test_verdict_and_reward_disagree(folder: RunFolder) -> None:
    found = surprising(folder, [
        letters("a"),
        letters("a", result=RewardResult(value=0.2, correct=True)),
        letters("a", result=wrong(value=0.9)),
        letters("a", result=wrong(value=0.2)),
        letters("a", result=wrong()),
        letters("a", noisy=0.0),  # noise is no disagreement
        letters("a", result=wrong(), noisy=1.0),
        letters("a", result=RewardResult(value=None, status="error")),
    ])  # fmt: skip
    assert found["disagreement"] == {1, 2}
    assert found["noise"] == {5, 6}


def test_verifiers_disagree(folder: RunFolder) -> None:
    """math and numeric read answers, so they are held against each other; format does not."""

    def both(math: float, numeric: float, shape: float, found: bool = True) -> RewardResult:
        read = {"math": {"answer": "4"}, "numeric": {"answer": "4"} if found else {}}
        parts = {"math": math, "numeric": numeric, "format": shape, "format/open": 1.0}
        return RewardResult(value=math, correct=math > 0, parts=parts, info=read)

    found = surprising(folder, [
        letters("a", result=both(1, 1, 1)),
        letters("a", result=both(1, 0, 1)),
        letters("a", result=both(0, 1, 0)),
        letters("a", result=both(1, 1, 0)),
        letters("a", result=both(0, 0, 1)),
        letters("a", result=both(1, 0, 1, found=False)),  # it found none, which is a verdict
    ])  # fmt: skip
    assert found["disagreement"] == {1, 2, 5}


def test_equal_rewards_disagree_with_nothing(folder: RunFolder) -> None:
    assert surprising(folder, [letters("a"), letters("b")])["disagreement"] == set()
