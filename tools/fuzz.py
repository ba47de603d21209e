"""Any config either runs two steps of the small model, or is refused with a message that names a key.

    python tools/fuzz.py --examples 1000

Configs are made from the schema (tests/fuzzed.py). Anything but these two is a fault: it is printed with what to type
for it beside the base config, and the exit code is 1. Counts are printed at the end.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import click
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzed import BASE, configs
from outcomes import leaves, outcome


@click.command()
@click.option("--examples", default=1000, help="Configs.  [1000]")
@click.option("--seed", "number", default=0, help="Decides which.  [0]")
def main(examples: int, number: int) -> None:
    counts: Counter[str] = Counter()
    faults: list[str] = []

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(configs())
    def fuzz(config: dict[str, object]) -> None:
        try:
            became = outcome(config)
        except Exception as error:
            became = "faults"
            faults.append(f"{shown(config)}\n  {type(error).__name__}: {error}")
            click.echo(faults[-1], err=True)
        counts[became] += 1
        if sum(counts.values()) % 50 == 0:
            click.echo(f"  {sum(counts.values())} of {examples}: {dict(counts)}", err=True)

    fuzz()
    click.echo(f"seed {number}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    sys.exit(bool(faults))


def shown(config: dict[str, object]) -> str:
    """What it has that `BASE` has not, as settings to type."""
    changed = [each for each in leaves(config) if each not in leaves(BASE)]
    return " ".join(f"-s {key}={json.dumps(value)}" for key, value in changed)


if __name__ == "__main__":
    main()
