"""The command that begins a plugin: new."""

from __future__ import annotations

import click

from rlkit import scaffold


@click.command()
@click.argument("kind", type=click.Choice(scaffold.KINDS))
@click.argument("name")
@click.option("--single-file", is_flag=True, help="NAME.py alone, for --plugin; no package around it.")
def new(kind: scaffold.Kind, name: str, single_file: bool) -> None:
    """Begin a plugin of your own: write a small package NAME that works as it stands.

    \b
    rlkit new algorithm mine
    rlkit new reward strict --single-file
    """
    written = scaffold.write(kind, name, single_file=single_file)
    click.echo(f"wrote {', '.join(str(file) for file in written.files)}; next:")
    width = max(len(command) for command, _ in written.next)
    for command, why in written.next:
        click.echo(f"  {command:<{width}}  # {why}")
    click.echo(f"It works as it stands: change {written.files[0]} from there.")
