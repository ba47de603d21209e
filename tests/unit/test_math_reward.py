"""The reward `math`: what it accepts, what it refuses, and which golds it knows."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from rlkit_rewards.answers import clean, find, last_box
from rlkit_rewards.rational import value

from rlkit import registry
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DEADLINE_S = 20


def shared(name: str) -> list[dict[str, Any]]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(response: str, answer: str, **columns: Any) -> Sample:
    key = SampleKey("p", 0, 0, 0)
    return Sample(key=key, prompt="", response=response, tokens=[], answer=answer, truncated=False, columns=columns)


def verdict(response: str, answer: str, **options: Any) -> RewardResult:
    (result,) = registry.build("rewards", "math", options)([sample(response, answer)])
    assert isinstance(result, RewardResult)
    return result


RIGHT = [
    (r"$\{1,2\}\cup\{3\}$", r"\{1,2,3\}"),
    ("The possible values are $1$, $2$, and $3$.", "1,2,3"),
    ("So $x = 3$ and $y = 4$.", "x=3,y=4"),
    ("Therefore, $f(x) = 2x$.", "2x"),
    ("Total: $1,250", "1250"),
    ("The correct option is **C**.", "C"),
    ("Option C", "C"),
    ("**C**", "C"),
    (r"\boxed{5}", "5"),
    (r"The value is \boxed{\dfrac{1}{2}}.", r"\frac{1}{2}"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{5 \text{ cm}}", "5"),
    (r"\boxed{5\,\text{meters per second}}", "5"),
    (r"\boxed{12\pi \text{ cm}^3}", r"12\pi"),
    (r"\boxed{12\pi}", r"12\pi\text{ cm}^3"),
    (r"\boxed{\$12.50}", "12.5"),
    (r"\boxed{12.50\text{ dollars}}", r"\$12.50"),
    ("**Answer:** 42", "42"),
    ("Answer: **42**", "42"),
    (r"The final answer is: $\boxed{42}$", "42"),
    ("Thus the answer is 3/4.", "0.75"),
    ("So the total is 1,234 apples.", "1234"),
    (r"\boxed{(-\infty, 2) \cup [5, \infty)}", r"(-\infty,2)\cup[5,\infty)"),
    (r"\boxed{x < 2 \text{ or } x \ge 5}", r"(-\infty,2)\cup[5,\infty)"),
    (r"\boxed{[5,\infty)\cup(-\infty,2)}", r"(-\infty,2)\cup[5,\infty)"),
    (r"\boxed{1, 2, 3}", r"\{1,2,3\}"),
    (r"\boxed{3, 1, 2}", "1,2,3"),
    (r"\boxed{x = 1 \text{ or } x = -3}", "-3, 1"),
    (r"\boxed{x=1, x=-3}", "1,-3"),
    (r"\boxed{(1,2),(3,4)}", "(3,4),(1,2)"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\begin{bmatrix} 1/2 & 0 \\ 0 & 1 \end{bmatrix}}", r"\begin{pmatrix} \frac12 & 0 \\ 0 & 1 \end{pmatrix}"),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{0.333\overline{3}}", r"\frac13"),
    (r"\boxed{\frac{2}{3}\pi}", r"\frac{2\pi}{3}"),
    (r"\boxed{e^{2}}", "e^2"),
    (r"\boxed{\text{Tuesday}}", "Tuesday"),
    (r"\boxed{\text{tuesday}}", r"\text{Tuesday}"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{B}}", r"\text{(B)}"),
    (r"\boxed{(B)}", "B"),
    ("The answer is (B).", "B"),
    ("The answer is B) 25", "B"),
    (r"\boxed{\textbf{(C) } 7}", "C"),
    (r"\boxed{y = 2x + 1}", "y=1+2x"),
    (r"\boxed{2x+1}", "y=2x+1"),
    (r"\boxed{f(x) = x^2 + 1}", "x^2+1"),
    (r"\boxed{a^2+2ab+b^2}", "(a+b)^2"),
    (r"\boxed{\frac{x+1}{2}}", r"\frac{x}{2}+\frac{1}{2}"),
    (r"\boxed{10^{-3}}", "0.001"),
    (r"\boxed{3.0 \times 10^8}", "300000000"),
    (r"\boxed{3\times10^{8}}", r"3 \cdot 10^8"),
    (r"\boxed{1.5e3}", "1500"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{50\%}", r"50\%"),
    (r"\boxed{50}", r"50\%"),
    (r"\boxed{-\frac{1}{2}}", r"\frac{-1}{2}"),
    (r"\boxed{-\frac{1}{2}}", "-0.5"),
    (r"\boxed{2^{10}}", "1024"),
    (r"\boxed{10!}", "3628800"),
    (r"\boxed{\binom{5}{2}}", "10"),
    (r"\boxed{3:4}", r"\frac34"),
    (r"\boxed{3 : 4}", "3:4"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{\frac{\pi}{2}}", r"\frac\pi2"),
    (r"\boxed{\frac{\pi}{2}}", r"\frac{1}{2}\pi"),
    (r"\boxed{1011_2}", "1011_2"),
    (r"\boxed{1011_{2}}", "1011_2"),
    (r"\boxed{\text{no solution}}", r"\text{No solution}"),
    (r"\boxed{\emptyset}", r"\{\}"),
    (r"\boxed{\{x \mid x > 2\}}", r"(2,\infty)"),
    (r"\boxed{\{1, 2\}}", r"\{2,1\}"),
    (r"\boxed{x \ge 3}", r"[3,\infty)"),
    (r"\boxed{3 \le x}", r"x \geq 3"),
    (r"\boxed{-1 \le x < 4}", "[-1,4)"),
    (r"\boxed{k > -1}", r"(-1, \infty)"),
    (r"\boxed{2+3i}", "3i+2"),
    (r"\boxed{i}", "i"),
    (r"\boxed{\cos\theta}", r"\cos \theta"),
    (r"\boxed{\sin 2x}", r"2 \sin x \cos x"),
    (r"\boxed{\ln 2}", r"\ln(2)"),
    (r"\boxed{\log_{10} 2}", r"\log_{10}2"),
    (r"\boxed{n^2 + n}", "n(n+1)"),
    (r"\boxed{C = 5}", "5"),
    (r"\boxed{p - q}", "p-q"),
    (r"\boxed{12\text{ hours}}", "12"),
    (r"\boxed{6:00 \text{ PM}}", r"6:00\text{ PM}"),
    (r"\boxed{\sqrt[3]{2}}", "2^{1/3}"),
    (r"\boxed{0.5, 0.25}", r"\frac12, \frac14"),
    (r"\boxed{\left(\frac{1}{2}, 3\right)}", "(0.5,3)"),
    (r"\boxed{11\frac{1}{2}}", "11.5"),
    (r"\boxed{11 \tfrac{1}{2}}", r"\frac{23}{2}"),
    (r"\boxed{5\sqrt{2} \text{ units}}", r"5\sqrt2"),
    (r"\boxed{1 + \sqrt{2}, 1 - \sqrt{2}}", r"1\pm\sqrt{2}"),
    (r"\boxed{\pm 3}", "3,-3"),
    (r"\boxed{3, -3}", r"\pm3"),
    (r"$\boxed{3}$ and $\boxed{-3}$", r"\pm 3"),
    ("Hence $n = 7$.", "7"),
    ("Hence $x^2 + 1$ is what we want.", "1+x^2"),
    (r"<think>a</think> The answer is $\frac{3}{4}$", "0.75"),
    (r"\boxed{\mathbf{7}}", "7"),
    (r"\boxed{\frac{7}{1}}", "7"),
    (r"\boxed{7.}", "7"),
    (r"\boxed{ 7 }", "7"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed{x=7}, \boxed{y=8}", "(7,8)"),
    ("#### 5 apples", "5"),
    (r"\boxed{1{,}000{,}000}", "10^6"),
    (r"\boxed{1\,000\,000}", "1000000"),
    (r"\boxed{\frac{1}{2}x + 3}", r"\frac{x}{2}+3"),
    (r"\boxed{3x^{2}-2}", "3x^2-2"),
    (r"\boxed{ab}", "ba"),
    (r"\boxed{\lfloor 3.5 \rfloor}", "3"),
    (r"\boxed{|x-1|}", r"\left|x-1\right|"),
    (r"\boxed{2 \cdot 3^5}", "486"),
    (r"\boxed{2^3 \cdot 3}", "24"),
    (r"\boxed{(1, 2, 3)}", "1,2,3"),
    (r"\boxed{A = \frac{1}{2}, B = 3}", r"\frac12,3"),
    (r"\boxed{m = 2 \text{ and } n = 3}", "m=2,n=3"),
    (r"\boxed{n=3, m=2}", "m=2,n=3"),
    (r"\boxed{25\text{ square units}}", "25"),
    (r"\boxed{25 \mathrm{~cm}^{2}}", "25"),
    (r"\boxed{4.5 \mathrm{~km} / \mathrm{h}}", "4.5"),
    (r"\boxed{\infty}", r"\infty"),
    (r"\boxed{+\infty}", r"\infty"),
    (r"\boxed{-\infty}", r"-\infty"),
    (r"\boxed{2n+1, n \in \mathbb{Z}}", r"2n+1, n\in\mathbb{Z}"),
    (r"\boxed{\text{Yes}}", "yes"),
    (r"\boxed{\text{True}}", "True"),
    (r"\boxed{13.0}", "13"),
    (r"\boxed{\text{Alice, Bob}}", r"\text{Bob, Alice}"),
    (r"\boxed{\frac 12}", "1/2"),
    (r"\boxed{\frac{3}{2}\sqrt{2}}", r"\frac{3\sqrt2}{2}"),
    (r"\boxed{(x-1)(x+2)}", "x^2+x-2"),
    (r"\boxed{(x - 1)(x + 2)}", "(x+2)(x-1)"),
    ("The answer is $5$ and $6$.", "5,6"),
    ("The answer is: 5, 6", "6,5"),
    (r"\boxed{5 \times 10^{-3}}", "0.005"),
    (r"\boxed{\tfrac{5}{6}}", r"0.8\overline{3}"),
    (r"\boxed{ \mathbb{R} }", r"(-\infty,\infty)"),
    (r"\boxed{(-\infty,\infty)}", r"\mathbb{R}"),
]
WRONG = [
    (r"\boxed{[2,12) \cup (12,102)}", r"(2,12) \cup (12,102)"),
    ("The possible values are $1$, $2$, and $3$.", "3"),
    (r"\boxed{x^2=9}", "9"),
    (r"\boxed{2x=6}", "6"),
    (r"\boxed{5}", "6"),
    (r"\boxed{1,2}", "1,2,3"),
    (r"\boxed{1,2,3,4}", "1,2,3"),
    (r"\boxed{(1,2)}", "(2,1)"),
    (r"\boxed{[1,2]}", "(1,2)"),
    (r"\boxed{x>2}", r"[2,\infty)"),
    (r"\boxed{x>2}", r"(-\infty,2)"),
    (r"\boxed{5 \text{ cm}}", r"5 \text{ m}"),
    (r"\boxed{50\%}", "5"),
    (r"\boxed{\text{Monday}}", r"\text{Tuesday}"),
    (r"\boxed{C}", "B"),
    (r"\boxed{\text{(A) or (B)}}", "B"),
    (r"\boxed{A,B}", "B"),
    (r"\boxed{A B}", "B"),
    (r"\boxed{5 or 6}", "5"),
    (r"\boxed{5}, \boxed{6}", "5"),
    (r"\boxed{6}\boxed{5}", "5"),
    (r"\boxed{x}", "5"),
    (r"\boxed{5=5}", "x"),
    (r"\boxed{}", "5"),
    (r"\boxed{?}", "5"),
    (r"\boxed{5 or 6}", "6"),
    (r"\boxed{\frac{1}{3}}", "0.33"),
    (r"\boxed{0.3333}", r"\frac13"),
    (r"\boxed{3.1416}", r"\pi"),
    (r"\boxed{x=y}", "y=x+1"),
    (r"\boxed{2x}", "x"),
    (r"\boxed{n}", "n+1"),
    (r"\boxed{x=5}", "y=5"),
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\boxed{1001_2}", "1011_2"),
    (r"\boxed{1011}", "1011_2"),
    (r"\boxed{3:4}", "4:3"),
    (r"\boxed{m=3,n=2}", "m=2,n=3"),
    (r"\boxed{1-\frac1e}", r"1+\frac1e"),
    (r"\boxed{\text{correct}}", "7"),
    (r"\boxed{\text{same as gold}}", "7"),
    (r"\boxed{a=b}", "a"),
    (r"\boxed{x=5=6}", "5"),
    ("I think 5, or maybe 6", "5"),
    ("<think>The answer is 5", "5"),
    (r"\boxed{\{1,...,100\}}", "50"),
    (r"\boxed{0\le x\le 10}", "5"),
    (r"\boxed{5\pm0}", "6"),
    (r"\boxed{\text{all real numbers}}", "5"),
    (r"\boxed{\mathbb{R}}", "5"),
    (r"\boxed{\sum}", "5"),
    (r"\boxed{5+}", "6"),
    (r"\boxed{12}", "1,2"),
    (r"\boxed{1 2}", "12"),
    (r"\boxed{44/9}", "4 4/9"),
    (r"\boxed{2^{3}}", "23"),
    (r"\boxed{x^2}", "x_2"),
    (r"\boxed{-x}", "x"),
    (r"\boxed{\sin x}", r"\cos x"),
    (r"\boxed{\emptyset}", "0"),
    (r"\boxed{\infty}", r"-\infty"),
    (r"\boxed{1/0}", r"\infty"),
    (r"\boxed{0/0}", "0"),
    (r"\boxed{nan}", "nan(x)"),
    (r"\boxed{yes and no}", "yes"),
    (r"\boxed{\text{yes, no}}", "yes"),
    (r"\boxed{True or False}", "True"),
    (r"\boxed{{}}", "5"),
    (r"\boxed{5;6}", "5"),
    (r"\boxed{5\text{ or }6}", "6"),
    (r"\boxed{5/6}", "5,6"),
    (r"\boxed{5 6}", "5"),
    (r"\boxed{5|6}", "5"),
    (r"\boxed{[5,5]}", "5"),
    (r"\boxed{\max(5,6)}", "5"),
    (r"\boxed{x\in\{5,6\}}", "5"),
    (r"\boxed{5\ne 6}", "5"),
    (r"\boxed{\neg 6}", "5"),
    (r"\boxed{5\approx 6}", "6"),
    ("The answer is not 5.", "5"),
    (r"\boxed{not 5}", "5"),
    (r"\boxed{\text{not } 5}", "5"),
]


@pytest.mark.parametrize(("response", "gold"), RIGHT)
def test_right(response: str, gold: str) -> None:
    assert verdict(response, gold).value == 1


@pytest.mark.parametrize(("response", "gold"), WRONG)
def test_wrong(response: str, gold: str) -> None:
    assert verdict(response, gold).value == 0


@pytest.mark.parametrize(
    ("response", "options", "answer"),
    [
        (r"\boxed{7}. Hmm, no, it is \boxed{5}", {}, "5"),
        (r"\boxed{1} and \boxed{2}", {}, "1, 2"),
        (r"\boxed{1}, $\boxed{2}$, \text{ or } \boxed{3}", {}, "1, 2, 3"),
        (r"\boxed{1}\boxed{2}", {}, "1, 2"),
        (r"\boxed{1} is wrong and so \boxed{2}", {}, "2"),
        (r"\boxed{a\boxed{b}}", {}, r"a\boxed{b}"),
        (r"\boxed{3} then \boxed{4", {}, None),
        (r"\fbox{5}", {}, "5"),
        (r"\boxed 5 .", {}, "5"),
        ("<think>3</think><answer>4</answer>", {}, "4"),
        (r"<think>\boxed{3}</think> hence \boxed{4}", {}, "4"),
        (r"<think>\boxed{3}", {}, None),
        ("so #### 5\nthen", {}, "5"),
        (r"#### 5, I mean \boxed{6}", {"place": "hashes"}, r"5, I mean \boxed{6}"),
        (r"\boxed{6} <answer>7</answer>", {}, "7"),
        (r"\boxed{6} <answer>7</answer>", {"place": "boxed"}, "6"),
        (r"\boxed{6}", {"place": "answer_tag"}, None),
        (r"\boxed{6} of 8 apples", {"place": "last_number"}, "8"),
        ("The answer is $5$. I hope it is correct.", {}, "5"),
        ("The answer is 5. Wait, it must be 6.", {}, "6"),
        (r"\boxed{6}. Final Answer: The final answer is $7$. I hope it is correct.", {}, "7"),
        ("we get 12 apples in the end", {}, "12"),
        ("we get 12 apples in the end", {"strict": True}, None),
        ("The answer is 12", {"strict": True}, "12"),
    ],
)
def test_where_the_answer_stands(response: str, options: dict[str, Any], answer: str | None) -> None:
    assert find(clean(response), **options) == answer


def test_finding_takes_linear_time() -> None:
    assert last_box(r"\boxed{" * 50_000) is None
    assert last_box("{" * 100_000 + r"\boxed{\{a}") == r"\{a"
    for piece in (
        r"\(",
        r"\)",
        "$",
        "answer is ",
        "<think>",
        "<answer>",
        "#### ",
        "1,",
        "a ",
        "√",
        r"\boxed",
        "}",
        "^",
    ):
        find(clean(piece * (100_000 // len(piece))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("-4 4/9", Fraction(-40, 9)),
        (r"-3 \frac{1}{2}", Fraction(-7, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"\sqrt[3]{27}", Fraction(3)),
        (r"7 \times 10^{5}", Fraction(700_000)),
        ("1e6", Fraction(1_000_000)),
        ("4^{-1/2}", Fraction(1, 2)),
        ("--5", Fraction(5)),
        ("5!", Fraction(120)),
        ("60%", Fraction(3, 5)),
        ("11 7/6", None),
        ("4 4/0", None),
        ("1,23", None),
        (r"\sqrt{2}", None),
        ("9^{9^{9}}", None),
        ("1e99999", None),
        ("(" * 5000, None),
        ("", None),
    ],
)
def test_exact_values(text: str, expected: Fraction | None) -> None:
    assert value(text) == expected


def test_random_rationals_in_every_spelling() -> None:
    rng = random.Random()
    for _ in range(200):
        top, bottom = rng.randint(1, 999), rng.randint(2, 99)
        gold = Fraction(top, bottom)
        whole, rest = divmod(top, bottom)
        times = rng.randint(2, 9)
        spellings = [rf"\frac{{{top}}}{{{bottom}}}", f"{top * times}/{bottom * times}", f"{top}:{bottom}"]
        if rest and whole:
            spellings += [f"{whole} {rest}/{bottom}", rf"{whole}\tfrac{{{rest}}}{{{bottom}}}"]
        for spelling in spellings:
            assert verdict(rf"\boxed{{{spelling}}}", str(gold)).value == 1, (spelling, gold)
            assert verdict(rf"\boxed{{{spelling}}}", str(gold + Fraction(1, 1000))).value == 0, (spelling, gold)


def test_statuses() -> None:
    assert verdict(r"\boxed{\text{a}b", "5").status == "no_answer"
    assert verdict("I do not know it.", "5").status == "no_answer"
    assert verdict(r"\boxed{ }", "5").status == "no_answer"
    assert verdict(r"\boxed{5}", " ").status == "bad_gold"


def test_tolerance() -> None:
    assert verdict(r"\boxed{4.25}", "4.2", tolerance=0.1).value == 1
    assert verdict(r"\boxed{4.31}", "4.2", tolerance=0.1).value == 0
    olympiad = registry.build("rewards", "math", {"tolerance": "error"})
    assert olympiad([sample(r"\boxed{4.25\%}", "4.2", error="1e-1")])[0].value == 1
    assert olympiad([sample(r"\boxed{4.25}", "4.2", error=None)])[0].value == 0


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^9}}",
        "9^9^9",
        "9**9**9",
        "((9^{99})^{99})^{99}",
        "10^{99*99*99*99}",
        "2^{1000000000}",
        "1E999999999",
        "99999!",
        "((3!)!)!",
        "(10^{9})!",
        r"\binom{10^8}{5}",
        r"\sum_{k=1}^{10^{12}} \frac{1}{k}",
        "(x+y+z+w)^{200}",
        "7" * 5000,
        r"\frac{1}{1+" * 100 + "1" + "}" * 100,
    ],
)
def test_bombs_are_refused(bomb: str) -> None:
    result = verdict(rf"\boxed{{{bomb}}}", "x")
    assert (result.value, result.status) == (0.0, "refused")


def _serve(connection: Connection) -> None:
    judge = registry.build("rewards", "math", {})
    while True:
        response, gold = connection.recv()
        (result,) = judge([sample(response, gold)])
        connection.send(result.value)


@pytest.fixture
def killable() -> Iterator[Any]:
    """A verdict from a process that is killed when late; "late" then."""
    context = multiprocessing.get_context("spawn")
    running: list[Any] = []

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        running[:] = [process, ours]

    def judge(response: str, gold: str) -> float | str | None:
        running[1].send((response, gold))
        if running[1].poll(DEADLINE_S):
            verdict: float | None = running[1].recv()
            return verdict
        running[0].kill()
        start()
        return "late"

    start()
    yield judge
    running[0].kill()


def test_the_public_cases(killable: Any) -> None:
    cases = shared("verifier_cases.jsonl")
    verdicts = [killable(case["prediction"], str(case["gold"])) for case in cases]
    judged = list(zip(cases, verdicts, strict=True))
    bombs = [(c, v) for c, v in judged if c.get("bomb")]
    assert len(bombs) > 20
    assert [c["prediction"][:80] for c, v in bombs if v == "late" or (v == 1 and not c["expected"])] == []
    counted = [(c, v) for c, v in judged if not c.get("bomb") and not c.get("contested")]
    assert [(c["prediction"][-80:], c["gold"]) for c, v in counted if v == 1 and not c["expected"]] == []
    assert sum((v == 1) == c["expected"] for c, v in counted) >= 0.98 * len(counted)


@pytest.mark.parametrize(
    ("name", "column", "unusable"),
    [
        ("math500.jsonl", "answer", 0),
        ("aime24.jsonl", "expected_answer", 0),
        ("aime25.jsonl", "expected_answer", 0),
        ("olympiadbench.jsonl", "final_answer", 0),
        ("gsm8k_test.jsonl", "answer", 0),
        ("math_train_12k.jsonl", "answer", 4),
    ],
)
def test_every_gold_verifies_against_itself(name: str, column: str, unusable: int) -> None:
    golds = [row[column] for row in shared(name)]
    golds = [gold[0] if isinstance(gold, list) else gold for gold in golds]
    usable = [str(gold) for gold in golds if gold]
    assert len(golds) - len(usable) == unusable
    boxed = [gold.rpartition("#### ")[2].replace(r"\$", "").replace("$", "") for gold in usable]
    results = registry.build("rewards", "math", {})(
        [sample(rf"\boxed{{{answer}}}", gold) for answer, gold in zip(boxed, usable, strict=True)]
    )
    assert [g for g, r in zip(usable, results, strict=True) if r.value != 1] == []


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        (r"\boxed{\frac{1}{e^{50}}}", r"\frac{1}{e^{51}}", False),
        (r"\boxed{\frac{\pi}{2^{60}}}", r"\frac{\pi}{2^{61}}", False),
        (r"\boxed{\sqrt{2}\cdot 10^{-20}}", r"\sqrt{3}\cdot 10^{-20}", False),
        (r"\boxed{\frac{x}{e^{40}}}", r"\frac{x}{e^{41}}", False),
        (r"\boxed{\frac{\pi}{10^{8}}}", "0", False),
        (r"\boxed{10^{-7}\sqrt{2}}", r"1.5\cdot 10^{-7}", False),
        (r"\boxed{\frac{2\pi}{2^{61}}}", r"\frac{\pi}{2^{60}}", True),
        (r"\boxed{e^{-50}}", r"\frac{1}{e^{50}}", True),
        (r"\boxed{\frac{\sqrt{12}}{2^{101}}}", r"\frac{\sqrt{3}}{2^{100}}", True),
        (r"\boxed{1+e^{-40}}", "1+e^{-41}", False),
        (r"\boxed{e^{-40}+i}", "e^{-41}+i", False),
        (r"\boxed{y=x+e^{-50}}", "y=x+e^{-51}", False),
        (r"\boxed{1+e^{-40}}", r"\frac{e^{40}+1}{e^{40}}", True),
        (r"\boxed{\pi}", "3.14159265358979", True),
        (r"\boxed{(\sqrt{2}-1)(\sqrt{2}+1)-1}", "0", True),
        (r"\boxed{\sqrt{1/n}}", r"\frac{1}{\sqrt{n}}", True),
        (r"\boxed{\sqrt{n^2 m}}", r"n\sqrt{m}", True),
        (r"\boxed{\sqrt{n}}", r"\sqrt{m}", False),
        (r"\boxed{\sqrt{x^2}}", "x", False),
        (r"\boxed{(-1)^n}", "1", False),
        (r"\boxed{10:30\text{ p.m.}}", "10:30", True),
        (r"\boxed{10:30\text{ p.m.}}", r"10:30\text{ a.m.}", False),
        (r"\boxed{10:30\text{ PM}}", "10:30 p.m.", True),
        (r"\boxed{10:31\text{ p.m.}}", "10:30", False),
        ("The answer is 10:30.", r"10:30\text{ p.m.}", True),
        ("Add 400 and 90 to get 490. The answer is `73`.", "73", True),
        ("Add 400 and 90 to get 490. The answer is ```73```", "73", True),
        ("Add 400 and 90 to get 490.\nSo the answer: **73** \u2705", "73", True),
        ("Add 400 and 90 to get 490.\n**Answer: 73** \U0001f389\ufe0f", "73", True),
        ("Add 400 and 90 to get 490. The answer is <b>73</b>.", "73", True),
        ("Add 400 and 90 to get 490. The answer is __73__!", "73", True),
        ("Add 400 and 90 to get 490. The answer is **`x = 73`**.", "73", True),
        ("Add 400 and 90 to get 490. The answer is `490`.", "73", False),
        ("Add 400 and 90. So the final answer is `x = 73`, as wanted.", "73", True),
        ("Add 400 and 90. So the final answer is **x = 73**, as wanted.", "73", True),
        ("Add 400 and 90. **Final answer:** 73", "73", True),
        ("**Add 400** and 90. The answer is **73**, not **490**.", "73", True),
        ("Thus `73`", "73", True),
        (r"We get \boxed{7}. I put it within \boxed{} as asked.", "7", True),
        (r"We get \boxed{7} (marked with \boxed, as asked).", "7", True),
        (r"We get \boxed{7}, with \boxed as you asked.", "7", True),
        (r"We get \boxed{7}, and so $\boxed{\ldots}$ is filled. \boxed{ }", "7", True),
        (r"Add 2 and 5. The answer is 7. \boxed{}", "7", True),
        (r"\boxed{}", "7", False),
        (r"We get \boxed{8}. I put it within \boxed{} as asked, 7.", "7", False),
        (r"We get \boxed 7", "7", True),
    ],
)
def test_small_differences_and_where_the_answer_stands_in_prose(response: str, gold: str, expected: bool) -> None:
    assert (verdict(response, gold).value == 1) == expected
