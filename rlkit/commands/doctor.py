"""The command that examines this machine: doctor."""

from __future__ import annotations

import sys

import click


@click.command()
def doctor() -> None:
    """Say whether this machine can run rlkit, and what mends what is missing."""
    from rlkit.assembly import doctor as doctors

    checks = doctors.examine()
    click.echo(doctors.report(checks))
    sys.exit(1 if any(check.ok is False for check in checks) else 0)
