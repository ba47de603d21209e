"""Which passes follow from what an algorithm needs: the learner makes them, the plan prints them."""

from __future__ import annotations

import pytest
import torch

from rlkit.engine.passes import plan_passes
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import TokenStats
from rlkit.interfaces.names import Stat

NEEDS = Needs(old=frozenset({"values"}), now=frozenset({"ref_logprobs", "token_kl"}))


def test_one_update_a_rollout_measures_old_and_now_in_one_pass() -> None:
    passes = plan_passes(NEEDS, 1)
    assert passes.rollout == {"values", "ref_logprobs", "token_kl"}
    assert passes.update == frozenset()
    assert plan_passes(Needs(), 1).rollout == frozenset()


@pytest.mark.parametrize("updates", [2, 7])
def test_several_updates_keep_the_log_probs_from_before_the_first(updates: int) -> None:
    for passes in (plan_passes(NEEDS, updates), plan_passes(NEEDS, 1, updates)):
        assert passes.rollout == {"values", "logprobs"}
        assert passes.update == {"ref_logprobs", "token_kl"}
    assert plan_passes(Needs(), updates).rollout == {"logprobs"}


@pytest.mark.parametrize("where", ["old", "now", "grad", "observe"])
def test_the_reference_is_asked_once_a_rollout_whoever_asks(where: str) -> None:
    needs = Needs(**{where: frozenset({"logprobs", "ref_logprobs"})})
    for updates in (1, 4):
        passes = plan_passes(needs, updates)
        assert "ref_logprobs" in passes.rollout
        assert "ref_logprobs" not in passes.update | passes.grad | passes.observe


@pytest.mark.parametrize("updates", [1, 3])
def test_where_the_reference_passes_anyway_its_log_probs_come_with_the_kl(updates: int) -> None:
    both: frozenset[Stat] = frozenset({"ref_logprobs", "token_kl"})
    passes = plan_passes(Needs(observe=both), updates)
    assert passes.observe == both
    assert passes.rollout == (frozenset() if updates == 1 else {"logprobs"})
    assert plan_passes(Needs(grad=both), updates).forwards()["reference"] == (1, 0)
    # Asked for without a KL too, they are known before.
    passes = plan_passes(Needs(old=frozenset({"ref_logprobs"}), observe=both), updates)
    assert "ref_logprobs" in passes.rollout & passes.known
    assert passes.observe == {"token_kl"}


def test_what_has_a_gradient_is_not_observed_as_well() -> None:
    passes = plan_passes(Needs(grad=frozenset({"logprobs", "entropy"}), observe=frozenset({"entropy", "token_kl"})))
    assert passes.grad == {"logprobs", "entropy"}
    assert passes.observe == {"token_kl"}


def test_a_policy_that_waits_makes_no_forward_for_its_loss() -> None:
    passes = plan_passes(Needs(observe=frozenset({"token_kl"})), critic=True, learns=False)
    assert not passes.grad | passes.observe
    assert passes.forwards() == {"policy": (1, 0), "critic": (0, 1)}


def test_what_is_known_of_the_reference_is_found_before_each_update() -> None:
    old = TokenStats(logprobs=torch.zeros(2, 3), ref_logprobs=torch.ones(2, 3))
    measured = TokenStats(logprobs=torch.full((2, 3), 2.0))
    now = plan_passes(Needs(now=frozenset({"logprobs", "ref_logprobs"})), 2).now(old, measured)
    assert now.logprobs is measured.logprobs
    assert now.ref_logprobs is old.ref_logprobs
    assert plan_passes(NEEDS, 1).now(old, TokenStats()) is old


def test_what_nobody_asked_for_before_each_update_is_not_there_rather_than_old() -> None:
    old = TokenStats(logprobs=torch.zeros(2, 3), ref_logprobs=torch.ones(2, 3))
    for needs in (Needs(), Needs(old=frozenset({"values"})), Needs(now=frozenset({"ref_logprobs"}))):
        now = plan_passes(needs, 2).now(old, TokenStats())
        assert now.logprobs is None
        assert (now.ref_logprobs is not None) == ("ref_logprobs" in needs.now)


def test_a_correction_and_a_policy_that_waits_need_the_first_log_probs() -> None:
    assert "logprobs" not in plan_passes(Needs(), 1).rollout
    assert "logprobs" in plan_passes(Needs(), 1, corrects=True).rollout
    assert "logprobs" in plan_passes(Needs(), 1, learns=False).rollout
