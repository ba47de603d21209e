"""The command that examines this machine: doctor."""

from __future__ import annotations

import sys

import click

from rlkit.commands import completion
from rlkit.commands.options import set_option
from rlkit.errors import ConfigError


@click.command()
@click.option(
    "--parity",
    "model",
    metavar="RUN|PATH",
    help="Of this model: do sampler, trainer and transformers give the same log-probs?",
    shell_complete=completion.models,
)
@click.option("--urls", metavar="URL,...", help="With --parity: servers that hold the model, too.")
@set_option
def doctor(model: str | None, urls: str | None, overrides: tuple[str, ...]) -> None:
    """Say whether this machine can run rlkit, and what mends what is missing.

    \b
    rlkit doctor --parity Qwen/Qwen3-0.6B -s model.dtype=bfloat16
    """
    if model is not None:
        sys.exit(_parity(model, urls, overrides))
    if urls is not None or overrides:
        raise ConfigError("--urls and -s are for --parity: name the model that is to be examined")
    from rlkit.assembly import doctor as doctors

    checks = doctors.examine()
    click.echo(doctors.report(checks))
    sys.exit(1 if any(check.ok is False for check in checks) else 0)


def _parity(model: str, urls: str | None, overrides: tuple[str, ...]) -> int:
    from rlkit.assembly.run import prepare_environment

    prepare_environment()
    from rlkit.assembly import parity

    config = parity.settings(model, overrides)
    refs = parity.samplers([url.strip() for url in (urls or "").split(",") if url.strip()])
    click.echo(parity.heading(config))
    findings = []
    for finding in parity.examine(config, refs):
        click.echo(parity.line(finding))
        findings.append(finding)
    click.echo(parity.verdict(findings))
    return 0 if all(finding.ok for finding in findings) else 1
