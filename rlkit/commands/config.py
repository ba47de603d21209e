"""The commands of configs: ls, show, cp, validate, schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rlkit import config as configs
from rlkit import registry
from rlkit.commands import completion
from rlkit.commands.described import key_page
from rlkit.commands.hints import SettingsCommand
from rlkit.commands.options import plugins_option, settings_options
from rlkit.errors import ConfigError, nearest


@click.group()
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
@click.argument("name", metavar="PRESET|KEY", shell_complete=completion.presets_and_keys)
@plugins_option
def config_show(name: str, plugins: tuple[str, ...]) -> None:
    """Print a preset; or explain a key, such as optimizer.lr, a plugin's option (algo.beta), or a section (batch)."""
    registry.load(list(plugins))
    if name in configs.presets():
        click.echo(_preset(name), nl=False)
    else:
        click.echo(key_page(name))


@config.command("cp")
@click.argument("name", shell_complete=completion.presets)
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


@config.command("validate", cls=SettingsCommand, model=lambda: configs.RunConfig)
@settings_options
def config_validate(settings: configs.RunConfig) -> None:
    """Check a preset or a YAML file, and print it with every default filled in."""
    import yaml

    click.echo(yaml.safe_dump(configs.resolve(settings).dump(), sort_keys=False), nl=False)


@config.command("schema")
@plugins_option
def config_schema(plugins: tuple[str, ...]) -> None:
    """Print the config's JSON schema, with what each key means and the options of every plugin, for editors."""
    from rlkit.config.schema import schema

    registry.load(list(plugins))
    click.echo(json.dumps(schema(), indent=2))
