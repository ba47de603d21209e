r"""Several rewards with weights: the right number, and a penalty that grows with the response.

From the shell:

    rlkit run embedded_xs -s 'reward=[final_answer, {kind: length, max_tokens: 30, buffer: 20, weight: 0.3}]' \
        --steps 40 --name combined
"""

from __future__ import annotations

import rlkit

REWARD = [
    {"kind": "final_answer"},  # 0 or 1; the first says what counts as correct
    {"kind": "length", "max_tokens": 30, "buffer": 20, "weight": 0.3},  # 0 up to 10 tokens, -0.3 from 30 on
]


def main(steps: int = 40) -> rlkit.Run:
    run = rlkit.train("embedded_xs", reward=REWARD, steps=steps, name="combined", exist="new")
    samples = run.samples([run.step])
    parts = samples["parts"].map(dict)
    for kind in ("final_answer", "length"):
        print(f"{kind:<13} {parts.map(lambda part, kind=kind: part[kind]).mean():+.3f} on average in the last step")
    weighted = parts.map(lambda part: part["final_answer"] + 0.3 * part["length"])
    print(f"{'reward':<13} {weighted.mean():+.3f} = final_answer + 0.3 * length")
    return run


if __name__ == "__main__":
    main()
