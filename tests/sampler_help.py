"""What the samplers' tests share: small random models, and the plain forward pass and the plain decoding that samplers
are held against."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams

VOCABULARY = 40
END, OTHER_END = 1, 2
PIECES = [
    *("a", "b", "c", "d", " ", "\n", "é", "ab", "ba", "aa", "bb", " a", "b ", "abc", "cab", "a\n", "\n\n", "éa", "bé"),
    *(b"\xc3", b"\xa9", b"a\xc3", b"\xa9b", b"\xf0\x9f", b"\x98", b"\x80", b"\x80a", "😀"),
]
"""Of the random models' tokens: a text is spelt in many ways, and characters are cut into bytes. The last few tokens
are the model's alone."""


def pieces_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", "<other>", "<mark>"]
    # ByteLevel writes each byte as a letter of its own.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    spelt = ["".join(letters[b] for b in (p.encode() if isinstance(p, str) else p)) for p in PIECES]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *spelt])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def naive_end(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> int | None:
    """The first length at which the decoded tokens hold a stop text."""
    texts = (tokenizer.decode(list(tokens[:n]), skip_special_tokens=False) for n in range(1, len(tokens) + 1))
    return next((n for n, text in enumerate(texts, 1) if any(stop in text for stop in stops)), None)


def spanning_stops(tokenizer: Any, completions: Sequence[Completion], count: int, rng: random.Random) -> list[str]:
    """Texts that stand in some completions, most of them across tokens."""
    found: set[str] = set()
    while len(found) < count:
        tokens = rng.choice(completions).tokens
        at = rng.randrange(len(tokens))
        text = tokenizer.decode(tokens[at : at + rng.randint(2, 4)], skip_special_tokens=False).strip("\ufffd")
        text = text[rng.randint(0, 1) :][: rng.randint(2, 9)]
        if len(text) > 1 and "\ufffd" not in text:
            found.add(text)
    return sorted(found)


def random_model(folder: Path, tied: bool, seed: int) -> Any:
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        eos_token_id=END,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config = GenerationConfig(
        eos_token_id=[END, OTHER_END], do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.7
    )
    model.save_pretrained(folder)
    pieces_tokenizer().save_pretrained(folder)
    return model


def ask(sampler: Sampler, prompts: list[list[int]], seeds: list[int], **params: Any) -> list[Completion]:
    wanted = SamplingParams(**{"max_tokens": 24, **params})
    requests = [
        Request(prompt_tokens=prompt, seed=seed, params=wanted) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    pairs = list(sampler.generate(requests))
    assert sorted(index for index, _ in pairs) == list(range(len(requests)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


@torch.no_grad()
def forward(model: Any, prompt: list[int], tokens: list[int]) -> Tensor:
    """[tokens, V] logits of a plain forward pass over one unpadded sequence."""
    return model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()


def largest_gap(model: Any, prompts: list[list[int]], completions: list[Completion], temperature: float) -> float:
    largest = 0.0
    for prompt, completion in zip(prompts, completions, strict=True):
        assert len(completion.tokens) == len(completion.logprobs)
        logprobs = (forward(model, prompt, completion.tokens) / temperature).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        largest = max(largest, float((expected - torch.tensor(completion.logprobs)).abs().max()))
    return largest


class Talk:
    """`Requests` of conversations: each one's next turn comes when the one before was answered, and `wait_s` have
    passed. `events` is what has happened, in order."""

    def __init__(self, openings: Sequence[Request], turns: Sequence[int], wait_s: float = 0.0) -> None:
        """Of each conversation the first request, and how many turns it has."""
        self._left = list(turns)
        self._wait_s = wait_s
        self._ready = [(0.0, conversation, request) for conversation, request in enumerate(openings)]
        self._under_way = 0
        self.asked: list[tuple[int, Request]] = []
        """Conversation and request, in the order of their numbers."""
        self.answers: dict[int, Completion] = {}
        self.events: list[tuple[str, int]] = []

    def take(self, *, wait: bool) -> Sequence[Request] | None:
        if not (self._under_way or self._ready):
            return None
        assert not (wait and self._under_way), "it waits for what will never come"
        while True:
            now = time.monotonic()
            new = [each for each in self._ready if each[0] <= now]
            if new or not wait:
                break
            time.sleep(0.001)
        self._ready = [each for each in self._ready if each not in new]
        self._under_way += len(new)
        self.asked += [(conversation, request) for _, conversation, request in new]
        self.events += [("asked", conversation) for _, conversation, _ in new] or [("nothing new", -1)]
        return [request for *_, request in new]

    def hold(self, sampler: Any) -> list[Completion]:
        """All turns, by `stream`. Returns the completions in the order of the requests."""
        for number, completion in sampler.stream(self):
            self.hear(number, completion)
        assert sorted(self.answers) == list(range(len(self.asked)))
        return [self.answers[number] for number in range(len(self.asked))]

    def hear(self, number: int, completion: Completion) -> None:
        assert number not in self.answers
        conversation, request = self.asked[number]
        self.answers[number] = completion
        self.events.append(("answered", conversation))
        self._under_way -= 1
        self._left[conversation] -= 1
        if self._left[conversation]:
            prompt = [*request.prompt_tokens, *completion.tokens, 4, 5]
            following = Request(prompt_tokens=prompt, seed=request.seed + 1, params=request.params)
            self._ready.append((time.monotonic() + self._wait_s, conversation, following))
