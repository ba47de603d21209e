"""A model on benchmark suites: sample, verify, count; `rlkit eval`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rlkit import config as configs
from rlkit import generation, registry
from rlkit.config import ModelConfig, PluginRef, Positive, Ref, ScoringConfig, Section
from rlkit.engine.models import load_tokenizer, positions
from rlkit.errors import ConfigError
from rlkit.evaluation import suites, verify
from rlkit.evaluation.metrics import Verdict, measure
from rlkit.evaluation.responses import Key, Responses
from rlkit.evaluation.suites import LoadedSuite
from rlkit.files import write_text
from rlkit.interfaces.generation import Request, Sampler, SamplingParams
from rlkit.interfaces.rewards import Sample, SampleKey


class EvaluationConfig(Section):
    """What `rlkit eval` does. The sampling defaults are those of VIMPO's paper (arXiv 2606.20008)."""

    model: ModelConfig
    suites: Annotated[list[str], Field(min_length=1)]
    """`rlkit list suites`."""
    out: Path
    """Folder of settings, responses and results; what is there is gone on with."""
    samples: Positive | None = None
    """Responses to each problem; None: the suite's own number (32 for AIME, else 1)."""
    limit: Positive | None = None
    """Only the first so many problems of each suite."""
    data: Path | None = None
    """Folder of local copies of the suites; None: from the hub."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the responses and the intervals."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0: greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.7
    """1: the whole distribution."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0: all."""
    max_tokens: Positive = 4096
    """Longest response."""
    chat: bool | None = None
    """Use the tokenizer's chat template; None: where it has one."""
    system: str | None = None
    """System message, for chat templates."""
    sampler: Ref = PluginRef(kind="auto")
    """vllm or transformers; auto: vLLM where it is installed and pays."""
    scoring: ScoringConfig = ScoringConfig()
    plugins: list[str] = []
    """Python files or modules to import first."""


def load_settings(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Settings from plain data and overrides of the form key=value. ConfigError, naming each key that does not fit."""
    data = dict(settings)
    for override in overrides:
        configs.set_key(data, override)
    try:
        return EvaluationConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(registry.explain(error, EvaluationConfig)) from error


def run_evaluation(config: EvaluationConfig, quiet: bool = False) -> dict[str, Any]:
    """Evaluate a model, going on with what `config.out` holds; returns what is written to results.json there.

    A sample without a value counts as wrong and is counted by status; so does one whose prompt leaves no room for a
    response (status `too_long`). Raises ConfigError for unknown suites, data that is not there, and settings that
    differ from those in the folder; RlkitError for what goes wrong later.
    """
    console = Console(quiet=quiet, highlight=False)
    registry.load(config.plugins)
    if len(set(config.suites)) < len(config.suites):
        raise ConfigError(f"suites: {', '.join(config.suites)}: each only once")
    for name in config.suites:
        suites.find(name)
    config = config.model_copy(update={"sampler": generation.resolve_sampler(config.sampler, config.model)[0]})
    tokenizer = load_tokenizer(config.model)
    loaded = [_load(name, tokenizer, config) for name in config.suites]
    limit = positions(config.model)
    if limit is not None and config.max_tokens >= limit:
        raise ConfigError(
            f"max_tokens ({config.max_tokens}) leaves no room for a prompt: {config.model.path} has {limit} positions"
        )
    folders = {suite.name: Responses(config.out / suite.name, _settings(suite, config)) for suite in loaded}
    _say_settings(loaded, config, console)
    results = {}
    with _sampling(loaded, folders, config, limit) as sampler, _progress(console) as progress:
        for suite in loaded:
            responses = folders[suite.name]
            _sample(suite, responses, sampler, tokenizer, config, progress)
            _score(suite, responses, config)
            results[suite.name] = _result(suite, responses, config)
            _keep(config.out, suite.name, results[suite.name])
    console.print(_table(results))
    console.print("* quoted; 95 %: bootstrap over problems", markup=False, soft_wrap=True)
    for name, result in results.items():
        if text := _notes(result):
            console.print(f"{name}: {text}", markup=False, soft_wrap=True)
    console.print(f"responses and results: {config.out}", markup=False, soft_wrap=True)
    return results


def _load(name: str, tokenizer: Any, config: EvaluationConfig) -> LoadedSuite:
    return suites.load(
        name,
        tokenizer,
        folder=config.data,
        limit=config.limit,
        chat=config.chat,
        system=config.system,
        scoring=config.scoring,
        plugins=config.plugins,
    )


def _settings(suite: LoadedSuite, config: EvaluationConfig) -> dict[str, Any]:
    """What decides a suite's responses and verdicts."""
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "samples": _samples(suite, config),
        "problems": len(suite.problems),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_tokens,
        "seed": config.seed,
        "sampler": config.sampler.kind,
        "template": suite.suite.template,
        "chat": config.chat,
        "system": config.system,
        "verifier": suite.suite.verifier.model_dump(),
        "prompts": suites.fingerprint(suite.problems),
    }


def _samples(suite: LoadedSuite, config: EvaluationConfig) -> int:
    return config.samples or suite.suite.samples


@contextmanager
def _sampling(
    loaded: list[LoadedSuite], folders: Mapping[str, Responses], config: EvaluationConfig, limit: int | None
) -> Iterator[Sampler | None]:
    """A sampler for the longest prompt, closed at the end; None where nothing is left to sample.

    Samples of prompts that leave no room for a response are put down as such first.
    """
    longest = 0
    for suite in loaded:
        for i, j in _missing(suite, folders[suite.name], config):
            size = len(suite.problems[i].tokens)
            if limit is not None and size + config.max_tokens > limit:
                row = _row(suite, (i, j), "", 0, False)
                folders[suite.name].append(row | {"correct": False, "value": None, "status": "too_long", "given": None})
            else:
                longest = max(longest, size)
    if not longest:
        yield None
        return
    context = longest + config.max_tokens
    sampler: Sampler = registry.build(
        "samplers", config.sampler.kind, config.sampler.options, config.model, context, config.seed
    )
    try:
        yield sampler
    finally:
        sampler.close()


def _missing(suite: LoadedSuite, responses: Responses, config: EvaluationConfig) -> list[Key]:
    every = [(i, j) for i in range(len(suite.problems)) for j in range(_samples(suite, config))]
    return [key for key in every if key not in responses.rows]


def _sample(
    suite: LoadedSuite,
    responses: Responses,
    sampler: Sampler | None,
    tokenizer: Any,
    config: EvaluationConfig,
    progress: Progress,
) -> None:
    """Draw what is missing, each response on disk as it ends."""
    missing = _missing(suite, responses, config)
    params = SamplingParams(
        max_tokens=config.max_tokens, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k
    )
    requests = [
        Request(prompt_tokens=suite.problems[i].tokens, seed=_seed(suite, i, j, config.seed), params=params)
        for i, j in missing
    ]
    done = len(responses.rows)
    task = progress.add_task(suite.name, total=done + len(missing), completed=done)
    for at, completion in sampler.generate(requests) if sampler is not None else ():
        text = tokenizer.decode(completion.tokens, skip_special_tokens=True)
        responses.append(_row(suite, missing[at], text, len(completion.tokens), completion.truncated))
        progress.advance(task)


def _seed(suite: LoadedSuite, i: int, j: int, seed: int) -> int:
    key = SampleKey(prompt_id=suite.problems[i].id, rollout_step=0, occurrence=i, index=j)
    return key.seed(seed, f"suite/{suite.name}")


def _row(suite: LoadedSuite, key: Key, text: str, tokens: int, truncated: bool) -> dict[str, Any]:
    i, j = key
    problem = suite.problems[i]
    return {
        "problem": i,
        "sample": j,
        "prompt_id": problem.id,
        "prompt": problem.text,
        "response": text,
        "tokens": tokens,
        "truncated": truncated,
        "answer": problem.answer,
    }


def _score(suite: LoadedSuite, responses: Responses, config: EvaluationConfig) -> None:
    """A verdict for each response that has none yet."""
    unscored = [row for row in responses.rows.values() if "status" not in row]
    samples = [
        Sample(
            key=SampleKey(row["prompt_id"], 0, row["problem"], row["sample"]),
            prompt=row["prompt"],
            response=row["response"],
            tokens=[],
            answer=row["answer"],
            truncated=row["truncated"],
            columns=suite.problems[row["problem"]].columns,
        )
        for row in unscored
    ]
    with verify.scorer(suite.suite.verifier, config.scoring, config.plugins) as scorer:
        results = scorer.score(samples)
    for row, result in zip(unscored, results, strict=True):
        row |= {
            "correct": bool(result.correct),
            "value": result.value,
            "status": result.status,
            "given": result.info.get("answer"),
        }
    responses.replace(list(responses.rows.values()))


def _result(suite: LoadedSuite, responses: Responses, config: EvaluationConfig) -> dict[str, Any]:
    rows = list(responses.rows.values())
    count = _samples(suite, config)
    verdicts = [[Verdict(r["correct"], _vote(r)) for r in rows[i : i + count]] for i in range(0, len(rows), count)]
    known = all(r["correct"] or r["given"] is not None or r["status"] != "ok" for r in rows)
    estimates = measure(verdicts, config.seed, majority=known)
    return {
        "problems": len(suite.problems),
        "samples": count,
        "quoted": f"{suite.suite.metric}@{count}" if count > 1 else "mean@1",
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        "statuses": dict(Counter(r["status"] for r in rows)),
        "no_value": sum(r["value"] is None for r in rows),
        "truncated": sum(r["truncated"] for r in rows),
        "mean_tokens": sum(r["tokens"] for r in rows) / len(rows),
        "bad_golds": suite.bad_golds,
        "settings": _settings(suite, config),
    }


def _vote(row: Mapping[str, Any]) -> str | None:
    return None if row["given"] is None else " ".join(str(row["given"]).split())


def _keep(out: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put one suite's result into results.json, beside those of other suites."""
    file = out / "results.json"
    there = json.loads(file.read_text()) if file.is_file() else {}
    write_text(file, json.dumps(there | {name: result}, indent=2, ensure_ascii=False) + "\n")


def _say_settings(loaded: Sequence[LoadedSuite], config: EvaluationConfig, console: Console) -> None:
    lines = [
        f"{config.model.path} ({config.model.dtype}) by {config.sampler.kind}: temperature {config.temperature:g}, "
        f"top-p {config.top_p:g}, top-k {config.top_k or 'off'}, at most {config.max_tokens} tokens, seed {config.seed}"
    ]
    for suite in loaded:
        lines.append(
            f"{suite.name}: {len(suite.problems)} problems x {_samples(suite, config)} samples, verifier "
            f"{suite.suite.reward}"
        )
        lines += [f"  gold does not verify against itself: {bad}" for bad in suite.bad_golds]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _notes(result: Mapping[str, Any]) -> str:
    notes = []
    if result["no_value"]:
        odd = {s: n for s, n in result["statuses"].items() if s not in ("ok", "no_answer", "refused")}
        said = ", ".join(f"{n} {s}" for s, n in odd.items())
        notes.append(f"{result['no_value']} samples without a value count as wrong ({said})")
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
