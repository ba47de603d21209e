"""Fixtures for tests of every folder: made here, each exists once for the whole session."""

from __future__ import annotations

import gc
import io
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from browser import browser
from hypothesis import HealthCheck, settings
from rank_worker import models, two_ranks
from wandb_files import no_wandb_key

from rlkit import registry
from rlkit.files import replace
from rlkit.records.metrics import Metrics
from rlkit.report import curve

__all__ = ["browser", "models", "no_wandb_key", "two_ranks"]

# A shell that starts the tests in its background has them, and what they start, ignore interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says more of the machine than of the code.
settings.register_profile("rlkit", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("rlkit")


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_is_not_looked_through() -> None:
    """What is there before the tests of a file is no garbage of theirs. DeepSpeed, vLLM and rlkit have all there is
    looked through again and again, which in a process that tests everything takes a quarter of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _nothing_loaded_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests of a file have loaded from files that they wrote is unknown to those of the next one."""
    yield
    made = tmp_path_factory.getbasetemp()
    for key, plugin in list(registry._plugins.items()):
        if any(Path(home).is_relative_to(made) for home in plugin.homes):
            del registry._plugins[key]
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").is_relative_to(made):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not Path(path).is_relative_to(made)]


@pytest.fixture(autouse=True, scope="session")
def _one_picture_serves_all() -> Iterator[None]:
    """Runs that tests make in this process have a learning curve each: all are put together, and one is rendered, which
    takes matplotlib as long as three steps. Runs in processes of their own draw theirs."""

    @cache
    def rendered() -> bytes:
        file = io.BytesIO()
        curve.picture([{"step": 1, "reward/mean": 0.5}], "x").savefig(file, dpi=150, format="png")
        return file.getvalue()

    def draw(metrics: Metrics, path: Path, title: str) -> None:
        curve.picture(metrics, title)
        replace(path, lambda beside: beside.write_bytes(rendered()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve, "draw", draw)
        yield


draws = curve.draw


@pytest.fixture
def own_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture is rendered."""
    monkeypatch.setattr(curve, "draw", draws)
