"""Fixtures for tests of every folder: made here, each exists once for the whole session."""

from __future__ import annotations

import signal

from browser import browser
from rank_worker import models, two_ranks
from wandb_files import no_wandb_key

__all__ = ["browser", "models", "no_wandb_key", "two_ranks"]

# A shell that starts the tests in its background has them, and what they start, ignore interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
