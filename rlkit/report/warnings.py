"""What in a run's numbers calls for attention: plain functions over its metrics, each of one fault.

A check reads what `RunFolder.read_metrics` gives and returns a Warning, or None where all is well or the run has no
such numbers. A stretch is a tenth of the run, and at least two steps: what one step shows may be chance, what a stretch
shows is not. So the same checks serve a run that has just begun, and one that is over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from rlkit.config import RunConfig
from rlkit.interfaces.rewards import VALUELESS, Status
from rlkit.records.metrics import Metrics, last_step, series
from rlkit.records.statistics import stretches, tenth
from rlkit.wording import number, percent

FEW = 10
"""Steps below which a run's end says nothing against its beginning."""
SOLVED = 0.9
"""Pass rate past which little entropy and equal groups are what success looks like."""
ENTROPY_SHARE = 0.1
"""Of its first value. Runs that learn here end at 0.1 to 0.3 of it while there is still something to learn; those that
have collapsed at 0.001."""
ENTROPY_LOW = 0.005
"""Nats a token: about one token in a thousand is then drawn otherwise than by greed, so groups repeat themselves."""
KL_HIGH = 0.5
"""Nats a token. On the embedded task runs that learn stay below 0.1, and those that run away pass 1."""
ACTOR_RATIO = 0.2
"""Of VIMPO's value loss: up to 0.11 was fine, 0.34 worse, 1.1 a collapse within 20 steps."""
GAP_MEAN = {"float32": 1e-3, "bfloat16": 0.045, "auto": 0.045}
"""Nats between sampler's and trainer's log-prob of a token, mean over tokens, by model.dtype. Float32 gives 1e-5 at
most. In bfloat16 SmolLM2-135M-Instruct, untrained, had means of 0.03 to 0.041 and single tokens at 0.28 to 0.55 (16
responses of at most 64 tokens to questions of GSM8K, temperatures 1 and 0.6, on a CPU), with transformers and vLLM
alike: it is rounding. A gap biases every ratio. A config that nobody has resolved says auto: it is then not known."""
TRUNCATED = 0.1
"""Share of responses: each is one whose reward says nothing of the answer."""
CUT_TURNS = 0.25
"""Share of trajectories that meet conversation.max_turns: a few go round in circles, many had no time to end."""
TOOL_ERRORS = 0.5
"""Share of the calls: past it a call more often teaches the model nothing of its task."""
NO_ANSWER = 0.5
"""Share of responses: past it the reward says more of the form than of the answer."""
CLIPPED = 0.2
"""Share of tokens (of sequences for GSPO) that the clip takes the gradient from."""
EQUAL_GROUPS = 0.5
"""Share of groups: past it, the larger part of sampling teaches nothing."""
NO_SIGNAL = 0.99
"""Share of groups: past it there is nothing to learn from at all."""


@dataclass(frozen=True, kw_only=True)
class Warning:
    """One fault."""

    name: str
    """A few words, such as "Entropy collapse"."""
    seen: str
    """The numbers, and at which steps: a sentence."""
    means: str
    """A sentence or two."""
    tries: Sequence[str]
    """What may help, with the settings' keys."""

    def __str__(self) -> str:
        """In full, as at the end of a run."""
        return f"{self.name}: {self.seen} {self.means} Try: " + "; ".join(self.tries) + "."

    def brief(self) -> str:
        """Without what it means, as while a run goes."""
        return f"{self.name}: {self.seen} Try: " + "; ".join(self.tries) + "."


def warnings_of(metrics: Metrics, config: RunConfig | None = None) -> list[Warning]:
    """All that is wrong, the most urgent first. With the run's `config`, numbers are judged by its dtype (else as of
    bfloat16), and what it has set is not advised."""
    gap = functools.partial(sampler_gap, dtype=config.model.dtype if config else "bfloat16")
    checks: list[Callable[[Metrics], Warning | None]] = [not_finite, skipped_updates, gap, *CHECKS]
    warnings = [warning for check in checks if (warning := check(metrics)) is not None]
    return warnings if config is None else [_for(config, each) for each in warnings]


def _for(config: RunConfig, warning: Warning) -> Warning:
    """Without advice that the run follows already."""
    batch = config.batch
    followed = {
        "`model.dtype: float32`": config.model.dtype == "float32",
        "`sampler: transformers`": config.sampler.kind == "transformers",
        "a lower `sampling.check_every`": config.sampling.check_every == 1,
        "fewer `batch.minibatches`": batch.minibatches == 1,
        "fewer `batch.epochs` or": batch.epochs == batch.minibatches == 1,
        "GRPO and its like: `algo.overlong_mask: true`": config.algo.options.get("overlong_mask") is True,
    }
    tries = [text for text in warning.tries if not any(on and text.startswith(key) for key, on in followed.items())]
    return replace(warning, tries=tries or ["`rlkit doctor`, and report its output with the run's config.yaml"])


def not_finite(metrics: Metrics) -> Warning | None:
    steps, _ = _above(metrics, "updates/not_finite", 0)
    if not steps:
        return None
    return Warning(
        name="Updates that are not finite",
        seen=f"A loss or a gradient was not finite in {_steps(steps)}.",
        means="Such an update is left out, so the weights are sound, but what led there is still at work: a learning "
        "rate that is too high, or a reward or a loss that overflows.",
        tries=(
            "a lower `optimizer.lr`, or more `optimizer.warmup_updates`",
            "a lower `optimizer.clip_norm`",
            "`model.dtype: float32`, to see whether it is the precision",
        ),
    )


def skipped_updates(metrics: Metrics) -> Warning | None:
    steps, values = _above(metrics, "updates/skipped", 0)
    if not steps:
        return None
    return Warning(
        name="Skipped updates",
        seen=f"{number(sum(values))} updates had no valid sample, in {_steps(steps)}.",
        means="Nothing was learnt from these rollouts: every sample was without a value, left out as truncated, or "
        "alone in its group.",
        tries=(
            "see which status the samples have (samples/STATUS in metrics.jsonl), and mend the verifier",
            "more `batch.prompts_per_step` or `batch.samples_per_prompt`",
            "fewer `batch.minibatches`",
        ),
    )


def samples_without_value(metrics: Metrics, limit: float = 0) -> Warning | None:
    """`limit`: the share of a step's samples above which it counts."""
    metrics = [row for row in metrics if row.get("samples/no_value", 0.0) > limit * _samples(row)]
    if not metrics:
        return None
    steps, values = series(metrics, "samples/no_value")
    counts = {status: sum(series(metrics, f"samples/{status}")[1]) for status in sorted(VALUELESS)}
    named = ", ".join(f"{status} {number(count)}" for status, count in counts.items() if count)
    acts = any("environment/turns" in row for row in metrics)
    return Warning(
        name="Samples without a value",
        seen=f"{number(sum(values))} samples got no reward{f' ({named})' if named else ''}, in {_steps(steps)}.",
        means="They are left out of the loss and of their group's mean. If they are not a fair draw (the longest, the "
        "hardest), what is learnt leans towards the others.",
        tries=(
            *(
                [
                    "environments.log in the run's folder, which has what the environment printed; the column info of "
                    "rollouts/ says why each was lost",
                    "for timeout of an environment: a longer `conversation.timeout_s`",
                ]
                if acts
                else []
            ),
            "`rlkit verify RUN --reward NAME`, which scores the responses again and shows where it fails",
            "for timeout (of rewards that ask a server): a longer timeout_s of theirs, or fewer `scoring.workers`",
            "for bad_gold: `rlkit data check FILE --reward NAME`, which finds golds that no answer can match",
        ),
    )


def actor_ratio(metrics: Metrics) -> Warning | None:
    steps, values = _above(metrics, "vimpo/actor_ratio", ACTOR_RATIO)
    if not steps:
        return None
    return Warning(
        name="Heavy actor part",
        seen=f"vimpo/actor_ratio is above {ACTOR_RATIO} in {_steps(steps)}, highest {number(max(values))}.",
        means="VIMPO's actor part then outweighs the value loss, which alone holds the policy near the reference and "
        "sees the reward: policies have been seen to run away within 20 steps.",
        tries=("`algo.actor_ratio` 0.0125 (the default) in place of `algo.actor_coef`, which ignores the length",),
    )


def sampler_gap(metrics: Metrics, limit: float | None = None, *, dtype: str) -> Warning | None:
    limit = GAP_MEAN[dtype] if limit is None else limit
    found = _stretch_above(metrics, "sampler/gap_mean", limit)
    if found is None:
        return None
    return Warning(
        name="Gap between sampler and trainer",
        seen=f"Their log-probs of the tokens drawn differ by {number(found.mean)} nats on average in {found.where} "
        f"(fine in {dtype}: below {limit}).",
        means="It is the mean over tokens of |log-prob in the sampler - in the trainer|: 0.05 is a probability "
        "that is off by a twentieth. Rounding does not explain as much as here, so the samples are not quite from the "
        "policy that is trained: every ratio and every clip starts from a wrong place, and the run may fall apart late "
        "and without another sign.",
        tries=(
            "`sampler: transformers`, which computes as the trainer does: if the gap goes, it is the sampler's kernels",
            "`model.dtype: float32`",
            "a lower `sampling.check_every`, to see when it begins",
            "`correction: {}`, which weighs the tokens for it",
        ),
    )


def kl_growth(metrics: Metrics, limit: float = KL_HIGH) -> Warning | None:
    found = _stretch_above(metrics, "policy/kl", limit)
    if found is None:
        return None
    return Warning(
        name="KL growth",
        seen=f"The KL to the reference reaches {number(found.mean)} nats a token in {found.where} "
        f"(fine: below {limit}).",
        means="The policy is far from the model that it began as. Where the held-out evaluation does not rise with "
        "it, it has learnt to please the reward, or is falling apart.",
        tries=(
            "a lower `optimizer.lr`",
            "VIMPO: a higher `algo.beta`, a lower `algo.actor_ratio`, `algo.lam` not below 0.9",
            "GRPO and its like, PPO: a higher `algo.kl_coef`",
        ),
    )


def entropy_collapse(metrics: Metrics, limit: float | None = None) -> Warning | None:
    """`limit`: in nats a token; None: ENTROPY_LOW, or ENTROPY_SHARE of the first stretch."""
    steps, values = series(metrics, "policy/entropy")
    if len(steps) < FEW or _solved(metrics):
        return None
    means = stretches(steps, values, last_step(metrics), _width(metrics))[1]
    first, last = float(means[0]), float(means[-1])
    fine = max(ENTROPY_LOW, ENTROPY_SHARE * first) if limit is None else limit
    if last >= fine:
        return None
    below = next(at for at, value in zip(steps, values, strict=True) if value < fine)
    said = f"a tenth of that or {ENTROPY_LOW}" if limit is None else number(limit)
    return Warning(
        name="Entropy collapse",
        seen=f"Entropy fell from {number(first)} to {number(last)} nats a token, first below {said} at step {below}, "
        f"and the pass rate is not at {percent(SOLVED)}.",
        means="The policy answers nearly always in the same words, so the responses of a group are alike, and there "
        "is little left to choose between: it will hardly improve further.",
        tries=(
            "a lower `optimizer.lr`",
            "GRPO and its like, PPO: `algo.entropy_coef` 0.001, or a higher `algo.clip_high` (`algo: dapo`)",
            "VIMPO: a higher `algo.beta`",
            "more varied problems",
        ),
    )


def truncation(metrics: Metrics, limit: float = TRUNCATED) -> Warning | None:
    # Of conversations, but for those that have met their most turns.
    cut = [
        {"step": row["step"], "cut": row["response/truncated"] - row.get("environment/cut_turns", 0.0)}
        for row in metrics
        if "response/truncated" in row
    ]
    found = _stretch_above(cut, "cut", limit)
    if found is None:
        return None
    return Warning(
        name="Truncation",
        seen=f"{percent(found.mean)} of the responses end at the length limit in {found.where} "
        f"(fine: below {percent(limit)}).",
        means="They are cut off before their answer, mostly score 0, and so teach the policy to be short, or, where "
        "they ramble, show that it no longer ends its responses.",
        tries=(
            "a higher `sampling.max_tokens`, or `conversation.turn_tokens` where it is set",
            "a template (`data.template`) that tells the model how to end, or `sampling.stop`",
            "GRPO and its like: `algo.overlong_mask: true`, or `algo.overlong_penalty`",
        ),
    )


def cut_turns(metrics: Metrics) -> Warning | None:
    found = _stretch_above(metrics, "environment/cut_turns", CUT_TURNS)
    if found is None:
        return None
    return Warning(
        name="Conversations cut by their turns",
        seen=f"{percent(found.mean)} of the trajectories have had all turns of `conversation.max_turns` in "
        f"{found.where}, and the environment had not ended them (fine: below {percent(CUT_TURNS)}).",
        means="What the environment gives at the end they do not get, and the model does not learn how to end.",
        tries=(
            "a higher `conversation.max_turns`, with `sampling.max_tokens` for as many",
            "`rlkit inspect RUN`, to see what the turns go into",
            "an environment that rewards an early end, or says how many turns are left",
        ),
    )


def tool_errors(metrics: Metrics) -> Warning | None:
    names = "environment/tool_errors", "environment/tool_calls"
    shares = [
        {"step": row["step"], "share": row.get(names[0], 0.0) / row[names[1]]} for row in metrics if row.get(names[1])
    ]
    found = _stretch_above(shares, "share", TOOL_ERRORS)
    if found is None:
        return None
    return Warning(
        name="Tool errors",
        seen=f"{percent(found.mean)} of the tool calls are answered with an error in {found.where} "
        f"(fine: below {percent(TOOL_ERRORS)}).",
        means="The model writes calls that cannot be read, or calls with arguments that do not fit: it gets nothing "
        "out of its tools.",
        tries=(
            "`rlkit inspect RUN`, which shows the calls and their errors",
            "the option format of the `environment`, if the model writes its calls in another",
            "an example of a call in the prompt (`data.system`, `data.template`)",
        ),
    )


def no_answer(metrics: Metrics) -> Warning | None:
    counts = {row["step"]: (row.get("samples/no_answer", 0.0), _samples(row)) for row in metrics}
    shares = [{"step": step, "share": count / of} for step, (count, of) in counts.items() if of]
    found = _stretch_above(shares, "share", NO_ANSWER)
    if found is None:
        return None
    return Warning(
        name="No answer found",
        seen=f"In {percent(found.mean)} of the responses the verifier finds no answer in {found.where} "
        f"(fine: below {percent(NO_ANSWER)}).",
        means="They score 0 whatever they say: the model does not write the form that the verifier looks for, or is "
        "cut off before it.",
        tries=(
            "a template (`data.template`), or words in the question, that ask for the form (`rlkit list rewards`)",
            "another `reward`, which looks where this model puts its answers: `rlkit verify RUN --reward NAME`",
            "a higher `sampling.max_tokens`, where responses are truncated",
        ),
    )


def equal_groups(metrics: Metrics, limit: float = EQUAL_GROUPS) -> Warning | None:
    found = _last_stretch(metrics, "groups/equal_rewards")
    if found is None or found.mean <= limit or _solved(metrics):
        return None
    nothing, _ = _above(metrics, "groups/equal_rewards", NO_SIGNAL)
    return Warning(
        name="Groups with equal rewards",
        seen=f"In {percent(found.mean)} of the groups all responses have the same reward, over {found.where} "
        f"(fine: below {percent(limit)})" + (f"; in all groups in {_steps(nothing)}." if nothing else "."),
        means="Algorithms that compare within a group learn nothing from these (VIMPO is pulled to its reference by "
        "them): the problems are too hard or too easy for this model, or its responses are all alike.",
        tries=(
            "problems that the model solves now and then; `rlkit eval` says how often it does",
            "more `batch.samples_per_prompt`",
            "a reward with parts, which tells wrong answers apart",
        ),
    )


def no_signal(metrics: Metrics, limit: float = NO_SIGNAL) -> Warning | None:
    """As `equal_groups`, but where no replaced group made up for it."""
    if any(row.get("refill/groups", 0.0) > 0 for row in metrics):
        return None
    return equal_groups(metrics, limit)


def clip_share(metrics: Metrics) -> Warning | None:
    found = _stretch_above(metrics, "policy/clip_share", CLIPPED)
    if found is None:
        return None
    return Warning(
        name="Clip share",
        seen=f"The clip acts on {percent(found.mean)} of the tokens in {found.where} (fine: below {percent(CLIPPED)}).",
        means="The policy moves so far within one rollout that much of the gradient is thrown away, and what is left "
        "is off-policy.",
        tries=(
            "fewer `batch.epochs` or `batch.minibatches`",
            "a lower `optimizer.lr`",
            "a wider `algo.clip_low` and `algo.clip_high`",
        ),
    )


CHECKS: tuple[Callable[[Metrics], Warning | None], ...] = (
    actor_ratio,
    kl_growth,
    entropy_collapse,
    samples_without_value,
    truncation,
    cut_turns,
    tool_errors,
    no_answer,
    equal_groups,
    clip_share,
)


def unhealthy(metrics: Metrics, config: RunConfig) -> tuple[str, Warning] | None:
    """The first of the config's health checks whose number was past its limit at each of the last `patience` steps: its
    name in `health`, and the warning. One bad step is chance, whatever it does to a stretch's mean."""
    trained = [row for row in metrics if row["step"] > 0]
    patience = config.health.patience
    if len(trained) < patience:
        return None
    checks: dict[str, Callable[..., Warning | None]] = {
        "kl": kl_growth,
        "entropy": entropy_collapse,
        "gap": functools.partial(sampler_gap, dtype=config.model.dtype),
        "truncation": truncation,
        "verifier": samples_without_value,
        "no_signal": no_signal,
    }
    for name, limit in config.health.limits.items():
        check = functools.partial(checks[name], **({} if limit is None else {"limit": limit}))
        # How low entropy is follows from where it began.
        begin = 0 if name == "entropy" else -1
        ends = range(len(trained) - patience + 1, len(trained) + 1)
        if all(check(trained[:end][begin:]) for end in ends):
            found = check(trained if name == "entropy" else trained[-patience:])
            assert found is not None, "what holds at each step holds for all of them"
            return name, _for(config, found)
    return None


@dataclass(frozen=True)
class _Stretch:
    mean: float
    where: str


def _width(metrics: Metrics) -> int:
    """Steps in a stretch."""
    end = last_step(metrics)
    return max(1, min(end, max(2, tenth(end))))


def _stretch(metrics: Metrics, name: str, which: Callable[[list[float]], int]) -> _Stretch | None:
    """The one of the run's stretches that `which` chooses by their means; None where nothing was measured."""
    steps, values = series(metrics, name)
    if not steps:
        return None
    width = _width(metrics)
    begins, means = stretches(steps, values, last_step(metrics), width)
    at = which(means.tolist())
    inside = [step for step in steps if begins[at] <= step < begins[at] + width]
    return _Stretch(float(means[at]), _span(inside))


def _stretch_above(metrics: Metrics, name: str, limit: float) -> _Stretch | None:
    """The stretch with the highest mean, if that is above the limit."""
    found = _stretch(metrics, name, lambda means: means.index(max(means)))
    return found if found is not None and found.mean > limit else None


def _last_stretch(metrics: Metrics, name: str) -> _Stretch | None:
    return _stretch(metrics, name, lambda means: len(means) - 1)


def _samples(row: Mapping[str, float]) -> float:
    """That a step has scored: a status is only logged in steps in which it comes up."""
    return sum(row.get(f"samples/{status}", 0.0) for status in get_args(Status))


def _above(metrics: Metrics, name: str, limit: float) -> tuple[list[int], list[float]]:
    pairs = [(step, value) for step, value in zip(*series(metrics, name), strict=True) if value > limit]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _solved(metrics: Metrics) -> bool:
    last = _last_stretch(metrics, "reward/pass_rate")
    return last is not None and last.mean >= SOLVED


def _span(steps: Sequence[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _steps(steps: Sequence[int]) -> str:
    """step 3; steps 3 and 9; steps 3, 4 and 9; 57 steps, the first 3, the last 70."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) <= 5:
        return "steps " + ", ".join(map(str, steps[:-1])) + f" and {steps[-1]}"
    return f"{len(steps)} steps (the first {steps[0]}, the last {steps[-1]})"
