"""One side of step.py: rlkit, a step for each line of stdin."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from common import Shape, Steps

asked = json.loads(sys.argv[1])
SAID = sys.stdout
sys.stdout = sys.stderr
shape = Shape(prompts=asked["prompts_per_step"], samples=asked["samples"], tokens=asked["tokens"])
steps = Steps(
    asked["algo"], Path(asked["model"]), shape, Path(asked["out"]), f"sampler={asked['sampler']}",
    f"plugins=[{Path(__file__).with_name('digits.py')}]", "reward=digits", f"optimizer.lr={asked['lr']}",
)  # fmt: skip
for _ in sys.stdin:
    started = time.perf_counter()
    steps()
    seconds = time.perf_counter() - started
    said = {
        "seconds": seconds,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "reward": steps.metrics["reward/mean"],
        "length": steps.metrics["response/length"],
        **{phase: steps.metrics[f"time/{phase}_s"] for phase in ("sample", "measure", "update")},
    }
    print(json.dumps(said), file=SAID, flush=True)
