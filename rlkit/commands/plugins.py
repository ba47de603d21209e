"""The command that shows what is registered: list."""

from __future__ import annotations

import sys
import traceback

import click

from rlkit import registry
from rlkit.commands import completion
from rlkit.commands.described import plugin_page
from rlkit.commands.options import plugins_option
from rlkit.errors import ConfigError, nearest


class _Kind(click.Choice[str]):
    """What is no kind is answered as an unknown name is elsewhere."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in registry.KINDS:
            return value
        if value.startswith("preset"):
            raise ConfigError(
                "presets are no plugins: `rlkit config ls` lists them, and `rlkit config show NAME` prints one"
            )
        kinds = [kind for kind in registry.KINDS if value in registry.names(kind)]
        instead = f"; did you mean `rlkit list {kinds[0]} {value}`?" if kinds else nearest(value, registry.KINDS)
        raise ConfigError(f"no kind of plugins is called {value!r}{instead}")


@click.command("list")
@click.argument("kind", required=False, type=_Kind(registry.KINDS))
@click.argument("name", required=False, shell_complete=completion.of_its_kind)
@plugins_option
def list_plugins(kind: registry.Kind | None, name: str | None, plugins: tuple[str, ...]) -> None:
    """Show the plugins: name, one line, and the package each comes from; or all of one, as in `list rewards math`."""
    registry.load(list(plugins))
    if kind is not None and name is not None:
        click.echo(plugin_page(registry.find(kind, name)))
        return
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
    if kind is not None and not failed:
        click.echo(f"`rlkit list {kind} NAME` shows the options of one.")
    if failed:
        sys.exit(1)
