"""What an algorithm asks for, put together."""

from __future__ import annotations

import pytest

from rlkit.interfaces.learning import Needs

NEEDS = Needs(old=frozenset({"values"}), now=frozenset({"ref_logprobs", "token_kl"}))


def test_one_update_a_rollout_measures_old_and_now_in_one_pass() -> None:
    assert NEEDS.per_rollout(1) == {"values", "ref_logprobs", "token_kl"}
    assert Needs().per_rollout(1) == frozenset()


@pytest.mark.parametrize("updates", [2, 7])
def test_several_updates_a_rollout_keep_the_log_probs_from_before_the_first(updates: int) -> None:
    assert NEEDS.per_rollout(updates) == {"values", "logprobs"}
    assert Needs().per_rollout(updates) == {"logprobs"}
