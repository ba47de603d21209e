"""A model on benchmark suites, or on problems of one's own: sample, verify, count; `rlkit eval`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlkit import config as configs
from rlkit import generation, registry
from rlkit.config import ConversationConfig
from rlkit.engine.models import load_tokenizer, positions
from rlkit.errors import ConfigError
from rlkit.evaluation import suites
from rlkit.evaluation.pass_rates import Verdict, bootstrap, measure
from rlkit.evaluation.responses import Responses
from rlkit.evaluation.settings import EvaluationConfig, fits, samples_of
from rlkit.evaluation.shown import before, notes, table
from rlkit.evaluation.suites import OpenSuite, Suite
from rlkit.files import write_text
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import Draw, Sampled
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.scoring.checks import error_of
from rlkit.wording import visible

if TYPE_CHECKING:
    from torch import Tensor

UNSCORED = (None, "error", "timeout")
"""Statuses of responses that are scored when an evaluation goes on: those without one, and those that the verifier
failed on, which may have been mended since."""


def run_evaluation(config: EvaluationConfig, quiet: bool = False) -> dict[str, Any]:
    """Evaluate a model, going on with what `config.out` holds; returns what is written to results.json there.

    A sample without a value counts as wrong and is counted by status, however many there are; so does one whose prompt
    leaves no room for a response (status `too_long`). Raises ConfigError for unknown suites and rewards, data that is
    not there, a model without room for any prompt and response, and a folder with other settings or without tokens;
    RlkitError for what goes wrong later.
    """
    console = Console(quiet=quiet, highlight=False)
    registry.load(config.plugins)
    if len(set(config.suites)) < len(config.suites):
        raise ConfigError(f"suites: {', '.join(config.suites)}: each only once")
    if config.environment is not None:
        acting = configs.resolve_ref("environments", config.environment, "environment")
        config = config.model_copy(update={"environment": acting})
    chosen = _chosen(config)
    model = config.model.settled()
    sampler_ref = generation.resolve_sampler(config.sampler, model)[0]
    config = config.model_copy(update={"sampler": sampler_ref, "model": model})
    tokenizer = load_tokenizer(config.model)
    otherwise = "write it into its generation_config.json, as eos_token_id, or set stop to the text that ends one"
    ends = generation.checked_end_tokens(config.model, None if config.stop else otherwise)
    limit = positions(config.model)
    results = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(name, suite, tokenizer, config, ends)) for name, suite in chosen.items()]
        loaded = [(suite, _with_room(suite, config, limit)) for suite in opened]
        folders = {suite.name: _responses(suite, own) for suite, own in loaded}
        console.print(visible(before(loaded, config, limit)), markup=False, soft_wrap=True)
        sampler = stack.enter_context(_sampling(loaded, folders, config, limit))
        progress = stack.enter_context(_progress(console))
        for suite, own in loaded:
            responses = folders[suite.name]
            collector = Collector(sampler, suite.verifier, tokenizer, config.seed)
            if suite.acting is not None:
                room = max(len(problem.tokens) for problem in suite.problems) + own.max_tokens
                collector = replace(collector, setting=suite.acting.setting(room, config.plugins, stack))
            _answer(suite, responses, collector, own, progress)
            results[suite.name] = _result(suite, responses, own)
            _keep(config.out, suite.name, results[suite.name])
    console.print(table(results))
    console.print("* quoted; 95 %: bootstrap over problems", markup=False, soft_wrap=True)
    for name, result in results.items():
        if text := notes(result):
            console.print(visible(f"{name}: {text}"), markup=False, soft_wrap=True)
    console.print(visible(f"responses and results: {config.out}"), markup=False, soft_wrap=True)
    return results


def _chosen(config: EvaluationConfig) -> dict[str, Suite]:
    """The suites by their names, or the one that the user's own data make. ConfigError for one with an environment of
    its own where another is set, and for a conversation that none of them holds."""
    chosen = _wanted(config)
    acted = config.environment is not None or any(suite.environment is not None for suite in chosen.values())
    # What a run keeps of the past comes with its model, for suites that it may or may not act in.
    if not acted and (unheard := sorted(config.conversation.model_fields_set - {"keep_past"})):
        raise ConfigError(
            f"{' and '.join(f'conversation.{name}' for name in unheard)}: {' and '.join(chosen)} "
            f"{'has' if len(chosen) == 1 else 'have'} no environment to hold a conversation with: set `environment`, "
            "or leave it out"
        )
    return chosen


def _wanted(config: EvaluationConfig) -> dict[str, Suite]:
    if config.suites:
        found = {name: suites.find(name) for name in config.suites}
        own = [name for name, suite in found.items() if suite.environment is not None]
        if own and config.environment is not None:
            raise ConfigError(
                f"environment {config.environment.kind!r} is set, and {' and '.join(own)} "
                f"{'has one of its' if len(own) == 1 else 'have some of their'} own: leave the setting out, or measure "
                "in it on other suites by themselves"
            )
        return found
    name, suite = suites.of_data(
        str(config.data),
        reward=configs.resolve_rewards(config.reward or []),
        environment=config.environment,
        prompt=config.prompt,
        answer=config.answer,
        template=config.template,
        subset=config.subset,
        split=config.split,
    )
    return {name: suite}


def _opened(
    name: str, suite: Suite, tokenizer: Any, config: EvaluationConfig, ends: Sequence[int]
) -> AbstractContextManager[OpenSuite]:
    conversation = {**suite.conversation, **config.conversation.model_dump(exclude_unset=True)}
    return suites.opened(
        name,
        tokenizer,
        wanted=suite,
        folder=Path(config.data) if config.suites and config.data is not None else None,
        limit=config.limit,
        # As in a run, a template of one's own takes the place of the chat template.
        chat=False if config.chat is None and config.template is not None else config.chat,
        system=config.system,
        chat_template_kwargs=config.chat_template_kwargs,
        scoring=config.scoring,
        plugins=config.plugins,
        environment=config.environment,
        conversation=ConversationConfig(**conversation),
        ends=ends,
    )


def _with_room(suite: OpenSuite, config: EvaluationConfig, limit: int | None) -> EvaluationConfig:
    """The settings with a `max_tokens` that the model's positions (`limit`) have room for, unless it was given.

    It follows from all prompts, so that it is the same when an evaluation goes on. ConfigError where no prompt leaves
    room for a response.
    """
    if limit is None:
        return config
    sizes = [len(problem.tokens) for problem in suite.problems]
    if min(sizes) >= limit:
        raise ConfigError(
            f"{suite.name}: no prompt fits: {config.model.path} has {limit} positions, and the shortest prompt has "
            f"{min(sizes)} tokens"
        )
    # A few prompts of nearly all positions must not leave every response a handful of tokens.
    common = [size for size in sizes if size <= limit - limit // 4] or [size for size in sizes if size < limit]
    room = limit - max(common)
    if "max_tokens" not in config.model_fields_set:
        return config.model_copy(update={"max_tokens": min(config.max_tokens, room)})
    if min(sizes) + config.max_tokens > limit:
        raise ConfigError(
            f"--max-tokens {config.max_tokens} leaves no room for a prompt of {suite.name}: {config.model.path} has "
            f"{limit} positions, and prompts take up to {max(common)}. Give {room} at most, or leave --max-tokens out"
        )
    return config


def _settings(suite: OpenSuite, config: EvaluationConfig) -> dict[str, Any]:
    """What decides a suite's responses and verdicts."""
    verifier = [ref.model_dump(exclude_defaults=True) for ref in suite.suite.rewards]
    acting = suite.acting
    reads_columns = suite.suite.file is not None or suite.suite.environment is not None
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "samples": samples_of(suite, config),
        "problems": len(suite.problems),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_tokens,
        # None, here and below: as in the folders of evaluations that had no such setting.
        "stop": config.stop or None,
        "seed": config.seed,
        "sampler": config.sampler.kind,
        "template": suite.suite.template,
        "chat": config.chat,
        "system": config.system,
        "chat_template_kwargs": config.chat_template_kwargs or None,
        "verifier": verifier[0] if len(verifier) == 1 else verifier,
        "environment": acting.ref.model_dump() if acting is not None else None,
        "conversation": acting.conversation.model_dump() if acting is not None else None,
        "prompts": suites.fingerprint(suite.problems),
        "columns": suites.fingerprint_of_columns(suite.problems) if reads_columns else None,
    }


def _responses(suite: OpenSuite, config: EvaluationConfig) -> Responses:
    """Those of the suite that can be gone on with."""
    responses = Responses(config.out / suite.name, _settings(suite, config))
    if suite.acting is not None:
        # What an environment has said is not on disk: what has no verdict is drawn again.
        responses.replace(row for row in responses.rows.values() if row.get("status") not in UNSCORED)
    return responses


def _draws(suite: OpenSuite, config: EvaluationConfig) -> list[Draw]:
    """Every sample of the suite, named by the number of its problem and its own."""
    return [
        Draw(SampleKey(problem.id, 0, i, j), problem)
        for i, problem in enumerate(suite.problems)
        for j in range(samples_of(suite, config))
    ]


def _missing(suite: OpenSuite, responses: Responses, config: EvaluationConfig) -> list[Draw]:
    return [draw for draw in _draws(suite, config) if (draw.key.occurrence, draw.key.index) not in responses.rows]


@contextmanager
def _sampling(
    loaded: Sequence[tuple[OpenSuite, EvaluationConfig]],
    folders: Mapping[str, Responses],
    config: EvaluationConfig,
    limit: int | None,
) -> Iterator[Sampler]:
    """A sampler for the longest prompt and response, closed at the end.

    Samples of prompts that leave no room for a response are put down as such first.
    """
    context = 0
    for suite, own in loaded:
        for draw in _missing(suite, folders[suite.name], own):
            if fits(draw.problem, own, limit):
                context = max(context, len(draw.problem.tokens) + own.max_tokens)
            else:
                row = _response(Sampled(draw.key, draw.problem, _completion([], False), ""))
                folders[suite.name].append(row | {"correct": False, "value": None, "status": "too_long", "given": None})
    if not context:
        yield _NothingToSample()
        return
    sampler = generation.build_sampler(config.sampler, config.model, context, config.seed)
    try:
        yield sampler
    finally:
        sampler.close()


class _NothingToSample:
    """In the sampler's place where all responses are there: no model is loaded for them."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        return iter(())

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        return

    def close(self) -> None:
        return


def _answer(
    suite: OpenSuite, responses: Responses, collector: Collector, config: EvaluationConfig, progress: Progress
) -> None:
    """Draw and score what is missing, each response on disk as it ends, and score what a stop has left unscored."""
    missing = _missing(suite, responses, config)
    task = progress.add_task(
        visible(suite.name), total=len(responses.rows) + len(missing), completed=len(responses.rows)
    )

    def keep(sampled: Sampled) -> None:
        responses.append(_response(sampled))
        progress.advance(task)

    scored, _ = collector.collect(
        missing,
        SamplingParams(
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            stop=tuple(config.stop),
        ),
        f"suite/{suite.name}",
        lenient=True,
        unscored=[_sampled(suite, row) for row in responses.rows.values() if row.get("status") in UNSCORED],
        each=keep,
    )
    verdicts = {(s.key.occurrence, s.key.index): _response(s) | _verdict(s.result) for s in scored}
    responses.replace((responses.rows | verdicts).values())


def _response(sampled: Sampled) -> dict[str, Any]:
    """What is kept of a response without a verdict."""
    return {
        "problem": sampled.key.occurrence,
        "sample": sampled.key.index,
        "prompt_id": sampled.problem.id,
        "prompt": sampled.problem.text,
        "response": sampled.text,
        "tokens": list(sampled.completion.tokens),
        "truncated": sampled.completion.truncated,
        "answer": sampled.problem.answer,
    }


def _sampled(suite: OpenSuite, row: Mapping[str, Any]) -> Sampled:
    """A response as it was when `_response` put it down."""
    problem = suite.problems[row["problem"]]
    key = SampleKey(problem.id, 0, row["problem"], row["sample"])
    return Sampled(key, problem, _completion(row["tokens"], row["truncated"]), row["response"])


def _completion(tokens: list[int], truncated: bool) -> Completion:
    """Without log-probs, which no verdict depends on."""
    return Completion(tokens=tokens, logprobs=[], truncated=truncated, version=0)


def _verdict(result: RewardResult) -> dict[str, Any]:
    verdict = {
        "correct": bool(result.correct),
        "value": result.value,
        "status": result.status,
        "given": result.info.get("answer"),
    }
    error = error_of(result)
    return verdict if error is None else verdict | {"error": error}


def _result(suite: OpenSuite, responses: Responses, config: EvaluationConfig) -> dict[str, Any]:
    rows = list(responses.rows.values())
    count = samples_of(suite, config)
    verdicts = [[Verdict(r["correct"], _vote(r)) for r in rows[i : i + count]] for i in range(0, len(rows), count)]
    known = all(r["correct"] or r["given"] is not None or r["status"] != "ok" for r in rows)
    estimates = measure(verdicts, config.seed, majority=known)
    return {
        "data": suite.suite.file,
        "problems": len(suite.problems),
        "samples": count,
        "quoted": f"{suite.suite.metric}@{count}" if count > 1 else "mean@1",
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        "reward": _graded(rows, count, config.seed),
        "statuses": dict(Counter(r["status"] for r in rows)),
        "no_value": sum(r["value"] is None for r in rows),
        "truncated": sum(r["truncated"] for r in rows),
        "mean_tokens": sum(len(r["tokens"]) for r in rows) / len(rows),
        "error": next((r["error"] for r in rows if r["value"] is None and "error" in r), None),
        "bad_golds": suite.bad_golds,
        "golds_unchecked": suite.unchecked,
        "settings": _settings(suite, config),
    }


def _graded(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> dict[str, float] | None:
    """The mean value of the samples that have one, over problems; None where values say no more than right or wrong."""
    values = [[r["value"] for r in rows[i : i + count] if r["value"] is not None] for i in range(0, len(rows), count)]
    if {value for each in values for value in each} <= {0.0, 1.0}:
        return None
    return asdict(bootstrap(np.array([sum(each) / len(each) for each in values if each]), seed))


def _vote(row: Mapping[str, Any]) -> str | None:
    return None if row["given"] is None else " ".join(str(row["given"]).split())


def _keep(out: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put one suite's result into results.json, beside those of other suites."""
    file = out / "results.json"
    there = json.loads(file.read_text()) if file.is_file() else {}
    write_text(file, json.dumps(there | {name: result}, indent=2, ensure_ascii=False) + "\n")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet,
    )
