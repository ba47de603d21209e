"""The reward `math` on what stands around an answer, on sets in words, and on the kinds that it was seen to miss."""

# ruff: noqa: RUF001 (answers in other languages)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rlkit_rewards.answers import boxes_apart, clean, find, told
from rlkit_rewards.math import math
from rlkit_rewards.options import chosen
from rlkit_rewards.structure import normal, parse
from rlkit_rewards.wording import symbols

from rlkit.interfaces.rewards import Sample, SampleKey

DATA = Path(__file__).resolve().parents[1] / "data"


def accepts(response: str, gold: str) -> bool:
    key = SampleKey("p", 0, 0, 0)
    (result,) = math([Sample(key=key, prompt="", response=response, tokens=[], answer=gold, truncated=False)])
    return result.value == 1


def cases(name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if not row.get("contested")]


# Sums, integrals and complex numbers take computer algebra seconds.
@pytest.mark.parametrize(
    ("name", "long"),
    [
        pytest.param("math_cases.jsonl", False),
        pytest.param("math_cases.jsonl", True, marks=pytest.mark.slow),
        pytest.param("math_cases_kept_back.jsonl", False),
        pytest.param("math_cases_kept_back.jsonl", True, marks=pytest.mark.slow),
    ],
)
def test_the_kinds_that_were_missed(name: str, long: bool) -> None:
    rows = [row for row in cases(name) if (row["category"] in ("evaluates", "euler")) == long]
    accepted = [accepts(row["prediction"], row["gold"]) for row in rows]
    assert [row["prediction"] for row, yes in zip(rows, accepted, strict=True) if yes and not row["expected"]] == []
    right = [yes for row, yes in zip(rows, accepted, strict=True) if row["expected"]]
    assert sum(right) >= (1.0 if name == "math_cases.jsonl" else 0.97) * len(right)


RIGHT = [
    (r"\boxed{17+0n}", "17"),
    (r"\boxed{\{17\}}", "17"),
    ("The answer is 17, not 18.", "17"),
    ("The answer is 17 (not 18).", "17"),
    (r"\boxed{x < 2 \text{ and } x > 5}", r"\emptyset"),
    (r"\boxed{x>2 \text{ or } x<5}", r"\mathbb{R}"),
    (r"\boxed{[2,3]\cup(3,4]}", "[2,4]"),
    (r"\boxed{\mathbb{R}\setminus\{2\}}", r"(-\infty,2)\cup(2,\infty)"),
    (r"\boxed{\mathbb{R}\setminus 2}", r"(-\infty,2)\cup(2,\infty)"),
    (r"\boxed{\mathbb{R}_{\geq 0}}", r"[0,\infty)"),
    (r"\boxed{\mathbb R^+}", r"(0,\infty)"),
    (r"\boxed{|x|>2}", r"(-\infty,-2)\cup(2,\infty)"),
    (r"\boxed{2 > |x|}", "(-2,2)"),
    (r"\boxed{x \ge \sqrt{2} \text{ and } x \le 3}", r"[\sqrt{2},3]"),
    (r"\boxed{x \ne 0, 1, 2}", r"\mathbb{R}\setminus\{0,1,2\}"),
    (r"\boxed{\text{all real numbers except } 0, 1 \text{ and } 2}", r"\mathbb{R}\setminus\{0,1,2\}"),
    (r"\boxed{x=2 \text{ or } x > 5}", r"\{2\}\cup(5,\infty)"),
    (r"\boxed{x < 2, x > 5}", r"(-\infty,2)\cup(5,\infty)"),
    (r"\boxed{-2 < x < 2, x \ne 0}", r"(-2,0)\cup(0,2)"),
    (r"\boxed{-2 < x < 2 \text{ and } x \ne 1}", r"(-2,1)\cup(1,2)"),
    (r"\boxed{(-2,2)\setminus\{0\}}", r"(-2,0)\cup(0,2)"),
    ("The number of paths is 2^5", "32"),
    ("So there are 3^4 ways in all", "81"),
    ("Altogether we count 2*3^2 of them here", "18"),
    ("The total number of words is 26^3.", "17576"),
    (r"\boxed{\{\}}", r"\varnothing"),
    ("Die richtige Antwort ist 12.", "12"),
    ("Die Antwort beträgt 12 Euro.", "12"),
    ("Daher ist das Ergebnis gleich 12.", "12"),
    ("Also erhalten wir 12.", "12"),
    ("La bonne réponse est 12.", "12"),
    ("Donc le résultat vaut 12.", "12"),
    ("La respuesta correcta es 12.", "12"),
    ("Por lo tanto, el resultado es igual a 12.", "12"),
    ("La risposta corretta è 12.", "12"),
    ("A resposta final é 12.", "12"),
    ("Правильный ответ: 12.", "12"),
    ("Ответом является 12.", "12"),
    ("所以答案等于12。", "12"),
    ("故答案为：12", "12"),
    ("故选：12", "12"),
    ("正确答案是 12。", "12"),
    ("最终答案：**12**", "12"),
    ("答えは 12 になります。", "12"),
    ("したがって、答えは12である。", "12"),
    ("따라서 답은 12이다.", "12"),
    ("정답: 12", "12"),
    ("الجواب: 12", "12"),
    ("الإجابة هي 12.", "12"),
    ("उत्तर है 12", "12"),
    ("सही उत्तर 12 है।", "12"),
    ("Câu trả lời là 12.", "12"),
    ("Kết quả là 12.", "12"),
    ("Jawaban akhirnya adalah 12.", "12"),
    ("Doğru cevap 12'dir.", "12"),
    ("Sonuç: 12", "12"),
    ("Rätt svar är 12.", "12"),
    ("Svaret er 12.", "12"),
    ("Vastaus: 12", "12"),
    ("Válasz: 12", "12"),
    ("Răspuns: 12", "12"),
    ("Η απάντηση είναι 12.", "12"),
    ("Відповідь: 12.", "12"),
    ("Správná odpověď je 12.", "12"),
    ("Prawidłowa odpowiedź to 12.", "12"),
    ("Wynik wynosi 12.", "12"),
    ("התשובה היא 12.", "12"),
    ("คำตอบคือ 12", "12"),
    ("پاسخ: 12", "12"),
    ("I'd pick (C).", "C"),
    ("So C is the answer.", "C"),
    ("Therefore the correct answer is option C.", "C"),
    ("C, since A and B are too small.", "C"),
    ("Both A and B fail, leaving C.", "C"),
    ("The only option that works is C.", "C"),
    ("Answer is C; not A.", "C"),
    ("The right choice would be C rather than A.", "C"),
    ("故选C。", "C"),
    ("Правильный ответ C.", "C"),
    ("La bonne réponse est C, et non A.", "C"),
    ("Richtig ist C.", "C"),
    ("**Answer: C**", "C"),
    ("Answer: (C) 3/4", "C"),
    ("The answer is C because A is false.", "C"),
    ("Not A, not B: C.", "C"),
    ("It's C!", "C"),
    ("Option C: 12", "C"),
    ("(C) is right, (A) is not.", "C"),
    ("C is my answer; A, B and D are wrong.", "C"),
    ("Eliminating A and B leaves C.", "C"),
    ("It has to be C", "C"),
    ("C) because...", "C"),
    ("The answer is $C$.", "C"),
    (r"The answer is $\textbf{(C)}$.", "C"),
    ("答案选C，不选A。", "C"),
    ("The correct answer is C. A) is wrong because it ignores friction.", "C"),
    (r"Length: \boxed{4}. Width: \boxed{6}.", "4, 6"),
    (r"We have $p=\boxed{4}$. Hence $q=\boxed{6}$ as wanted.", "(4,6)"),
    (r"First \boxed{4}, and secondly \boxed{6}, and thirdly \boxed{8}.", "4, 6, 8"),
    (r"\boxed{4} apples and \boxed{6} pears", "4, 6"),
]
WRONG = [
    ("The answer is 17 unless I am mistaken, then 18.", "17"),
    ("It could be 17, it could be 18.", "17"),
    ("It could be 17, it could be 18.", "18"),
    (r"\boxed{17 \text{ or maybe } 18}", "17"),
    (r"\boxed{17 \text{ maybe } 18}", "18"),
    (r"\boxed{17} or else \boxed{18}", "18"),
    (r"\boxed{17}, maybe \boxed{18}", "18"),
    (r"perhaps \boxed{17}, perhaps \boxed{18}", "18"),
    (r"\boxed{17} or maybe \boxed{18}", "18"),
    (r"\boxed{17} is one guess, \boxed{18} another", "18"),
    (r"\boxed{17} is incorrect.", "17"),
    (r"\boxed{17} is not the answer.", "17"),
    (r"The answer is not \boxed{17}.", "17"),
    (r"It isn't \boxed{17}.", "17"),
    ("17 is wrong.", "17"),
    ("17 is not it.", "17"),
    ("It is not 17.", "17"),
    ("Certainly not 17.", "17"),
    ("The result isn't 17.", "17"),
    ("The answer is anything but 17.", "17"),
    ("The answer is definitely not equal to 17.", "17"),
    ("The answer lies between 16 and 18.", "17"),
    ("The answer is about 17 or 18.", "17"),
    ("The answer is either 17 or 18.", "17"),
    ("either 17 or 18", "18"),
    ("Is it 17?", "17"),
    ("17? 18? 19?", "19"),
    ("17, 18, 19", "19"),
    ("17 18 19", "19"),
    ("The answer is one of 16, 17, 18.", "17"),
    (r"\boxed{17\,|\,18}", "17"),
    (r"\boxed{17 \lor 18}", "17"),
    (r"\boxed{17 \vee 18}", "18"),
    (r"\boxed{17; 18}", "17"),
    (r"\boxed{17 \mid 18}", "17"),
    (r"\boxed{(17)(18)}", "17"),
    (r"\boxed{17 \to 18}", "18"),
    (r"\boxed{17 \implies 18}", "18"),
    (r"\boxed{17 \ne 18}", "18"),
    (r"\boxed{\not= 17}", "17"),
    (r"\boxed{\neg 17}", "17"),
    (r"\boxed{17\ (\text{or } 18)}", "17"),
    (r"\boxed{17 [18]}", "17"),
    (r"\boxed{17 \approx 18}", "18"),
    (r"\boxed{\sim 17}", "17"),
    (r"\boxed{\min(17,n)}", "17"),
    (r"\boxed{n: n > 0}", "17"),
    (r"\boxed{17 \text{ if } x > 0, 18 \text{ else}}", "17"),
    (r"\boxed{17 \text{ but not } 18}", "17"),
    ("The answer is 18, not 17.", "17"),
    ("The answer is 18 (not 17).", "17"),
    ("The answer is $17$ or $18$.", "17"),
    ("The answer is 17 and 18.", "17"),
    (r"x \le 2 \text{ or } x > 5", r"(-\infty,2)\cup(5,\infty)"),
    (r"\boxed{x > 2 \text{ and } y < 5}", "(2,5)"),
    (r"\boxed{(2,3)\cup(3,4)}", "(2,4)"),
    (r"\boxed{[2,3)\cup(3,4]}", "[2,4]"),
    (r"\boxed{\text{not } x > 2}", r"(2,\infty)"),
    (r"\boxed{x \not> 2}", r"(2,\infty)"),
    (r"\boxed{x \notin (2,\infty)}", r"(2,\infty)"),
    (r"\boxed{\text{all real numbers not greater than } 2}", r"(2,\infty)"),
    (r"\boxed{\text{no real numbers}}", r"\mathbb{R}"),
    (r"\boxed{\text{not all real numbers}}", r"\mathbb{R}"),
    ("The domain is not all real numbers.", r"\mathbb{R}"),
    ("It is not the case that all real numbers work.", r"\mathbb{R}"),
    (r"\boxed{\text{integers between 2 and 5, inclusive}}", "[2,5]"),
    (r"\boxed{\text{between 2 and 5}}", "[2,5]"),
    (r"\boxed{\text{positive}}", r"(0,\infty)"),
    (r"\boxed{\text{complex numbers}}", r"\mathbb{R}"),
    (r"\boxed{\{2,3,4,5\}}", "[2,5]"),
    (r"\boxed{\mathbb{Q}\setminus\{2\}}", r"(-\infty,2)\cup(2,\infty)"),
    (r"\boxed{\mathbb{R}^2}", r"\mathbb{R}"),
    (r"\boxed{\mathbb{R}^-}", r"(0,\infty)"),
    (r"\boxed{\mathbb{Z}^+}", r"(0,\infty)"),
    (r"\boxed{\mathbb{R}_{<0}}", r"(0,\infty)"),
    (r"\boxed{\mathbb{R}^+_0}", r"(0,\infty)"),
    (r"\boxed{|x| \ge 2}", r"(-\infty,-2)\cup(2,\infty)"),
    (r"\boxed{|x|<-2}", "(-2,2)"),
    (r"\boxed{x > \sqrt{2} \text{ and } x \le 3}", r"[\sqrt{2},3]"),
    (r"\boxed{x \ne 0}", r"\mathbb{R}\setminus\{0,1\}"),
    (r"\boxed{x=2 \text{ and } x > 5}", r"\{2\}\cup(5,\infty)"),
    (r"\boxed{-2 < x < 2, x \ne 0}", "(-2,2)"),
    (r"\boxed{(-2,2)\setminus\{1\}}", r"(-2,0)\cup(0,2)"),
    (r"\boxed{\text{less than 3}}", "3"),
    (r"\boxed{\text{at least 3}}", "3"),
    (r"\boxed{\text{more than 3}}", "3"),
    ("The answer is at least 3.", "3"),
    ("The answer is more than 3.", "3"),
    ("The answer is less than 3.", "3"),
    ("All real numbers greater than 3.", "3"),
    ("The answer is all real numbers except 3.", "3"),
    ("The number of paths is 2^5.", "2"),
    ("So there are 3^4 ways in all", "3"),
    ("So there are 3^4 ways in all", "4"),
    (r"\boxed{\{\{\}\}}", r"\emptyset"),
    (r"\boxed{\{\varnothing\}}", r"\emptyset"),
    ("Die Antwort ist falsch, nicht 12.", "12"),
    ("Die Antwort ist 12 oder 13.", "13"),
    ("Le résultat n'est pas 12.", "12"),
    ("El resultado no es 12.", "12"),
    ("Il risultato non è 12.", "12"),
    ("Результат не 12.", "12"),
    ("结果不是12。", "12"),
    ("답은 12가 아니다.", "12"),
    ("答えは12じゃない。", "12"),
    ("La respuesta es 13, y no 12.", "12"),
    ("答案是12还是13？", "13"),
    ("答案是12还是13？", "12"),
    ("Ответ: 12? Нет, 13.", "12"),
    ("Doğru cevap 12 değil.", "12"),
    ("Svaret är inte 12.", "12"),
    ("Câu trả lời không phải là 12.", "12"),
    ("Jawabannya bukan 12.", "12"),
    ("Both C and A work.", "C"),
    ("C isn't right.", "C"),
    ("Anything but C.", "C"),
    ("It has to be A, not C", "C"),
    ("Eliminating C leaves A.", "C"),
    ("The answer is A; C fails.", "C"),
    ("C? I think A.", "C"),
    ("C or A, hard to say.", "C"),
    ("We exclude C.", "C"),
    ("C must be wrong.", "C"),
    ("C is impossible.", "C"),
    ("The worst option is C.", "C"),
    ("A beats C.", "C"),
    ("C, or maybe A.", "C"),
    ("Option C is tempting, but A is right.", "C"),
    ("The answer is A (C is a trap).", "C"),
    ("If C then A.", "C"),
    ("A C", "C"),
    ("The answer is A. C is close.", "C"),
    ("正确答案不是C。", "C"),
    ("C错误，选A。", "C"),
    ("Die Antwort ist A und nicht C.", "C"),
    (r"Length: \boxed{6}. Width: \boxed{4}.", "4, 6"),
    (r"First \boxed{4}, and secondly \boxed{6}, and thirdly \boxed{8}.", "4, 8"),
    (r"My first try was \boxed{4}. My second try is \boxed{6}.", "4, 6"),
    (r"Initially \boxed{4}. After a review, \boxed{6}.", "4, 6"),
]


@pytest.mark.parametrize(("response", "gold"), RIGHT)
def test_right(response: str, gold: str) -> None:
    assert accepts(response, gold)


@pytest.mark.parametrize(("response", "gold"), WRONG)
def test_wrong(response: str, gold: str) -> None:
    assert not accepts(response, gold)


PIECES = [
    "B ",
    "B, ",
    "not B ",
    "A or ",
    "all the ",
    "real numbers ",
    "between 1 and ",
    "答案",
    "답은 ",
    "answer is not ",
    "42 (",
]
PIECES += [r"\boxed{1} so ", "1*", "1^", "x or ", r"\mathbb{R}\setminus", "|x|<", " no 1", "may be 1 "]


@pytest.mark.parametrize("piece", PIECES)
def test_reading_words_takes_linear_time(piece: str) -> None:
    """It would not end otherwise."""
    long, short = clean(piece * (100_000 // len(piece))), piece * (1000 // len(piece))
    find(long)
    boxes_apart(long)
    chosen(normal(told(long) or ""))
    chosen(short)
    symbols(short)
    parse(normal(short))
