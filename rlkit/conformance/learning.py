"""Algorithms held against their contract: the two laws, gradients, needs, state, ranks, and that they learn.

An advantage or a loss by itself is held against it beside a known partner.
"""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from rlkit import registry
from rlkit.config.resolving import check_fit
from rlkit.conformance import bandit, partners
from rlkit.conformance.batches import Case, bare, permuted, table, widened
from rlkit.conformance.findings import Broken, Check, shown
from rlkit.conformance.needs import reads_what_it_declares
from rlkit.conformance.subject import Rigour, Subject, flat, gradients, known, losses, numbers, remember, state_differs
from rlkit.errors import ConfigError
from rlkit.interfaces.learning import Algorithm, State
from rlkit.loop.calls import not_finite, wrong_loss, wrong_targets
from rlkit.registry import Plugin


def checks(plugin: Plugin, options: dict[str, Any], rigour: Rigour) -> Iterator[Check]:
    """Of an algorithm, an advantage or a loss."""

    def build() -> Algorithm:
        made = registry.build(plugin.kind, plugin.name, options)
        if plugin.kind == "advantages":
            return partners.around_advantage(made)
        if plugin.kind == "losses":
            return partners.around_loss(made)
        if not isinstance(made, Algorithm):
            raise Broken(f"its factory returned {shown(made)}: it must return an rlkit.Algorithm")
        return made

    subject = Subject(build, rigour)

    def check(says: str, run: Callable[[Subject], str | None], first: bool = False) -> Check:
        return Check(says, lambda: run(subject), first)

    yield check("it makes targets and a loss of a batch", _runs, first=True)
    yield check("what it declares is what it reads", reads_what_it_declares)
    yield check("the losses of a batch's parts add up to that of the whole", _cut)
    yield check("padding, invalid samples and environment tokens do not count", _absent)
    yield check("the order of the rows does not count", _order)
    yield check("more padding changes nothing", _padding)
    yield check("gradients are finite, and only at the policy's tokens", _gradients)
    yield check("a part without tokens weighs nothing", _weightless)
    yield check("what it remembers is in `state`, so a resumed run goes on as it would have", _state)
    yield check("two ranks make the update that one makes", _ranks)
    yield check("it learns a small bandit", _learns)


# The checks


def _runs(subject: Subject) -> None:
    try:
        check_fit(subject.build(), "the algorithm")
    except ConfigError as error:
        raise Broken(str(error)) from error
    case = subject.cases[0]
    algorithm = subject.build()
    if not isinstance(kept := algorithm.keep_group([0.0, 1.0]), (bool, int)):
        raise Broken(f"its keep_group([0.0, 1.0]) says {shown(kept)}: it must say True or False")
    targets = algorithm.advantage(case.batch, {})
    if wrong := wrong_targets(targets, case.batch, algorithm.gives) or not_finite(targets, case.batch):
        raise Broken(f"its advantage {wrong}")
    for name in ("advantages", "returns", "scores"):
        found = getattr(targets, name)
        if found is not None and found.requires_grad:
            raise Broken(f"`{name}` carries a gradient: detach it")
    if wrong := wrong_loss(algorithm.policy_loss(case.new, case.batch, targets)):
        raise Broken(f"its loss {wrong}")


def _cut(subject: Subject) -> None:
    chance = random.Random(subject.rigour.seed)
    for number, case in enumerate(subject.cases):
        algorithm, batch = subject.build(), case.batch
        state = known(algorithm, case)
        targets = algorithm.advantage(batch, state)
        count = len(batch.rollout.keys)
        if number % 2:  # as corrections weigh tokens; and parts may be empty
            rng = torch.Generator().manual_seed(chance.randrange(2**31))
            targets.importance = torch.rand(batch.mask.shape, generator=rng, dtype=case.new.get("logprobs").dtype)
            parts = chance.randint(1, 5)
            owner = [chance.randrange(parts) for _ in range(count)]
        else:
            parts, owner = 2, [row % 2 for row in range(count)]
        rows = chance.sample(range(count), count)
        cut = [[row for row in rows if owner[row] == part] for part in range(parts)]

        def where(cut: list[list[int]] = cut, case: Case = case) -> str:
            said = " | ".join(", ".join(map(str, part)) or "none" for part in cut)
            return f"Rows of the parts: {said}.\n{table(case)}"

        whole, metrics = losses(algorithm, case.new, batch, targets)
        if not whole.isfinite():
            raise Broken(f"its loss is {float(whole)}.\n{table(case)}")
        total, totals = torch.zeros((), dtype=whole.dtype), {name: [0.0, 0.0] for name in metrics}
        for part in cut:
            loss, some = losses(algorithm, case.new.rows(part), batch.rows(part), targets.rows(part))
            total = total + loss
            if some.keys() != metrics.keys():
                odd = ", ".join(sorted(some.keys() ^ metrics.keys()))
                raise Broken(
                    f"a part has other metrics than the whole ({odd}): give the same names each time. {where()}"
                )
            for name, (value, weight) in numbers(some).items():
                sums = totals[name]
                totals[name] = (
                    [max(sums[0], value) if sums[1] else value, 1.0]
                    if name.endswith("_max")
                    else [sums[0] + value, sums[1] + weight]
                )
        if not subject.same(total, whole):
            raise Broken(
                f"the loss of the whole batch is {float(whole):.6g}, and of its parts together {float(total):.6g}: so "
                "what is learnt would change with the memory setting. A loss is a sum over the rows it is given, "
                f"divided by counts of the whole batch (batch.n_tokens, batch.n_sequences). {where()}"
            )
        for a, b in zip(gradients(total, case), gradients(whole, case), strict=True):
            if not subject.same(a, b):
                raise Broken(f"the gradients of the parts do not add up to that of the whole. {where()}")
        wholes = numbers(metrics)
        for name, pair in wholes.items():
            of = slice(0, 1) if name.endswith("_max") else slice(0, 2)
            if not subject.same(torch.tensor(totals[name][of]), torch.tensor(pair[of])):
                raise Broken(
                    f"the metric {name!r} is {pair[0]:.6g} with weight {pair[1]:.6g} in the whole and "
                    f"{totals[name][0]:.6g} with {totals[name][1]:.6g} in the parts together. {where()}"
                )
        one, other = (remember(algorithm, sums, copy.deepcopy(state)) for sums in (totals, wholes))
        if key := state_differs(subject, one, other):
            raise Broken(
                f"after_update leaves another {key!r} in the state with the parts than with the whole. {where()}"
            )


def _absent(subject: Subject) -> None:
    for case in subject.cases:
        small, places = bare(case)
        algorithm, other = subject.build(), subject.build()
        state, small_state = known(algorithm, case), known(other, small)
        targets, small_targets = algorithm.advantage(case.batch, state), other.advantage(small.batch, small_state)
        loss, metrics = losses(algorithm, case.new, case.batch, targets)
        small_loss, small_metrics = losses(other, small.new, small.batch, small_targets)
        where = f"The smallest batch that shows it ('.': no token of the policy's):\n{table(case)}"
        ask = "Use the functions of rlkit.ops.masked, with batch.mask or rollout.valid"
        if not subject.same(loss, small_loss):
            raise Broken(
                f"the loss is {float(loss):.6g}, and {float(small_loss):.6g} without padding, invalid samples and "
                f"environment tokens: something counts that is not there. {ask}. {where}"
            )
        for name in targets.scalars.keys() | small_targets.scalars.keys():
            a, b = (each.scalars.get(name, math.nan) for each in (targets, small_targets))
            if not subject.same_numbers(float(a), float(b)):
                raise Broken(f"the scalar {name!r} is {a:.6g}, and {b:.6g} without what is not there. {ask}. {where}")
        if key := state_differs(subject, state, small_state):
            raise Broken(f"what it remembers as {key!r} changes with what is not there. {ask}. {where}")
        outside = ~case.batch.mask
        for big, little in zip(gradients(loss, case), gradients(small_loss, small), strict=True):
            if not subject.same(torch.where(places >= 0, big.flatten()[places.clamp(min=0)], 0.0), little):
                raise Broken(f"the gradient changes with what is not there. {ask}. {where}")
            if big[outside].any():  # NaN is, too
                raise Broken(f"there is a gradient outside the policy's tokens. {ask}. {where}")
        ours, theirs = numbers(metrics), numbers(small_metrics)
        for name in ours.keys() | theirs.keys():
            one, other_one = (torch.tensor(each.get(name, [math.nan])) for each in (ours, theirs))
            if one.shape != other_one.shape or not subject.same(one, other_one):
                raise Broken(f"the metric {name!r} changes with what is not there. {ask}. {where}")


def _again(subject: Subject, change: Callable[[Case], tuple[Case, Sequence[int]]], what: str) -> None:
    """The same targets, loss and state of each case and of what `change` makes of it: a case, and which of its rows
    stand for the case's rows."""
    for case in subject.cases:
        other, order = change(case)
        results = []
        for each in (case, other):
            algorithm = subject.build()
            state = known(algorithm, each)
            targets = algorithm.advantage(each.batch, state)
            loss, _ = losses(algorithm, each.new, each.batch, targets)
            results.append((targets, loss, state))
        (targets, loss, state), (found, found_loss, found_state) = results
        mask = case.batch.mask[order]
        for name, value in flat(targets).items():
            here = flat(found).get(name)
            if here is not None and value.dim():
                value, here = value[order], here[:, : mask.shape[1]] if here.dim() == 2 else here
                value, here = (torch.where(mask, x, 0.0) if x.dim() == 2 else x for x in (value, here))
            if here is None or not subject.same(value, here):
                raise Broken(f"`{name}` changes with {what}.\n{table(case)}")
        if not subject.same(loss, found_loss):
            raise Broken(
                f"the loss is {float(loss):.6g}, and with {what} {float(found_loss):.6g}. It must not depend on that.\n"
                f"{table(case)}"
            )
        if key := state_differs(subject, state, found_state):
            raise Broken(f"what it remembers as {key!r} changes with {what}.\n{table(case)}")


def _order(subject: Subject) -> None:
    chance = random.Random(subject.rigour.seed + 1)

    def change(case: Case) -> tuple[Case, Sequence[int]]:
        order = list(range(len(case.batch.rollout.keys)))[::-1]
        if len(order) > 2:
            chance.shuffle(order)
        return permuted(case, order), order

    _again(subject, change, "the rows in another order")


def _padding(subject: Subject) -> None:
    def change(case: Case) -> tuple[Case, Sequence[int]]:
        return widened(case, 3, subject.rigour.outside), range(len(case.batch.rollout.keys))

    _again(subject, change, "three more columns of padding")


def _gradients(subject: Subject) -> None:
    taught = False
    for case in subject.cases:
        algorithm = subject.build()
        targets = algorithm.advantage(case.batch, known(algorithm, case))
        loss, _ = algorithm.policy_loss(case.new, case.batch, targets)
        found = dict(zip([f.name for f in fields(case.new)], gradients(loss, case), strict=True))
        if algorithm.value_loss is not None:
            value, _ = algorithm.value_loss(case.new.get("values"), case.batch, targets)
            critic = dict(zip(found, gradients(value, case), strict=True))["values"]
            if found["values"].any():
                raise Broken(f"the policy's loss has a gradient at the critic's values.\n{table(case)}")
            found["values"] = critic
        for stat, gradient in found.items():
            if not gradient.isfinite().all():
                raise Broken(
                    f"the gradient at {stat} is not finite. A ratio exp(new - old) is to be bounded before it is "
                    f"raised, and nothing to be divided by 0.\n{table(case)}"
                )
            if (gradient[~case.batch.mask] != 0).any():
                raise Broken(f"there is a gradient at {stat} outside the policy's tokens.\n{table(case)}")
            if gradient.any() and stat not in algorithm.needs.grad | algorithm.needs.observe | {"values"}:
                raise Broken(
                    f"there is a gradient at {stat}, which `needs` does not ask for with gradient: name it in "
                    f"Needs(grad=...), or detach it.\n{table(case)}"
                )
        taught = taught or bool(found["logprobs"].any())
    if not taught:
        raise Broken("no batch has a gradient at the policy's log-probs: nothing would be learnt")


def _weightless(subject: Subject) -> None:
    """Ranks that are short of rows run such micro-batches: a finite 0 with a gradient of zeros."""
    for case in subject.cases:
        rows = (~case.batch.rollout.valid).nonzero().flatten().tolist()
        if not rows:
            continue
        algorithm = subject.build()
        targets = algorithm.advantage(case.batch, known(algorithm, case))
        loss, _ = losses(algorithm, case.new.rows(rows), case.batch.rows(rows), targets.rows(rows))
        if loss.item() != 0 or any(gradient.any() for gradient in gradients(loss, case)):
            raise Broken(
                f"a part in which no sample is valid has a loss of {loss.item():.6g}, or a gradient: ranks that are "
                "short of rows get such parts, and they must come to 0. Sum over the mask, and divide by "
                f"batch.n_tokens or batch.n_sequences. The part: rows {', '.join(map(str, rows))}.\n{table(case)}"
            )


def _state(subject: Subject) -> None:
    cases = subject.alike(4)
    algorithm = subject.build()
    state: State = {}
    straight = []
    for at, case in enumerate(cases):
        if at == 2:
            saved = io.BytesIO()
            try:
                torch.save(state, saved)
                saved.seek(0)
                restored = torch.load(saved, weights_only=True)
            except Exception as error:
                held = ", ".join(f"{key} ({type(value).__name__})" for key, value in state.items())
                raise Broken(
                    f"its state cannot be saved with a checkpoint and read again: it holds {held}. Keep numbers, text "
                    "and tensors there"
                ) from error
        straight.append(_update(algorithm, case, state))
    resumed = subject.build()
    for at, case in enumerate(cases[2:], 3):
        for (name, then), now in zip(straight[at - 1].items(), _update(resumed, case, restored).values(), strict=True):
            if then.shape != now.shape or not subject.same(then, now):
                raise Broken(
                    f"resumed after update 2, {_said(name, then, now)} in update {at} than without a stop: "
                    "something is remembered outside of `state`, in a closure or an attribute, or drawn at random. "
                    "Keep it in the dict that the advantage is given"
                )
    if key := state_differs(subject, state, restored):
        raise Broken(f"resumed after update 2, the state holds another {key!r} after update 4 than without a stop")


def _said(name: str, then: Tensor, now: Tensor) -> str:
    if then.shape != now.shape:
        return f"`{name}` is of another shape"
    at = int((then - now).abs().argmax())
    return f"`{name}` is {float(now.flatten()[at]):.6g}, not {float(then.flatten()[at]):.6g},"


def _update(algorithm: Algorithm, case: Case, state: State) -> dict[str, Tensor]:
    targets = algorithm.advantage(case.batch, state)
    loss, metrics = losses(algorithm, case.new, case.batch, targets)
    remember(algorithm, numbers(metrics), state)
    mask = case.batch.mask
    kept = {name: torch.where(mask, x, 0.0) if x.dim() == 2 else x for name, x in flat(targets).items()}
    return {**kept, "loss": loss.detach()}


def _ranks(subject: Subject) -> None:
    """Each rank has its own algorithm and state, sees the whole batch in the advantage, and its rows in the losses, in
    micro-batches; metrics are added up over both."""
    alone = subject.build()
    state: State = {}
    pair: list[tuple[Algorithm, State]] = [(subject.build(), {}), (subject.build(), {})]
    for number, case in enumerate(subject.alike(3), 1):
        whole = _update(alone, case, state)["loss"]
        total = 0.0
        totals: dict[str, list[float]] = {}
        count = len(case.batch.rollout.keys)
        for rank, (algorithm, own) in enumerate(pair):
            targets = algorithm.advantage(case.batch, own)
            for rows in (list(range(rank, count, 4)), list(range(rank + 2, count, 4))):
                loss, metrics = losses(algorithm, case.new.rows(rows), case.batch.rows(rows), targets.rows(rows))
                total += float(loss)
                for name, (value, weight) in numbers(metrics).items():
                    sums = totals.setdefault(name, [0.0, 0.0])
                    sums[0], sums[1] = sums[0] + value, sums[1] + weight
        for algorithm, own in pair:
            remember(algorithm, totals, own)
        if not subject.same_numbers(total, float(whole)):
            raise Broken(f"in update {number} two ranks have a loss of {total:.6g}, and one has {float(whole):.6g}")
        for rank, (_, own) in enumerate(pair):
            if key := state_differs(subject, own, state):
                raise Broken(f"after update {number}, rank {rank} of two remembers another {key!r} than one rank")


def _learns(subject: Subject) -> str:
    before, after = bandit.learn(subject.build(), seed=subject.rigour.seed)
    if not math.isfinite(after) or after < before + bandit.GAIN:
        raise Broken(
            f"after {bandit.UPDATES} updates on a bandit of {bandit.PROMPTS} prompts the mean reward is {after:.2f}, "
            f"and {before:.2f} by chance: it does not learn. Is a sign turned round, or the pull to the reference too "
            "strong for a reward between 0 and 1?"
        )
    return f"a mean reward of {after:.2f} after {bandit.UPDATES} updates, from {before:.2f}"
