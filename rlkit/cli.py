"""The command line."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rlkit import config as configs
from rlkit import registry
from rlkit.commands import compare, evaluate, inspect, report, sweep
from rlkit.errors import ConfigError, RlkitError, nearest


class _Group(click.Group):
    """Errors that a user can mend are printed as sentences; others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RlkitError as error:
            rank = os.environ.get("RANK", "0")
            click.echo(f"rlkit: {error}" if rank == "0" else f"rlkit (rank {rank}): {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rlkit")
def main() -> None:
    """Reinforcement learning from verifiable rewards on language models, for comparing algorithms.

    `rlkit run --algo vimpo` trains the small model that ships with rlkit, in a few minutes on a CPU.
    """
    # A person reads them, for whom the line of code that warned is noise.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


_set = click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set any field of the config.")
_plugins = click.option("--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help="Import a plugin first.")


def _settings(f: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a config out of a preset or a file."""

    @click.argument("config", default="embedded")
    @click.option("--algo", metavar="NAME", help="The algorithm; other options of the same one stay as they are.")
    @_set
    @_plugins
    @functools.wraps(f)
    def wrapped(
        config: str, algo: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...], **rest: Any
    ) -> Any:
        return f(_load(config, algo, overrides, plugins), **rest)

    return wrapped


def _load(config: str, algo: str | None, overrides: tuple[str, ...], plugins: tuple[str, ...]) -> configs.RunConfig:
    loaded = configs.load(config, list(overrides), algo)
    return loaded.model_copy(update={"plugins": [*loaded.plugins, *(p for p in plugins if p not in loaded.plugins)]})


@main.command()
@click.argument("words", nargs=-1, metavar="[CONFIG] [KEY=VALUE]...")
@click.option("--algo", metavar="NAME", help="The algorithm: vimpo, grpo, ppo, ... (see `rlkit list`).")
@_set
@_plugins
@click.option("--seed", type=int, help="Decides data order, samples and noise.")
@click.option("--name", help="Name of the run's folder.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all runs.  [runs]")
@click.option("--noise", "noises", multiple=True, metavar="KIND:P", help="Disturb rewards, as in group_flip:0.25.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with the run in this folder.")
@click.option("--nproc", type=click.IntRange(min=1), default=1, help="Ranks on this machine.  [1]")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def run(
    words: tuple[str, ...],
    algo: str | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    seed: int | None,
    name: str | None,
    out: Path | None,
    noises: tuple[str, ...],
    resume: Path | None,
    nproc: int,
    dry_run: bool,
) -> None:
    """Train a model. CONFIG is a preset (`rlkit config ls`) or a YAML file.  [embedded]

    KEY=VALUE is the same as -s KEY=VALUE.
    """
    from rlkit import run as runs

    config, more = _config_and_settings(words)
    if resume is not None:
        if name is not None or out is not None:
            raise ConfigError("--resume goes on in the run's own folder: leave out --name and --out")
        config = _resumed(resume, config)
        out, name = resume.resolve().parent, resume.resolve().name
    # Quoted: values are read as YAML, where a name such as 1 would be a number.
    shortcuts = {"seed": seed, "name": name and json.dumps(name), "out": out and json.dumps(str(out))}
    shortcut = (f"{key}={value}" for key, value in shortcuts.items() if value is not None)
    settings = _load(config, algo, (*overrides, *more, *shortcut), plugins)
    if resume is None and os.environ.get("WANDB_SWEEP_ID") and (run_id := os.environ.get("WANDB_RUN_ID")):
        # An agent of wandb's starts one command for many runs, which may differ in what their name leaves out.
        settings = settings.model_copy(update={"name": f"{settings.run_name}-{run_id}"})
    if noises:
        settings = _with_noise(settings, noises)
    runs.prepare_environment()
    if dry_run:
        click.echo(runs.plan(configs.resolve(settings), nproc))
        return
    if nproc > 1 and "RANK" not in os.environ:
        from rlkit.launch import launch

        configs.resolve(settings)
        sys.exit(launch(nproc, _without_nproc(sys.argv[1:])))
    folder = runs.train(settings, resume=resume is not None)
    if os.environ.get("RANK", "0") == "0":
        click.echo(runs.summary(folder))


def _config_and_settings(words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The first word names the config, unless it is a setting itself; a file's name may hold a `=` too."""
    left_out = not words or (re.match(r"[\w.]+=", words[0]) is not None and not Path(words[0]).is_file())
    config, settings = ("embedded", words) if left_out else (words[0], words[1:])
    for word in settings:
        if "=" not in word:
            raise click.UsageError(
                f"{word!r}: expected KEY=VALUE, as in optimizer.lr=1e-4; only one CONFIG can be given, the first word"
            )
    return config, settings


def _with_noise(settings: configs.RunConfig, noises: tuple[str, ...]) -> configs.RunConfig:
    from rlkit.reward_noise import parse_noise

    registry.load(settings.plugins)
    parsed = [configs.PluginRef(**parse_noise(noise)) for noise in noises]
    return settings.model_copy(update={"noise": [*settings.noise, *parsed]})


def _resumed(run: Path, config: str) -> str:
    if config != "embedded":
        raise ConfigError("--resume takes the config of the run itself: leave CONFIG out, and use -s for changes")
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"--resume {run}: no run is there (no config.yaml)")
    return str(run / "config.yaml")


def _without_nproc(arguments: list[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--nproc":
            skip = True
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


@main.command("list")
@click.argument("kind", required=False, type=click.Choice(registry.KINDS))
@_plugins
def list_plugins(kind: registry.Kind | None, plugins: tuple[str, ...]) -> None:
    """Show the plugins: name, one line, and the package each comes from."""
    registry.load(list(plugins))
    failed = []
    for each in [kind] if kind else registry.KINDS:
        rows = list(registry.all_plugins(each))
        click.secho(each, bold=True)
        width = max((len(name) for name, _ in rows), default=0)
        for name, plugin in rows:
            if isinstance(plugin, Exception):
                click.echo(f"  {name:<{width}}  does not import: see below")
                failed.append((each, name, plugin))
            else:
                click.echo(f"  {name:<{width}}  {plugin.summary}  [{plugin.distribution}]")
        if not rows:
            click.echo("  none")
    for each, name, error in failed:
        click.echo(f"\n{each} {name!r}: " + "".join(traceback.format_exception_only(error)), err=True)
    if failed:
        sys.exit(1)


@main.group()
def config() -> None:
    """List, show, copy and check configs."""


@config.command("ls")
def config_ls() -> None:
    """The presets that ship, with their first comment line."""
    shipped = configs.presets()
    width = max(map(len, shipped))
    for name, text in shipped.items():
        click.echo(f"{name:<{width}}  {text.partition(chr(10))[0].lstrip('# ')}")


@config.command("show")
@click.argument("name")
def config_show(name: str) -> None:
    """Print a preset."""
    click.echo(_preset(name), nl=False)


@config.command("cp")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def config_cp(name: str, file: Path) -> None:
    """Copy a preset to FILE: it is yours then."""
    text = _preset(name)
    if file.exists():
        raise ConfigError(f"{file} exists already: choose another name, or remove it first")
    try:
        file.write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    click.echo(f"{file}: change it as you like, then `rlkit run {file}`")


def _preset(name: str) -> str:
    shipped = configs.presets()
    if name not in shipped:
        raise ConfigError(f"no preset {name!r}{nearest(name, shipped)}")
    return shipped[name]


@config.command("validate")
@_settings
def config_validate(settings: configs.RunConfig) -> None:
    """Check a preset or a YAML file, and print it with every default filled in."""
    import yaml

    click.echo(yaml.safe_dump(configs.resolve(settings).dump(), sort_keys=False), nl=False)


@config.command("schema")
def config_schema() -> None:
    """Print the config's JSON schema, with what each field means."""
    click.echo(json.dumps(configs.RunConfig.model_json_schema(), indent=2))


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompt")
@click.option("-n", "--count", default=1, type=click.IntRange(min=1), help="Responses.  [1]")
@click.option("--seed", default=0, help="Decides what is drawn.  [0]")
def sample(run: Path, prompt: str, count: int, seed: int) -> None:
    """Ask the newest model of RUN, as in `rlkit sample runs/vimpo-s-seed0 "47+85="`."""
    from rlkit import run as runs

    for response in runs.sample(run, prompt, count, seed):
        click.echo(response)


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def export(run: Path, folder: Path) -> None:
    """Copy the newest model of RUN to FOLDER, for `from_pretrained` and vLLM."""
    import shutil

    from rlkit import run as runs

    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or remove it first")
    try:
        shutil.copytree(runs.newest_model(run), folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error}") from error
    click.echo(str(folder))


@main.command()
def doctor() -> None:
    """Say whether this machine can run rlkit, and what mends what is missing."""
    from rlkit import doctor as doctors

    checks = doctors.examine()
    click.echo(doctors.report(checks))
    sys.exit(1 if any(check.ok is False for check in checks) else 0)


for command in (
    sweep.sweep,
    compare.compare,
    report.report,
    inspect.inspect,
    evaluate.evaluate,
    evaluate.verify,
    evaluate.data,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
