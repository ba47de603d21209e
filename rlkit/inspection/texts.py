"""The texts of tokens, such that those of a response, joined, are the response."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.config import ModelConfig
from rlkit.embedded import resolve, wants_trust
from rlkit.inspection.steps import Piece

PART = "·"
"""Shown for a token that holds a part of a character: the token that completes it has the text."""
UNDECODED = "\ufffd"


@dataclass(frozen=True)
class Texts:
    """What a tokenizer makes of token ids; without one the ids themselves are shown."""

    tokenizer: Any | None
    missing: str = ""
    """Why there is no tokenizer."""

    @classmethod
    def of(cls, config: ModelConfig, trusts: bool = False) -> Texts:
        """The tokenizer of the run's model. Where it cannot be loaded this warns, and token ids stand for texts.

        trusts: code in the model's folder may run, whatever the run's config says of it.
        """
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(resolve(config.path), trust_remote_code=trusts))
        except (OSError, ValueError, ImportError, KeyError) as error:
            said = (
                f"the tokenizer of {config.path} cannot be loaded ({str(error).splitlines()[0]}): token ids are shown "
                f"in place of their texts{wants_trust(error)}"
            )
            warnings.warn(said, stacklevel=2)
            return cls(None, said)

    def __call__(self, ids: Sequence[int], text: str) -> list[Piece]:
        """The pieces of a response whose text is known."""
        if self.tokenizer is None:
            return _numbered(ids)
        special = set(self.tokenizer.all_special_ids)
        plain = [token for token in ids if token not in special]
        pieces = self._windowed(plain)
        if "".join(pieces) != text:
            if self._decode(plain) != text:
                warnings.warn(
                    "the model's tokenizer does not give the responses that the run has written: it has changed. "
                    "Token ids are shown in place of their texts",
                    stacklevel=2,
                )
                return _numbered(ids)
            # Decoders that look further back, or clean up spaces, need all that came before.
            pieces = self._whole(plain, text)
        left = iter(pieces)
        return [Piece("", self._name(token)) if token in special else _piece(next(left)) for token in ids]

    def _name(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))  # type: ignore[union-attr]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))  # type: ignore[union-attr]

    def _windowed(self, ids: Sequence[int]) -> list[str]:
        """In time linear in the tokens: each adds what the text of the last few grows by with it.

        The window begins with tokens whose text is known: a decoder may drop a space at its beginning.
        """
        pieces = []
        begin = known = 0
        for end in range(1, len(ids) + 1):
            before, after = self._decode(ids[begin:known]), self._decode(ids[begin:end])
            last = end == len(ids)
            if len(after) > len(before) and (last or not after.endswith(UNDECODED)):
                pieces.append(after[len(before) :])
                begin, known = known, end
            else:
                pieces.append("")
        return pieces

    def _whole(self, ids: Sequence[int], text: str) -> list[str]:
        """Each token adds as much of the text as is settled with it: where what is decoded so far agrees with it."""
        pieces, settled = [], 0
        for end in range(1, len(ids) + 1):
            agrees = len(text) if end == len(ids) else _common(self._decode(ids[:end]), text)
            pieces.append(text[settled : max(settled, agrees)])
            settled = max(settled, agrees)
        return pieces


def _common(a: str, b: str) -> int:
    """Characters at their beginnings that are equal."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _piece(text: str) -> Piece:
    return Piece(text, None if text else PART)


def _numbered(ids: Sequence[int]) -> list[Piece]:
    return [Piece("", f"[{token}]") for token in ids]
