"""The texts of tokens, joined, are the response."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from inspected import config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlkit.inspection.steps import Piece
from rlkit.inspection.texts import PART, Texts


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """A byte-level BPE that knows next to no merges, so that é is two tokens and an emoji four."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the answer is the answer"] * 5, trainer)
    path = tmp_path_factory.mktemp("bytes")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Texts.of(config(model={"path": str(path)}).model)


@pytest.mark.parametrize(
    "text",
    [
        "the answer is 4",
        "é",
        "naïve café ☕ 🧮🧮 ok",
        " leading and trailing ",
        "日本語\n\tthe",
        "a\u0301e\u200d",
        "\ufffd x",
        "",
    ],
)
def test_joined_texts_are_the_response(byte_level: Texts, text: str) -> None:
    ids = [*byte_level.tokenizer.encode(text), byte_level.tokenizer.eos_token_id]
    pieces = byte_level(ids, text)
    assert len(pieces) == len(ids)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1] == Piece("", "<eos>")
    assert all(piece.text or piece.shown for piece in pieces)


def test_a_character_belongs_to_the_token_that_completes_it(byte_level: Texts) -> None:
    ids = byte_level.tokenizer.encode("xé🧮y")
    assert len(ids) == 1 + 2 + 4 + 1
    assert byte_level(ids, "xé🧮y") == [
        Piece("x"), Piece("", PART), Piece("é"),
        *[Piece("", PART)] * 3, Piece("🧮"), Piece("y"),
    ]  # fmt: skip


def test_bytes_that_are_no_text(byte_level: Texts) -> None:
    """A response may end, or go on, in the middle of a character."""
    for text in ("x🧮", "x🧮y", "🧮"):
        ids = byte_level.tokenizer.encode(text)
        for cut in range(1, 4):
            broken = [*ids[: ids.index(ids[-1]) if text.endswith("y") else -cut], 0]
            response = byte_level.tokenizer.decode(broken, skip_special_tokens=True)
            assert "".join(piece.text for piece in byte_level(broken, response)) == response
    random = torch.randint(1, 257, (200,)).tolist()
    response = byte_level.tokenizer.decode(random, skip_special_tokens=True)
    assert "".join(piece.text for piece in byte_level(random, response)) == response


def test_a_decoder_that_drops_the_first_space() -> None:
    """As SentencePiece's: what a token says depends on whether it is the first."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁answer": 1, "s": 2, "</s>": 3}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    texts = Texts(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))
    ids = [0, 1, 2, 0, 3]
    pieces = texts(ids, "the answers the")
    assert [piece.text for piece in pieces] == ["the", " answer", "s", " the", ""]


def test_a_decoder_that_cleans_up_what_came_before() -> None:
    class Cleaning:
        """ "a", "b" and "." with spaces between, but none before a full stop: decoding more changes the text before."""

        all_special_ids: list[int] = []

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join("ab."[i] + " " for i in ids).replace(" .", ".").strip()

    assert [p.text for p in Texts(Cleaning())([0, 1, 2, 0], "a b. a")] == ["a", " b", ".", " a"]


def test_without_a_tokenizer_ids_stand_for_texts_and_it_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"the tokenizer of .*gone cannot be loaded .*: token ids are shown"):
        texts = Texts.of(config(model={"path": str(tmp_path / "gone")}).model)
    assert texts([5, 1], "x") == [Piece("", "[5]"), Piece("", "[1]")]


def test_another_tokenizer_than_the_runs_is_noticed(byte_level: Texts) -> None:
    ids = byte_level.tokenizer.encode("the answer")
    with pytest.warns(UserWarning, match="does not give the responses that the run has written"):
        assert byte_level(ids, "an other text")[0] == Piece("", f"[{ids[0]}]")


def test_the_embedded_models_tokens() -> None:
    texts = Texts.of(config().model)
    pieces = texts([9, 13, 2, 7, 1], "6+#### 4")
    assert [piece.shown or piece.text for piece in pieces] == ["6", "+", "#### ", "4", "<eos>"]
