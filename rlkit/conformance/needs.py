"""What an algorithm declares that it reads, held against what it reads."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from rlkit.conformance.batches import Case, table
from rlkit.conformance.findings import Broken
from rlkit.conformance.subject import Subject, known
from rlkit.interfaces.declarations import Needs
from rlkit.interfaces.learning import Algorithm, State, TokenStats
from rlkit.interfaces.names import STATS, Stat


class _Watched(TokenStats):
    """Remembers which statistics are read."""

    @classmethod
    def of(cls, stats: TokenStats, seen: set[str]) -> _Watched:
        made = cls(**{field.name: getattr(stats, field.name) for field in fields(stats)})
        object.__setattr__(made, "seen", seen)
        return made

    def __getattribute__(self, name: str) -> Any:
        if name in STATS:
            object.__getattribute__(self, "__dict__").get("seen", set()).add(name)
        return object.__getattribute__(self, name)


def _only(stats: TokenStats, wanted: frozenset[Stat]) -> TokenStats:
    return TokenStats(**{stat: getattr(stats, stat) for stat in wanted})


def reads_what_it_declares(subject: Subject) -> None:
    seen: dict[str, set[str]] = {"old": set(), "now": set(), "new": set()}
    needs = Needs()
    for case in subject.cases:
        algorithm = subject.build()
        needs = algorithm.needs
        state = known(algorithm, case)
        whole = _with_less(algorithm, case, copy.deepcopy(state), None, seen)
        less = _with_less(algorithm, case, copy.deepcopy(state), needs, None)
        if not subject.same(whole, less):
            raise Broken(
                f"its loss is {float(whole):.6g} with all statistics there and {float(less):.6g} with those alone that "
                f"it declares ({_listed(needs)}): it reads one that it does not "
                f"declare. Name it in `needs`.\n{table(case)}"
            )
    learnt = needs.grad - {"logprobs"}
    for when, declared in (("old", needs.old), ("now", needs.now), ("grad", learnt), ("observe", needs.observe)):
        if unread := declared - seen["new" if when in ("grad", "observe") else when]:
            names = ", ".join(sorted(unread))
            raise Broken(f"it declares Needs({when}={{{names}}}) and never reads that: leave it out, it costs a pass")


def _with_less(
    algorithm: Algorithm, case: Case, state: State, needs: Needs | None, seen: dict[str, set[str]] | None
) -> Tensor:
    """The loss with the statistics alone that are declared; None: with all there are, noting what is read."""
    batch, new = replace(case.batch), case.new
    values = case.new.get("values")
    if needs is not None:
        batch.old, batch.now = _only(batch.old, needs.old), _only(batch.now, needs.now)
        new = _only(new, needs.grad | needs.observe)
    elif seen is not None:
        batch.old, batch.now = _Watched.of(batch.old, seen["old"]), _Watched.of(batch.now, seen["now"])
        new = _Watched.of(new, seen["new"])
    try:
        targets = algorithm.advantage(batch, state)
        if needs is not None:
            kept = algorithm.reads | {"importance", "scalars", "credit", "coefs"}
            gone: dict[str, Any] = {f.name: None for f in fields(targets) if f.name not in kept}
            targets = replace(targets, **gone)
            batch.old.logprobs = case.batch.old.logprobs  # the engine always gives it to the loss
        loss, _ = algorithm.policy_loss(new, batch, targets)
        if algorithm.value_loss is not None:
            loss = loss + algorithm.value_loss(values, batch, targets)[0]
    except (KeyError, AttributeError, TypeError) as error:
        if needs is None:
            raise
        reads = ", ".join(sorted(algorithm.reads)) or "none"
        raise Broken(
            f"with the statistics alone that it declares ({_listed(needs)}) and the targets it says it reads ({reads}) "
            f"it raised {type(error).__name__}: {error.args[0] if error.args else error}. Name in `needs` what it "
            "reads of batch.old, batch.now and new, and in `reads` what it reads of targets"
        ) from error
    return loss.detach()


def _listed(needs: Needs) -> str:
    said = [f"{f.name}: {', '.join(sorted(getattr(needs, f.name)))}" for f in fields(needs) if getattr(needs, f.name)]
    return "; ".join(said) or "none"
