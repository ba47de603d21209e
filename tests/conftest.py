"""Fixtures for tests of every folder: made here, each exists once for the whole session."""

from __future__ import annotations

from rank_worker import models, two_ranks

__all__ = ["models", "two_ranks"]
