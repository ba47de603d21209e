"""Numbers, sizes, durations and texts as people read them."""

from __future__ import annotations

import math

import pytest

from rlkit.wording import (
    counted,
    decimals,
    duration,
    excerpt,
    folded,
    gold_answer,
    number,
    percent,
    quoted,
    ranges,
    size,
    thousands,
    visible,
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (number(0.85349), "0.853"),
        (number(1234.5), "1,234"),
        (number(4.5e-6), "4.5e-6"),
        (number(-3), "-3"),
        (number(2.5e9), "2.5e9"),
        (number(None), "-"),
        (number(math.nan), "-"),
        (percent(0.253), "25 %"),
        (percent(0.0042), "0.42 %"),
        (percent(0), "0 %"),
        (percent(math.inf), "-"),
        (duration(0.0384), "38.4 ms"),
        (duration(42.4), "42 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(200), "3 min 20 s"),
        (duration(7499), "2 h 04 min"),
        (duration(18600), "5 h 10 min"),
        (duration(None), "-"),
        (size(410 * 2**10), "410 KiB"),
        (size(210 * 2**20), "210 MiB"),
        (size(1.3 * 2**30), "1.3 GiB"),
        (thousands(512.3), "512"),
        (thousands(1149), "1.1k"),
        (thousands(48_123), "48.1k"),
        (thousands(310_000), "310k"),
        (thousands(1_234_567), "1.2M"),
        (thousands(4.02e9), "4B"),
        (thousands(math.inf), "-"),
        (counted(0, "arm"), "0 arms"),
        (counted(1, "minibatch", "es"), "1 minibatch"),
        (counted(2, "minibatch", "es"), "2 minibatches"),
        (quoted(["\n", "</answer>"]), '"\\n", "</answer>"'),
        (quoted([]), ""),
        (decimals(0.05, 3), 4),
        (decimals(12.3, 3), 1),
        (decimals(5000, 2), 0),
        (decimals(0, 2), 0),
    ],
)
def test_numbers_and_texts_for_people(said: object, expected: object) -> None:
    assert said == expected


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([], ""), ([3], "3"), ([1, 2], "1, 2"), ([1, 2, 3], "1 to 3"), ([1, 3, 4, 5, 9], "1, 3 to 5, 9")],
)
def test_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said


def test_visible_leaves_writing_as_it_is() -> None:
    written = "naïve ∑ 日本語 שלום\n\tdef f(): 👩\u200d👧 नमस्ते"
    assert visible(written) == written
    assert visible("a\r\x1b\x7f\x85\u2028\U000e0001") == "a␍␛␡\\x85\\u2028\\U000e0001"


def test_an_excerpt_is_the_text_as_long_as_it_is_short() -> None:
    assert excerpt("a\n\nb\x1b[2J", 3, 100) == ["a", "", "b␛[2J"]
    assert excerpt("", 3, 100) == [""]


def test_an_excerpt_of_a_long_text_is_its_beginning_and_its_end() -> None:
    lines = [f"line {at}" for at in range(100)]
    assert excerpt("\n".join(lines), 6, 10_000) == [*lines[:4], "[... 94 lines ...]", *lines[-2:]]
    (found,) = excerpt("a" * 500_000 + "b" * 500_000, 6, 90)
    assert found == "a" * 60 + " [... 999,910 characters ...] " + "b" * 30


def test_a_line_is_folded_at_words_and_stays_whole_where_there_is_no_terminal() -> None:
    line = "  reward  " + " ".join(["a word"] * 30) + " 漢字" * 20
    assert folded(line, None) == line
    parts = folded(line, 40, indent=10).split("\n")
    assert " ".join(part.strip() for part in parts) == line.strip()
    assert all(part.startswith(" " * 10) for part in parts[1:])
    assert all(len(part) + sum(letter in "漢字" for letter in part) <= 40 for part in parts)
    assert folded("x" * 100, 40, indent=4) == "x" * 40 + "\n    " + "x" * 36 + "\n    " + "x" * 24
    assert folded("short", 40) == "short"
    assert folded("a\tb " * 10, 40, indent=2).split() == ["a", "b"] * 10


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "72"),
        ("He sold 48/2 = <<48/2=24>>24.\nSo 48 + 24 = 72.\n#### 72", "72"),
        (r"Since $x = 2$, we get \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"an open \boxed{1", r"an open \boxed{1"),
        ("Paris ####", "Paris ####"),
        ("", ""),
    ],
)
def test_the_answer_of_a_gold(gold: str, answer: str) -> None:
    assert gold_answer(gold) == answer
