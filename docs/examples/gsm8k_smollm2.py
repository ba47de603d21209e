"""GSM8K with SmolLM2-135M-Instruct, from the hub. Needs one GPU with 8 GB.

From the shell:

    rlkit run gsm8k_smollm2 --algo grpo --steps 200 --lr 5e-6 --name gsm8k

The same with files and a model of your own: `python gsm8k_smollm2.py MODEL TRAIN.jsonl TEST.jsonl`.
"""

from __future__ import annotations

import sys
from typing import Any

import rlkit


def main(
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct",
    data: str = "openai/gsm8k",
    test: str = "openai/gsm8k",
    steps: int = 200,
    batch: int = 32,
    settings: dict[str, Any] | None = None,
) -> rlkit.Run:
    # The preset brings the rest: the columns, the template, the reward (the number after ####), the evaluation.
    run = rlkit.train(
        "gsm8k_smollm2",
        algo="grpo",
        model=model,
        data=data,
        steps=steps,
        batch=batch,
        lr=5e-6,
        settings={"data.eval_path": test, **(settings or {})},
        name="gsm8k",
        exist="resume",
    )
    print(run.evaluation.query("metric == 'mean@1'").to_string(index=False))
    print(run.sample("A box holds 6 pens. Ann buys 4 boxes and gives 5 away. How many pens has she left?")[0])
    return run


if __name__ == "__main__":
    main(*sys.argv[1:4])
