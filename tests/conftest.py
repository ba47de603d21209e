"""Fixtures for tests of every folder: made here, each exists once for the whole session."""

from __future__ import annotations

from browser import browser
from rank_worker import models, two_ranks
from wandb_files import no_wandb_key

__all__ = ["browser", "models", "no_wandb_key", "two_ranks"]
