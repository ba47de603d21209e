"""A model on benchmark suites, or on problems of one's own: sample, verify, count; `rlkit eval`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rlkit import config as configs
from rlkit import generation, registry
from rlkit.config import ModelConfig, PluginRef, Positive, Ref, Rewards, ScoringConfig, Section, StopTexts
from rlkit.data import NO_GOLDS, Problem
from rlkit.engine.models import load_tokenizer, positions
from rlkit.errors import ConfigError
from rlkit.evaluation import suites
from rlkit.evaluation.pass_rates import Verdict, bootstrap, measure
from rlkit.evaluation.responses import Responses
from rlkit.evaluation.suites import OpenSuite, Suite
from rlkit.files import write_text
from rlkit.generation.collector import Collector, Draw, Sampled
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams
from rlkit.interfaces.rewards import RewardResult, SampleKey
from rlkit.wording import counted, number, one_line, quoted

if TYPE_CHECKING:
    from torch import Tensor

UNSCORED = (None, "error", "timeout")
"""Statuses of responses that are scored when an evaluation goes on: those without one, and those that the verifier
failed on, which may have been mended since."""

SHOWN = 10
"""Bad golds that are named; the others are counted."""

OF_OWN_DATA = ("prompt", "answer", "template", "subset", "split", "reward")
"""Settings that a suite has already."""


class EvaluationConfig(Section):
    """What `rlkit eval` does. The sampling defaults are those of VIMPO's paper (arXiv 2606.20008)."""

    model: ModelConfig
    suites: list[str] = []
    """`rlkit list suites`. None: problems of one's own, in `data`."""
    out: Path
    """Folder of settings, responses and results; what is there is gone on with."""
    samples: Positive | None = None
    """Responses to each problem; None: the suite's own number (32 for AIME, else 1)."""
    limit: Positive | None = None
    """Only the first so many problems of each suite."""
    data: str | Path | None = None
    """Of suites: the folder of local copies; None: from the hub. Without suites: a file of problems, or a data set's
    hub id."""
    prompt: str | None = None
    """Column of the questions of one's own data; None: prompt, problem or question, the first that is there."""
    answer: str | None = None
    """Column of the golds; null: there are none. Not given: the first of the usual names that is there."""
    template: str | None = None
    """Text around the question, with {prompt} for it, as `data.template` of a run."""
    subset: str | None = None
    """The hub data set's configuration name."""
    split: str = "test"
    """Of the hub or embedded data set."""
    reward: Rewards | None = None
    """The verifier of one's own data, as a run's `reward`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the responses and the intervals."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    """1: the whole distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: all."""
    max_tokens: Positive = 4096
    """Longest response. Where it is not given: no more than the model has room for beside the longest prompt."""
    stop: StopTexts = []
    """Texts that end a response. None given: those of the run that is evaluated."""
    chat: bool | None = None
    """Use the tokenizer's chat template; None: where it has one."""
    system: str | None = None
    """System message, for chat templates."""
    chat_template_kwargs: dict[str, Any] = {}
    """Arguments of the chat template's own, such as {enable_thinking: false}. None given: those of the run."""
    sampler: Ref = PluginRef(kind="auto")
    """vllm or transformers; auto: vLLM where it is installed and pays."""
    scoring: ScoringConfig = ScoringConfig()
    plugins: list[str] = []
    """Python files or modules to import first."""

    @field_validator("answer", mode="before")
    @classmethod
    def _said_to_be_none(cls, answer: Any) -> Any:
        return NO_GOLDS if answer is None else answer

    @model_validator(mode="after")
    def _suites_or_own_data(self) -> Self:
        folder = self.data is not None and Path(self.data).is_dir()
        if not self.suites:
            if self.data is None:
                raise ValueError(
                    "nothing to measure on: name suites with --suite (`rlkit list suites`), or give problems of your "
                    "own with --data FILE"
                )
            if folder:
                raise ValueError(
                    f"--data {self.data} is a folder: name the suites whose copies are in it with --suite, or give a "
                    "file of problems"
                )
            if self.reward is None:
                raise ValueError(
                    f"nothing judges the answers to {self.data}: name a verifier with --reward (`rlkit list rewards`), "
                    "which a run, as --model, has itself"
                )
            return self
        if own := [key for key in OF_OWN_DATA if key in self.model_fields_set]:
            raise ValueError(
                f"{' and '.join(own)} cannot be set for a suite, which has its own: leave out --suite to measure on "
                "problems of your own, given by --data FILE"
            )
        if self.data is not None and not folder:
            what = "is a file" if Path(self.data).is_file() else "is no folder"
            raise ValueError(
                f"--data {self.data} {what}: with --suite it is the folder of the suites' local copies; leave out "
                "--suite to measure on problems of your own"
            )
        return self


def load_settings(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Settings from plain data and overrides of the form key=value. ConfigError, naming each key that does not fit."""
    data = dict(settings)
    for override in overrides:
        if override.startswith("data."):
            raise ConfigError(f"-s {override}: for an evaluation, write -s {override.removeprefix('data.')}")
        configs.set_key(data, override)
    try:
        return EvaluationConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(registry.explain(error, EvaluationConfig)) from error


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
    chosen = _chosen(config)
    config = config.model_copy(update={"sampler": generation.resolve_sampler(config.sampler, config.model)[0]})
    tokenizer = load_tokenizer(config.model)
    otherwise = "write it into its generation_config.json, as eos_token_id, or set stop to the text that ends one"
    generation.checked_end_tokens(config.model, None if config.stop else otherwise)
    limit = positions(config.model)
    results = {}
    with ExitStack() as stack:
        opened = [stack.enter_context(_opened(name, suite, tokenizer, config)) for name, suite in chosen.items()]
        loaded = [(suite, _with_room(suite, config, limit)) for suite in opened]
        folders = {suite.name: Responses(config.out / suite.name, _settings(suite, own)) for suite, own in loaded}
        _say_settings(loaded, config, limit, console)
        sampler = stack.enter_context(_sampling(loaded, folders, config, limit))
        progress = stack.enter_context(_progress(console))
        for suite, own in loaded:
            responses = folders[suite.name]
            _answer(suite, responses, Collector(sampler, suite.verifier, tokenizer, config.seed), own, progress)
            results[suite.name] = _result(suite, responses, own)
            _keep(config.out, suite.name, results[suite.name])
    console.print(_table(results))
    console.print("* quoted; 95 %: bootstrap over problems", markup=False, soft_wrap=True)
    for name, result in results.items():
        if text := _notes(result):
            console.print(f"{name}: {text}", markup=False, soft_wrap=True)
    console.print(f"responses and results: {config.out}", markup=False, soft_wrap=True)
    return results


def _chosen(config: EvaluationConfig) -> dict[str, Suite]:
    """The suites by their names, or the one that the user's own data make."""
    if config.suites:
        return {name: suites.find(name) for name in config.suites}
    assert config.reward is not None
    name, suite = suites.of_data(
        str(config.data),
        reward=configs.resolve_rewards(config.reward),
        prompt=config.prompt,
        answer=config.answer,
        template=config.template,
        subset=config.subset,
        split=config.split,
    )
    return {name: suite}


def _opened(name: str, suite: Suite, tokenizer: Any, config: EvaluationConfig) -> AbstractContextManager[OpenSuite]:
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
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "samples": _samples(suite, config),
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
        "prompts": suites.fingerprint(suite.problems),
        "columns": suites.fingerprint_of_columns(suite.problems) if suite.suite.file is not None else None,
    }


def _samples(suite: OpenSuite, config: EvaluationConfig) -> int:
    return config.samples or suite.suite.samples


def _draws(suite: OpenSuite, config: EvaluationConfig) -> list[Draw]:
    """Every sample of the suite, named by the number of its problem and its own."""
    return [
        Draw(SampleKey(problem.id, 0, i, j), problem)
        for i, problem in enumerate(suite.problems)
        for j in range(_samples(suite, config))
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
            if _fits(draw.problem, own, limit):
                context = max(context, len(draw.problem.tokens) + own.max_tokens)
            else:
                row = _response(Sampled(draw.key, draw.problem, _completion([], False), ""))
                folders[suite.name].append(row | {"correct": False, "value": None, "status": "too_long", "given": None})
    if not context:
        yield _NothingToSample()
        return
    sampler: Sampler = registry.build(
        "samplers", config.sampler.kind, config.sampler.options, config.model, context, config.seed
    )
    try:
        yield sampler
    finally:
        sampler.close()


def _fits(problem: Problem, config: EvaluationConfig, limit: int | None) -> bool:
    return limit is None or len(problem.tokens) + config.max_tokens <= limit


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
    task = progress.add_task(suite.name, total=len(responses.rows) + len(missing), completed=len(responses.rows))

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
        "tokens": sampled.completion.tokens,
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
    return verdict | ({"error": str(result.info["error"])} if "error" in result.info else {})


def _result(suite: OpenSuite, responses: Responses, config: EvaluationConfig) -> dict[str, Any]:
    rows = list(responses.rows.values())
    count = _samples(suite, config)
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


def _say_settings(
    loaded: Sequence[tuple[OpenSuite, EvaluationConfig]], config: EvaluationConfig, limit: int | None, console: Console
) -> None:
    lines = [
        f"{config.model.path} ({config.model.dtype}) by {config.sampler.kind}: temperature {config.temperature:g}, "
        f"top-p {config.top_p:g}, top-k {config.top_k or 'off'}, seed {config.seed}"
        + (f", ended by {quoted(config.stop)}" if config.stop else "")
    ]
    for suite, own in loaded:
        problems, samples = counted(len(suite.problems), "problem"), counted(_samples(suite, own), "sample")
        verifier = " + ".join(ref.kind for ref in suite.suite.rewards)
        lines.append(f"{suite.name}: {problems} x {samples} of at most {own.max_tokens} tokens, verifier {verifier}")
        lines += [f"  {said}" for said in (*_about_data(suite), *_about_room(suite, own, config, limit))]
        lines += [f"  {said}" for said in _about_golds(suite)]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _about_data(suite: OpenSuite) -> Iterator[str]:
    made = suite.suite
    if made.file is not None:
        golds = f"golds in {made.answer!r}" if made.answer is not None else "no golds"
        around = f", put as {one_line(made.template)!r}" if made.template is not None else ""
        yield f"questions in column {made.prompt!r}, {golds}, of {made.file}{around}"
    if made.count is not None and suite.rows < made.count:
        yield f"the first {len(suite.problems)} of a local copy with {suite.rows} rows; the suite has {made.count}"
    elif len(suite.problems) < suite.rows:
        yield f"the first {len(suite.problems)} of {suite.rows}"


def _about_golds(suite: OpenSuite) -> Iterator[str]:
    if suite.unchecked is not None:
        yield f"golds are not checked: {suite.unchecked}"
    elif suite.suite.file is not None and len(suite.bad_golds) == len(suite.problems):
        first = suite.bad_golds[0]
        yield f"no gold verifies against itself, not even {first}. Where the reward reads none: --answer null"
    else:
        yield from (f"gold does not verify against itself: {bad}" for bad in suite.bad_golds[:SHOWN])
        if len(suite.bad_golds) > SHOWN:
            yield f"and {len(suite.bad_golds) - SHOWN} more, of {len(suite.problems)}"


def _about_room(suite: OpenSuite, own: EvaluationConfig, config: EvaluationConfig, limit: int | None) -> Iterator[str]:
    if own.max_tokens < config.max_tokens:
        yield (
            f"{config.model.path} has {limit} positions: beside the prompts there is room for {own.max_tokens} tokens, "
            f"not for {config.max_tokens}"
        )
    if lost := sum(not _fits(problem, own, limit) for problem in suite.problems):
        longest = max(len(problem.tokens) for problem in suite.problems)
        yield (
            f"{lost} of {len(suite.problems)} prompts leave no room for {own.max_tokens} tokens in {limit} positions "
            f"(the longest has {longest}), and count as wrong (too_long)"
        )


def _notes(result: Mapping[str, Any]) -> str:
    notes = []
    if result["no_value"]:
        odd = {s: n for s, n in result["statuses"].items() if s not in ("ok", "no_answer", "refused")}
        said = ", ".join(f"{n} {s}" for s, n in odd.items())
        notes.append(f"{result['no_value']} samples without a value count as wrong ({said})")
    if result["error"]:
        notes.append(f"the first error of the verifier:\n{result['error']}")
    if result["reward"] is not None:
        mean, low, high = (number(result["reward"][key]) for key in ("value", "low", "high"))
        notes.append(f"the reward is {mean} on average (95 %: {low} to {high}), of the samples with a value")
    if result["bad_golds"]:
        notes.append(f"{len(result['bad_golds'])} golds do not verify against themselves")
    return "; ".join(notes)


def _table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("suite", "metric", "%", "95 %", "problems", "no answer", "truncated", "tokens"):
        table.add_column(heading, justify="left" if heading in ("suite", "metric") else "right", no_wrap=True)
    for name, result in results.items():
        n, total = result["samples"], result["problems"] * result["samples"]
        rest = [
            str(result["problems"]),
            f"{result['statuses'].get('no_answer', 0) / total:.0%}",
            f"{result['truncated'] / total:.0%}",
            f"{result['mean_tokens']:.0f}",
        ]
        for metric in (f"mean@{n}", f"pass@{n}", f"maj@{n}"):
            if (e := result["metrics"].get(metric)) is not None:
                table.add_row(
                    name,
                    metric + ("*" if metric == result["quoted"] else ""),
                    f"{100 * e['value']:.1f}",
                    f"{100 * e['low']:.1f} to {100 * e['high']:.1f}",
                    *rest,
                )
                name, rest = "", [""] * len(rest)
    return table


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet,
    )
