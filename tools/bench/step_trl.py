"""The other side of step.py: TRL's GRPOTrainer, a step for each line of stdin. Run by an environment that has TRL."""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

asked = json.loads(sys.argv[1])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
SAID = sys.stdout
sys.stdout = sys.stderr
rewards: list[float] = []


class OneByOne(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if not sys.stdin.readline():
            sys.exit()
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        said = {
            "seconds": time.perf_counter() - self.started,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "reward": sum(rewards) / len(rewards),
            "length": trainer._metrics["train"]["completions/mean_length"][-1],
        }
        rewards.clear()
        print(json.dumps(said), file=SAID, flush=True)


def digits(completions, **_):
    """As digits.py, which needs rlkit."""
    found = [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
    rewards.extend(found)
    return found


batch = asked["prompts_per_step"] * asked["samples"]
trainer = GRPOTrainer(
    model=asked["model"],
    processing_class=AutoTokenizer.from_pretrained(asked["model"], padding_side="left"),
    reward_funcs=digits,
    train_dataset=Dataset.from_dict({"prompt": asked["prompts"]}),
    args=GRPOConfig(
        output_dir=asked["out"], max_steps=asked["steps"], per_device_train_batch_size=batch,
        num_generations=asked["samples"], max_completion_length=asked["tokens"], temperature=1.0,
        beta=asked["beta"], loss_type="grpo", learning_rate=asked["lr"], lr_scheduler_type="constant",
        weight_decay=0.0, max_grad_norm=1.0, use_cpu=not torch.cuda.is_available(), bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        use_vllm=asked["sampler"] == "vllm", vllm_mode="colocate",
    ),
    callbacks=[OneByOne()],
)  # fmt: skip
trainer.train()
