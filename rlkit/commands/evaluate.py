"""The commands that measure: eval, verify, data check."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from rlkit import registry
from rlkit.commands import completion
from rlkit.commands.hints import SettingsCommand
from rlkit.commands.options import plugins_option, trust_option
from rlkit.config.reading import set_key
from rlkit.errors import ConfigError
from rlkit.wording import visible

_data = click.option(
    "--data",
    "folder",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder of local copies of the suites (math500.jsonl, ...).  [the hub]",
)
_json = click.option("--json", "as_json", type=click.Path(dir_okay=False, path_type=Path), help="Write it as JSON too.")


def _settings() -> type[BaseModel]:
    from rlkit.evaluation.settings import EvaluationConfig

    return EvaluationConfig


@click.command("eval", cls=SettingsCommand, model=_settings)
@click.option(
    "--model",
    required=True,
    metavar="PATH|RUN",
    help="A model's folder or hub id, or a run's folder.",
    shell_complete=completion.models,
)
@click.option(
    "--suite",
    "names",
    default="",
    help="Names with commas between; see `rlkit list suites`.",
    shell_complete=completion.plugins("suites", several=True),
)
@click.option(
    "--data",
    metavar="FILE|ID|FOLDER",
    help="Problems of your own: a .json, .jsonl or .parquet file, or a data set's hub id. With --suite: a folder of "
    "local copies (math500.jsonl, ...).  [the hub]",
    shell_complete=completion.files,
)
@click.option("--prompt", help="Your data's column of questions.  [a run's; or prompt, problem or question]")
@click.option("--answer", help="Its column of golds; dots go into nested columns; null: there are none.  [likewise]")
@click.option(
    "--reward",
    metavar="NAME|FILE.py:FUNCTION",
    help="What judges the answers.  [a run's]",
    shell_complete=completion.plugins("rewards"),
)
@click.option("-n", "samples", type=click.IntRange(min=1), help="Samples of each problem.  [32 for AIME, else 1]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many problems.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Longest response.  [4096, or what the model has room for]"
)
@click.option("--temperature", type=click.FloatRange(min=0), metavar="T", help="0: greedy.  [1]")
@click.option(
    "--urls", metavar="URL,...", help="Sample with servers that hold this model: `rlkit serve` starts one.  [here]"
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of responses and results.")
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting: top_p=0.95, reward.strict=true.",
)
@plugins_option
@trust_option
def evaluate(
    model: str,
    names: str,
    data: str | None,
    prompt: str | None,
    answer: str | None,
    reward: str | None,
    samples: int | None,
    limit: int | None,
    max_tokens: int | None,
    temperature: float | None,
    urls: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    trusts: bool,
) -> None:
    """Measure a model on benchmark suites, or on problems of your own; the same command goes on where it stopped.

    \b
    rlkit eval --model runs/vimpo-s-seed0 --suite math500,aime24
    rlkit eval --model runs/vimpo-s-seed0 --data test.jsonl
    rlkit eval --model embedded:s --data test.jsonl --prompt question --reward final_answer
    """
    from rlkit.assembly import evaluate as evaluating

    given = {
        "data": data,
        "prompt": prompt,
        "answer": answer,
        "reward": reward,
        "samples": samples,
        "limit": limit,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "sampler": None if urls is None else {"kind": "vllm_server", "urls": _listed(urls)},
        "out": out,
    }
    evaluating.evaluate(model, _listed(names), given, overrides=overrides, plugins=plugins, trusts=trusts)


def _listed(words: str) -> list[str]:
    return [word.strip() for word in words.split(",") if word.strip()]


def _tokenizer(model: str | None, trusts: bool) -> Any:
    if model is None:
        return None
    from rlkit.assembly.sampling import model_of
    from rlkit.engine.models import load_tokenizer

    return load_tokenizer(model_of(model, trusts))


@click.command("verify")
@click.argument(
    "path", metavar="RUN|FILE", type=click.Path(exists=True, path_type=Path), shell_complete=completion.runs
)
@click.option(
    "--reward",
    "rewards",
    multiple=True,
    required=True,
    metavar="NAME",
    help="A verifier; several compare.",
    shell_complete=completion.plugins("rewards"),
)
@click.option("--response", default="response", help="Column of the responses.  [response]")
@click.option("--answer", default="answer", help="Column of the golds.  [answer]")
@click.option("--expected", help="Column of verdicts to compare with.  [for a run: its own]")
@click.option("--model", metavar="PATH|RUN", help="For a file: whose tokens rewards see that read them.")
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of a reward: reward.strict=true, or, of several, math.strict=true.",
)
@click.option("--show", default=20, type=click.IntRange(min=0), help="Disagreements to print.  [20]")
@_json
@plugins_option
@trust_option
def verify(
    path: Path,
    rewards: tuple[str, ...],
    response: str,
    answer: str,
    expected: str | None,
    model: str | None,
    overrides: tuple[str, ...],
    show: int,
    as_json: Path | None,
    plugins: tuple[str, ...],
    trusts: bool,
) -> None:
    """Score saved responses again, and show where verifiers disagree.

    Takes a run's rollouts, or any .json, .jsonl or .parquet file with columns of responses and golds.
    """
    from rlkit.evaluation import verify as verifying
    from rlkit.records.folder import RunFolder

    registry.load(list(plugins))
    for reward in rewards:
        if reward not in registry.names("rewards") and RunFolder.is_one(path):
            _refuse_unnamed(reward, RunFolder(path).read_config().plugins)
        registry.find("rewards", reward)
    options = _options(rewards, overrides)
    answered = verifying.read(path, response, answer, expected, _tokenizer(model, trusts))
    recorded = verifying.RECORDED if path.is_dir() and expected is None else expected or "expected"
    compared = verifying.compare(answered, rewards, plugins=plugins, recorded=recorded, options=options)
    click.echo(visible(verifying.report(compared, show)))
    _write(as_json, compared)


def _refuse_unnamed(reward: str, plugins: list[str]) -> None:
    """ConfigError where plugins that a run's config names may have this reward: the run may be somebody else's."""
    if plugins:
        named = " ".join(f"--plugin {shlex.quote(plugin)}" for plugin in plugins)
        raise ConfigError(
            f"unknown reward {reward!r}. The run had plugins, which are not imported unless you say so, as they may be "
            f"somebody else's code: add {named}"
        )


def _options(rewards: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Each reward's options; `reward.KEY` is of the only one. ConfigError for those that cannot be."""
    options: dict[str, dict[str, Any]] = {name: {} for name in rewards}
    for override in overrides:
        name, _, option = override.partition("=")[0].partition(".")
        name = rewards[0] if name == "reward" and len(rewards) == 1 else name
        if not option or name not in options:
            known = " or ".join(f"{each}.OPTION=VALUE" for each in rewards)
            raise ConfigError(f"-s {override}: give the option of a reward, as in -s {known}")
        set_key(options[name], override.partition(".")[2])
    for name, chosen in options.items():
        registry.validate_options(registry.find("rewards", name), chosen, name)
    return options


@click.group("data")
def data() -> None:
    """Look at data sets."""


@data.command("check")
@click.argument("file")
@click.option("--prompt", help="Column of the questions.  [prompt, problem or question]")
@click.option("--answer", help="Column of the golds; dots go into nested columns; null: there are none.")
@click.option("--tokenizer", metavar="PATH|RUN", help="Count lengths in this model's tokens.  [characters]")
@click.option("--reward", metavar="NAME", help="Verify each gold against itself with this verifier.")
@click.option("--show", default=10, type=click.IntRange(min=0), help="Rows to print of each fault.  [10]")
@_data
@click.option("--no-overlap", is_flag=True, help="Do not look for questions of evaluation suites.")
@_json
@plugins_option
@trust_option
def check(
    file: str,
    prompt: str | None,
    answer: str | None,
    tokenizer: str | None,
    reward: str | None,
    show: int,
    folder: Path | None,
    no_overlap: bool,
    as_json: Path | None,
    plugins: tuple[str, ...],
    trusts: bool,
) -> None:
    """Say what a data set holds, and what is wrong with it.

    Rows, columns, lengths, repeated prompts, golds that no answer can match, and questions of evaluation suites.
    FILE is a .json, .jsonl or .parquet file, or a data set's hub id.
    """
    from rlkit.evaluation import datacheck

    registry.load(list(plugins))
    if reward is not None:
        registry.find("rewards", reward)
    found = datacheck.check(
        file,
        prompt=prompt,
        answer=answer,
        tokenizer=_tokenizer(tokenizer, trusts),
        reward=reward,
        folder=folder,
        with_suites=not no_overlap,
        plugins=plugins,
    )
    click.echo(visible(datacheck.report(found, show)))
    _write(as_json, found)


def _write(file: Path | None, found: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
