"""The command that shows what is registered: list."""

from __future__ import annotations

import sys
import traceback

import click

from rlkit import registry
from rlkit.commands.options import plugins_option


@click.command("list")
@click.argument("kind", required=False, type=click.Choice(registry.KINDS))
@plugins_option
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
