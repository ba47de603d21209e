"""The reward `math` beside plain math-verify: what they accept, and verdicts per second, in the same run.

    python tools/bench/verifiers.py --cases CASES.jsonl [--golds MATH500.jsonl]

CASES has prediction, gold, expected, category, and `contested` or `bomb` where they hold. Each verifier runs in a
process of its own that is killed after 3 s with one case (a `timeout`, which counts as not accepted). Plain
math-verify gets the gold, and a prediction that is short and bare, in a box, which is how it does best.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DEADLINE_S = 3.0


def rlkit_verdict(prediction: str, gold: str) -> tuple[bool, str]:
    from rlkit_rewards.math import math

    from rlkit.interfaces.rewards import Sample, SampleKey

    key = SampleKey("case", 0, 0, 0)
    sample = Sample(key=key, prompt="", response=prediction, tokens=[], answer=gold, truncated=False)
    (result,) = math([sample])
    return result.value == 1, result.status


def plain_verdict(prediction: str, gold: str) -> tuple[bool, str]:
    from math_verify import parse, verify

    if "boxed" not in gold:
        gold = rf"\boxed{{{gold.strip().strip('$')}}}"
    bare = (
        len(prediction) < 80 and "boxed" not in prediction and not any(w in prediction for w in (" is ", "nswer", "<"))
    )
    if bare:
        prediction = rf"\boxed{{{prediction.strip().strip('$')}}}"
    wanted = parse(gold, parsing_timeout=None)
    return bool(verify(wanted, parse(prediction, parsing_timeout=None), timeout_seconds=None)), "ok"


VERIFIERS: dict[str, Callable[[str, str], tuple[bool, str]]] = {"rlkit": rlkit_verdict, "math-verify": plain_verdict}


def _serve(connection: Connection, name: str) -> None:
    verdict = VERIFIERS[name]
    while True:
        prediction, gold = connection.recv()
        started = time.perf_counter()
        try:
            accepted, status = verdict(prediction, gold)
        except Exception as error:
            accepted, status = False, repr(error)[:100]
        connection.send((accepted, status, time.perf_counter() - started))


class Worker:
    """One verifier in a process that can be killed."""

    def __init__(self, name: str):
        self.name = name
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.name), daemon=True)
        self.process.start()
        for pair in ((r"\boxed{1}", "1"), (r"\boxed{x+1}", "1+x")):
            self.connection.send(pair)
            self.connection.recv()

    def __call__(self, prediction: str, gold: str) -> tuple[bool, str, float]:
        """Accepted, status, seconds."""
        self.connection.send((prediction, gold))
        if self.connection.poll(DEADLINE_S):
            accepted, status, seconds = self.connection.recv()
            return accepted, status, seconds
        self.close()
        self._start()
        return False, "timeout", DEADLINE_S

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def judge(name: str, cases: list[dict[str, Any]]) -> list[tuple[bool, str, float]]:
    worker = Worker(name)
    verdicts = [worker(case["prediction"], str(case["gold"])) for case in cases]
    worker.close()
    return verdicts


def accuracy(cases: list[dict[str, Any]]) -> None:
    verdicts = {name: judge(name, cases) for name in VERIFIERS}
    counted = [i for i, c in enumerate(cases) if not c.get("contested") and not c.get("bomb")]
    rows: dict[str, Counter[str]] = {}
    for i in counted:
        label = "right" if cases[i]["expected"] else "wrong"
        row = rows.setdefault(cases[i]["category"], Counter())
        row[label] += 1
        for name in VERIFIERS:
            row[f"{label} {name}"] += verdicts[name][i][0]
    total: Counter[str] = sum(rows.values(), Counter())
    accepted = " | ".join(VERIFIERS)
    print(f"| category | right answers | accepted: {accepted} | wrong answers | accepted: {accepted} |")
    print("|---|---|---|---|---|---|---|")
    for category, row in [*sorted(rows.items()), ("**all**", total)]:
        columns = [row[key] for label in ("right", "wrong") for key in (label, *(f"{label} {n}" for n in VERIFIERS))]
        print(f"| {category} | " + " | ".join(str(c) for c in columns) + " |")
    for name in VERIFIERS:
        wrong = total["right"] - total[f"right {name}"] + total[f"wrong {name}"]
        seconds = sorted(((verdicts[name][i][2], cases[i]["prediction"][:60]) for i in range(len(cases))), reverse=True)
        timeouts = sum(verdict[1] == "timeout" for verdict in verdicts[name])
        hacked = sum(v[0] and not c["expected"] for c, v in zip(cases, verdicts[name], strict=True) if c.get("bomb"))
        print(
            f"\n{name}: {1 - wrong / len(counted):.4f} of {len(counted)} right; "
            f"{timeouts} timeouts at {DEADLINE_S:g} s; "
            f"bombs accepted wrongly: {hacked}; slowest {seconds[0][0]:.2f} s: {seconds[0][1]!r}"
        )
    print("\n| contested case | gold | public label | rlkit | math-verify |\n|---|---|---|---|---|")
    for i, case in enumerate(cases):
        if case.get("contested"):
            shown = [case["prediction"][-60:], str(case["gold"])[-60:], case["expected"]]
            shown += [f"{verdicts[name][i][0]} ({verdicts[name][i][1]})" for name in VERIFIERS]
            print("| " + " | ".join(str(s).replace("\n", " ").replace("|", "\\|") for s in shown) + " |")


EASY = [(rf"so the answer is \boxed{{{n}}}.", str(n)) for n in range(100, 400)]
EASY += [(rf"\boxed{{\frac{{{n}}}{{7}}}}", rf"\frac{{{n}}}{{7}}") for n in range(1, 100) if n % 7]
HARD_WRONG = [
    (rf"\boxed{{\frac{{{n}+\sqrt{{{n + 1}}}}}{{3}}}}", rf"\frac{{{n}-\sqrt{{{n + 1}}}}}{{3}}") for n in range(2, 40)
]
HARD_WRONG += [(rf"\boxed{{x^{{{n}}}+2x+1}}", rf"(x+1)^2+x^{{{n + 1}}}") for n in range(2, 40)]


def speed(name: str, pairs: list[tuple[str, str]]) -> float:
    """Verdicts per second of one process."""
    worker = Worker(name)
    started = time.perf_counter()
    for prediction, gold in pairs:
        worker(prediction, gold)
    elapsed = time.perf_counter() - started
    worker.close()
    return len(pairs) / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--golds", type=Path, help="JSONL with `answer`: the mix is these, three right to one wrong")
    arguments = parser.parse_args()
    cases = [json.loads(line) for line in arguments.cases.read_text().splitlines()]
    accuracy(cases)
    sets = {"easy": EASY, "hard wrong": HARD_WRONG}
    if arguments.golds:
        golds = [json.loads(line)["answer"] for line in arguments.golds.read_text().splitlines()]
        drawn = random.Random(0)
        sets["mix"] = [
            (rf"Hence $x$ is \boxed{{{gold if drawn.random() < 0.75 else drawn.choice(golds)}}}.", gold)
            for gold in golds
        ]
    print("\n| verdicts per second | " + " | ".join(VERIFIERS) + " |\n|---|---|---|")
    for label, pairs in sets.items():
        print(f"| {label} ({len(pairs)}) | " + " | ".join(f"{speed(name, pairs):.0f}" for name in VERIFIERS) + " |")


if __name__ == "__main__":
    main()
