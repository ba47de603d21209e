"""The token that completes a stop text, held against decoding a response anew at each of its tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from random_batches import fresh_seed
from sampler_help import VOCABULARY, naive_end, pieces_tokenizer
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlkit import embedded
from rlkit.config import RunConfig
from rlkit.data import Problem
from rlkit.errors import ConfigError
from rlkit.evaluation.settings import load_settings
from rlkit.generation.collector import Collector
from rlkit.generation.sampled import draws
from rlkit.generation.stops import Stops
from rlkit.interfaces.generation import Completion, Request, SamplingParams

TEXT = "ab 好é😀\n."


def sentence_pieces() -> Any:
    """As Llama's: a space is a letter of its own, dropped at the beginning; what has no piece is spelt in bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [
        "▁",
        "a",
        "b",
        "▁a",
        "▁b",
        "ab",
        "▁ab",
        "好",
        "▁好",
        ".",
        ".",
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def spelt(tokenizer: Any, rng: random.Random) -> list[int]:
    """Characters, each of them in one piece, in one with the next, or in bytes."""
    tokens, text = [], "".join(rng.choices(TEXT, k=rng.randint(1, 60)))
    while text:
        size = rng.choice([1, 1, 2, 3])
        token = tokenizer.get_vocab().get(text[:size].replace(" ", "▁"))
        if token is not None and rng.random() < 0.7:
            tokens.append(token)
            text = text[size:]
        else:
            tokens += text[0].encode()
            text = text[1:]
    return tokens


def any_tokens(tokenizer: Any, rng: random.Random) -> list[int]:
    """Parts of characters in any order, special tokens, and tokens that the tokenizer does not know."""
    few = rng.sample(range(VOCABULARY), rng.randint(2, VOCABULARY))
    return rng.choices(few, k=rng.randint(1, 60))


def some_stops(tokenizer: Any, tokens: list[int], rng: random.Random) -> list[str]:
    """Of what the response says, and of what it does not."""
    stops = []
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) or 1)
        said = text[at : at + rng.randint(1, 12)].replace("\ufffd", "")
        stops.append(said if said and rng.random() < 0.7 else "".join(rng.choices(TEXT, k=rng.randint(1, 4))))
    return stops


@pytest.mark.parametrize(
    ("made", "response"),
    [
        (pieces_tokenizer, any_tokens),
        (sentence_pieces, spelt),
        (lambda: AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs")), any_tokens),
    ],
)
def test_a_response_ends_where_decoding_all_of_it_first_shows_a_stop_text(
    made: Callable[[], Any], response: Callable[[Any, random.Random], list[int]]
) -> None:
    rng = random.Random(fresh_seed())
    tokenizer = made()
    found = 0
    for _ in range(600):
        tokens = response(tokenizer, rng)
        stops = some_stops(tokenizer, tokens, rng)
        expected = naive_end(tokenizer, tokens, stops)
        follower = Stops(stops, tokenizer).follow()
        ends = [follower.push([token]) for token in tokens]
        first = next((end for end in ends if end is not None), None)
        assert first == expected, (tokens, stops)
        assert Stops(stops, tokenizer).follow().push(tokens) == expected
        found += expected is not None and expected < len(tokens)
    assert 60 < found < 600


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.decoded = tokenizer, 0

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        self.decoded += len(tokens)
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))


def test_a_long_response_is_not_decoded_again_and_again() -> None:
    tokenizer = pieces_tokenizer()
    tokens = random.Random(fresh_seed()).choices(range(3, VOCABULARY), k=20_000)
    absent, often = Counting(tokenizer), Counting(tokenizer)
    assert Stops(["never!"], absent).follow().push(tokens) is None
    assert Stops(["never a"], often).follow().push(tokens) is None
    assert absent.decoded < 40 * len(tokens), "each part of a character may end a stop text"
    assert often.decoded < 60 * len(tokens)
    whole = [token for token in tokens if "\ufffd" not in tokenizer.decode([token])]
    rare = Counting(tokenizer)
    assert Stops(["never!"], rare).follow().push(whole) is None
    assert rare.decoded <= 2 * VOCABULARY, "no token has the text's last letter"


class Deaf:
    """A sampler that knows nothing of stop texts."""

    def __init__(self, tokens: list[int], truncated: bool) -> None:
        self.tokens, self.truncated = tokens, truncated

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for i in range(len(requests)):
            logprobs = [-0.1 * t for t in range(len(self.tokens))]
            yield i, Completion(tokens=list(self.tokens), logprobs=logprobs, truncated=self.truncated, version=3)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("stop", "length", "truncated", "text"),
    [
        ((), 4, True, "abab\n"),
        (("ba",), 4, True, "abab\n"),
        (("x", "b"), 1, False, "ab"),
        (("b\n",), 4, False, "abab\n"),
        (("<mark>",), 2, False, "ab"),
        (("ab<mark>a", "\n"), 3, False, "abab"),
    ],
)
def test_a_sampler_that_knows_no_stop_texts_is_cut(
    stop: tuple[str, ...], length: int, truncated: bool, text: str
) -> None:
    """The special token stands between the two, for the match, and not in the text that a reward reads."""
    tokenizer = pieces_tokenizer()
    ab, newline, mark = (tokenizer.convert_tokens_to_ids(name) for name in ("ab", "Ċ", "<mark>"))
    sampler = Deaf([ab, mark, ab, newline], truncated=True)
    problem = Problem(id="p", text="p", tokens=[5], answer="", columns={})
    nobody: Any = None
    collector = Collector(sampler, nobody, tokenizer, 0)
    (got,) = collector.sample(draws([problem], 1, 0), SamplingParams(max_tokens=4, stop=stop), "test")
    assert got.completion.tokens == sampler.tokens[:length]
    assert got.completion.logprobs == [-0.1 * t for t in range(length)]
    assert (got.completion.truncated, got.text) == (truncated, text)


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (["\n", ""], "an empty text would end every response before it begins: leave it out"),
        (["a\ufffd"], "holds U\\+FFFD, which stands for bytes that are no text"),
        ("\n", "list"),
    ],
)
def test_what_cannot_end_a_response_is_refused(stop: Any, said: str, tmp_path: Any) -> None:
    given = {"model": {"path": "embedded:xs"}, "suites": ["gsm8k"], "out": tmp_path}
    with pytest.raises(ConfigError, match=said):
        load_settings(given | {"stop": stop})
    run = {"model": {"path": "m"}, "data": {"path": "d"}, "reward": "exact", "algo": "grpo"}
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(run | {"sampling": {"stop": stop}})
