"""What a run has opened is closed, whatever ended it, and what ended it is what the user is told."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rlkit.blame import debugging, named


@contextmanager
def closing() -> Iterator[ExitStack]:
    """A stack whose callbacks are called at the end.

    Where an error ends the block, that error is raised, and what fails while the rest is closed is a note to it. Before
    anything is closed, what the error's calls have left in their variables is let go: after an error for want of memory
    they hold it, and a sampler that sleeps must wake to be closed.
    """
    stack = ExitStack()
    try:
        yield stack
    except BaseException as error:
        if not debugging():
            _let_go(error)
        try:
            stack.close()
        except Exception as second:
            error.add_note(f"Then, while the run was closed: {named(second)}")
        raise
    stack.close()


def _let_go(error: BaseException) -> None:
    """Empty the variables of the calls that have ended with this error, and with those that led to it."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [one.__cause__, one.__context__]
