"""The command that writes a config for one's own model and data: init."""

from __future__ import annotations

from pathlib import Path

import click

from rlkit import registry
from rlkit.commands.options import plugins_option
from rlkit.data.reading import ANSWERS, NO_GOLDS, PROMPTS
from rlkit.errors import ConfigError
from rlkit.wording import visible


@click.command()
@click.argument("file", default="mine.yaml", type=click.Path(path_type=Path))
@click.option("--model", metavar="PATH|ID", help="A folder, a hub id, or embedded:s.")
@click.option("--data", metavar="FILE|ID", help="A .json, .jsonl or .parquet file, or a data set's hub id.")
@click.option("--subset", help="A hub data set's configuration name.")
@click.option("--prompt", help="Column of the questions.  [prompt, problem or question]")
@click.option("--answer", help="Column of the golds; dots go into nested columns; null: there are none.")
@click.option("--reward", metavar="NAME|FILE.py:FUNCTION", help="What judges the answers.  [what the golds call for]")
@click.option("--algo", metavar="NAME", help="The algorithm: vimpo, grpo, ppo, ...  [vimpo]")
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks, one a GPU.  [all GPUs]")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is found.")
@plugins_option
def init(
    file: Path,
    model: str | None,
    data: str | None,
    subset: str | None,
    prompt: str | None,
    answer: str | None,
    reward: str | None,
    algo: str | None,
    nproc: int | None,
    yes: bool,
    plugins: tuple[str, ...],
) -> None:
    """Write FILE, a config for your model and data, after a look at both.  [mine.yaml]

    What no option says is asked. Each setting in FILE has its reason as a comment.

    \b
    rlkit init
    rlkit init words.yaml --model ./my-model --data train.jsonl --yes
    """
    if file.exists():
        raise ConfigError(f"{file} exists already: choose another name, or remove it first")
    ask, say = (_take, _nothing) if yes else (_ask, _aside)
    from rlkit.assembly.run import prepare_environment

    prepare_environment()
    registry.load(list(plugins))
    if algo is not None:
        registry.find("algorithms", algo)
    from rlkit.proposal import config_file, machine
    from rlkit.proposal import data as datas
    from rlkit.proposal import model as models
    from rlkit.proposal import verifier as verifiers
    from rlkit.proposal.choosing import choose

    model = model or ask("Model (a folder, a hub id, or embedded:s)", "embedded:s", "--model")
    looked = models.look_at(model)
    say(f"  {looked}")
    found = looked.task or datas.here()
    data = data or ask("Data (a file, a hub id, or embedded:arithmetic)", found, "--data", "no data was found here")
    rows = datas.read(data, subset)
    columns = ", ".join(rows[0])
    say(f"  {len(rows)} rows with the columns {columns}")
    unknown = f"{data}: which of its columns ({columns}) holds the "
    found = datas.found_column(rows, PROMPTS)
    prompt = prompt or ask("Column of the questions", found, "--prompt", f"{unknown}questions is not known")
    found = datas.found_column(rows, ANSWERS)
    answer = answer or ask(
        "Column of the golds (null: there are none)", found, "--answer", f"{unknown}golds is not known"
    )
    problems = datas.look_at(data, subset, rows, prompt, None if answer == NO_GOLDS else answer)
    found = verifiers.propose(problems, looked)
    reward = reward or ask(
        "What judges the answers (`rlkit list rewards`)", found, "--reward", verifiers.none(problems)
    )
    verifier = verifiers.take(problems, reward, plugins)
    for verdict in verifier.verdicts:
        say(f"  {verdict}")
    algo = algo or ask("Algorithm (`rlkit list algorithms`)", "vimpo", "--algo")
    registry.find("algorithms", algo)
    here = machine.look_at()
    ranks = nproc or max(1, here.gpus)
    command = f"rlkit run {file}" + (f" --nproc {ranks}" if ranks > 1 else "")
    made = choose(looked, problems, verifier, algo, here, ranks, plugins)
    text = config_file.checked(made, ranks, f"Written by `rlkit init`. To train: {command}", str(file))
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"{file} is written, with a reason for each setting. Of what it says:")
    for line in config_file.in_brief(made):
        click.echo(visible(line))
    click.echo(f"What it would do: {command} --dry-run")
    if verifier.doubt:
        click.echo(visible(f"warning: {verifier.doubt}"), err=True)


def _take(question: str, found: str | None, option: str, unknown: str = "") -> str:
    """What was found. ConfigError, beginning with `unknown`, where nothing was."""
    if found is None:
        raise ConfigError(f"{unknown}. Give {option}")
    return found


def _ask(question: str, found: str | None, option: str, unknown: str = "") -> str:
    if found is None:
        _aside(f"  {unknown}")
    try:
        said: str = click.prompt(question, default=found, err=True)
    except click.Abort as error:
        raise ConfigError(f"\nno answer: give {option}, or take what is found with --yes") from error
    return said.strip()


def _aside(text: str) -> None:
    click.echo(visible(text), err=True)


def _nothing(text: str) -> None:
    """For who is not asked: the file says all of it."""
