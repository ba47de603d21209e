r"""Programs as answers, each run against tests in a sandbox. Needs bubblewrap, and one GPU with 16 GB.

From the shell, once the script has written `programs.jsonl`:

    rlkit run gsm8k_smollm2 --algo grpo -s model.path=Qwen/Qwen2.5-Coder-0.5B-Instruct \
        -s 'data={path: programs.jsonl, answer: tests, chat: true}' -s 'reward={kind: code, partial: true}' \
        -s scoring.timeout_s=10 -s batch.prompts_per_step=3 --steps 50 --name programs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rlkit

ASK = "Write a Python function {}. Answer with the function in one ```python block."
PROBLEMS = [
    ("add(a, b) that returns their sum", ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]),
    ("double(text) that returns the text twice", ["assert double('ab') == 'abab'", "assert double('') == ''"]),
    (
        "largest(numbers) that returns the largest, or None",
        ["assert largest([1, 3]) == 3", "assert largest([]) is None"],
    ),
]


def main(
    model: str = "Qwen/Qwen2.5-Coder-0.5B-Instruct", steps: int = 50, settings: dict[str, Any] | None = None
) -> rlkit.Run:
    rows = [{"prompt": ASK.format(what), "tests": json.dumps(tests)} for what, tests in PROBLEMS]
    Path("programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A preset of another task brings the batch, the optimizer and the lengths.
    run = rlkit.train(
        "gsm8k_smollm2",
        algo="grpo",
        model=model,
        steps=steps,
        batch=3,
        settings={
            "data": {"path": "programs.jsonl", "answer": "tests", "chat": True},
            "reward": {"kind": "code", "partial": True},  # the share of the tests that pass
            "scoring.timeout_s": 10,  # for all tests of a sample; each has 2 s of its own
            **(settings or {}),
        },
        name="programs",
        exist="new",
    )
    print(run.samples([run.step])[["prompt", "reward", "status", "response"]].head())
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2])
