"""Stop texts: which token of a response completes one. All samplers ask here, so with all of them the same token ends a
response."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from rlkit.config import ModelConfig
from rlkit.interfaces.generation import Completion
from rlkit.scoring import Decoder

UNDECODED = "\ufffd"
"""Stands for bytes that are no character, or not yet."""
CHARACTER = 4
"""Bytes of the longest character, and so the most tokens that one is cut into."""
MARGIN = 8
"""Tokens decoded before those that can hold the text: a decoder may drop a space at the beginning, or one between two
tokens."""


def stops_of(model: ModelConfig) -> Callable[[tuple[str, ...]], Stops]:
    """What makes Stops of a model's tokenizer, which is loaded for the first texts."""

    @cache
    def tokenizer() -> Decoder:
        from rlkit.engine.models import load_tokenizer

        loaded: Decoder = load_tokenizer(model)
        return loaded

    return cache(lambda texts: Stops(texts, tokenizer()))


class Stops:
    """Stop texts, as a tokenizer's tokens spell them.

    They are looked for in the decoded response, in which special tokens stand by their names. They hold no U+FFFD.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Decoder) -> None:
        self._texts = tuple(texts)
        self._tokenizer = tokenizer
        self._ends = {text[-1] for text in texts} | {UNDECODED}
        # A token has a byte at least.
        self._window = MARGIN + max(len(text.encode()) for text in texts)
        self._known: dict[int, tuple[bool, bool]] = {}

    def follow(self) -> Follower:
        """For one response from its beginning."""
        return Follower(self, self._window + CHARACTER - 1)

    def cut(self, completion: Completion) -> Completion:
        """What a completion is up to the first stop text, the token that completes it included."""
        end = self.follow().push(completion.tokens)
        if end is None:
            return completion
        return replace(completion, tokens=completion.tokens[:end], logprobs=completion.logprobs[:end], truncated=False)

    def look(self, token: int) -> tuple[bool, bool]:
        """Whether the token has a text, and whether a stop text may end within it."""
        known = self._known.get(token)
        if known is None:
            # Twice: a decoder may drop the space before the first.
            text = self._decode([token, token])
            known = self._known[token] = bool(text), not self._ends.isdisjoint(text)
        return known

    def within(self, tokens: list[int]) -> bool:
        """Whether a stop text stands in what the last of these tokens say."""
        text = ""
        for more in range(CHARACTER):
            text = self._decode(tokens[-(self._window + more) :])
            if not text.startswith(UNDECODED):  # else it may begin within a character
                break
        return any(stop in text for stop in self._texts)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


class Follower:
    """Reads one response as it grows."""

    def __init__(self, stops: Stops, reach: int) -> None:
        self._stops = stops
        self._tail: deque[int] = deque(maxlen=reach)
        self.length = 0
        """Tokens read."""

    def push(self, tokens: Sequence[int]) -> int | None:
        """The next tokens. Returns the response's length up to the one among them that completes a stop text; None:
        none does, and the response goes on."""
        for token in tokens:
            self.length += 1
            has_text, may_end = self._stops.look(token)
            if has_text:
                self._tail.append(token)
            if may_end and self._stops.within(list(self._tail)):
                return self.length
        return None
