"""What a run of several ranks needs of the hub is fetched by one of them first, and lies in the others' cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rlkit import embedded, hub
from rlkit.config import RunConfig
from rlkit.data import reading
from rlkit.engine import distributed
from rlkit.engine.models import on_hub
from rlkit.evaluation import suites


def fetch(config: RunConfig, talks: bool) -> None:
    """Fill the caches: rank 0 its own, then the first rank of every other machine, which finds all there where they
    share one. Collective. What fails is said by the loading itself, which comes after."""
    wanted = wants(config)
    if wanted and talks and distributed.main_rank():
        print(f"from the hub, if it is not here: {', '.join(wanted)}; the other ranks wait", flush=True)

    def all_of_it() -> None:
        for get in wanted.values():
            with contextlib.suppress(Exception):
                get()

    distributed.first_ranks_first(all_of_it)


def wants(config: RunConfig) -> dict[str, Callable[[], object]]:
    """What the hub has of it, by name, and how each is got into the cache."""
    models = {config.model.path, config.critic.path or config.model.path}
    found: dict[str, Callable[[], object]] = {
        path: partial(hub.fetch_model, path) for path in sorted(models) if on_hub(path)
    }
    sets = {config.data.path: config.data.split, config.data.eval_path: config.data.eval_split}
    for path, split in sets.items():
        if path is not None and not _here(path):
            found[path] = partial(reading.read_rows, path, config.data.subset, split)
    if config.eval.suite_data is None:
        found |= {f"suite {name}": partial(suites.rows, name) for name in config.eval.suites}
    return found


def _here(path: str) -> bool:
    """Whether data are a file of this machine's, or ship."""
    return path.startswith(embedded.PREFIX) or ("://" not in path and Path(path).suffix in reading.FILES)
