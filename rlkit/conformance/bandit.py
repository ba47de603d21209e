"""A bandit of logits that any algorithm should learn, in a second and without an engine."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.interfaces.learning import Algorithm, Batch, Rollout, State, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.interfaces.rewards import SampleKey

PROMPTS, SAMPLES, LENGTH, WORDS = 4, 8, 2, 4
"""Samples of each prompt; tokens of each; words to choose from, of which one is right at each place."""
UPDATES = 60
GAIN = 0.2
"""Of the mean reward, which is 1 / WORDS by chance."""
LEARNING_RATE = 0.1


def learn(algorithm: Algorithm, seed: int) -> tuple[float, float]:
    """The policy's expected reward, the share of right words, before and after UPDATES updates: on policy, one a
    rollout, by Adam."""
    rng = torch.Generator().manual_seed(seed)
    right = torch.randint(0, WORDS, (PROMPTS, LENGTH), generator=rng)
    logits = torch.zeros(PROMPTS, LENGTH, WORDS, requires_grad=True)
    values = torch.zeros(PROMPTS, LENGTH, requires_grad=True)
    slow = torch.zeros_like(logits)
    keep = algorithm.reference.get("decay", 1.0) if algorithm.reference.get("kind") == "average" else 1.0
    steps = [_Adam(logits), _Adam(values)]
    state: State = {}

    def expected() -> float:
        return float(logits.detach().softmax(-1).gather(2, right.unsqueeze(2)).mean())

    before = expected()
    for update in range(algorithm.critic_warmup_steps + UPDATES):
        batch, new = _batch(logits, values, slow, right, rng)
        batch.update, batch.progress = update, update / (algorithm.critic_warmup_steps + UPDATES)
        targets = algorithm.advantage(batch, state)
        sums: dict[str, list[float]] = {}
        if algorithm.value_loss is not None:
            loss, metrics = algorithm.value_loss(new.get("values"), batch, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            sums |= {name: [float(x) for x in pair] for name, pair in metrics.items()}
        if update >= algorithm.critic_warmup_steps:
            asked: frozenset[Stat] = algorithm.needs.grad | algorithm.needs.observe
            given = {stat: new.get(stat) for stat in asked}
            given |= {stat: given[stat].detach() for stat in algorithm.needs.observe - algorithm.needs.grad}
            loss, metrics = algorithm.policy_loss(TokenStats(**given), batch, targets)
            loss.backward()  # type: ignore[no-untyped-call]
            sums |= {name: [float(x) for x in pair] for name, pair in metrics.items()}
        for step in steps:
            step()
        algorithm.after_update({name: total / weight for name, (total, weight) in sums.items() if weight}, state)
        slow = keep * slow + (1 - keep) * logits.detach()
    return before, expected()


class _Adam:
    """torch.optim takes seconds to import."""

    def __init__(self, weights: Tensor) -> None:
        self.weights, self.count = weights, 0
        self.mean, self.square = torch.zeros_like(weights), torch.zeros_like(weights)

    @torch.no_grad()
    def __call__(self) -> None:
        gradient = self.weights.grad
        if gradient is None:
            return
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient**2, 0.01)
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.99**self.count)
        self.weights -= LEARNING_RATE * mean / (square.sqrt() + 1e-8)
        self.weights.grad = None


def _batch(
    logits: Tensor, values: Tensor, reference: Tensor, right: Tensor, rng: torch.Generator
) -> tuple[Batch, TokenStats]:
    group = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    rows = len(group)
    logp, ref = logits.log_softmax(-1)[group], reference.log_softmax(-1)[group]
    probabilities = logp.detach().exp().flatten(0, 1)
    tokens = torch.multinomial(probabilities, 1, generator=rng).view(rows, LENGTH)

    def chosen(x: Tensor) -> Tensor:
        return x.gather(2, tokens.unsqueeze(2)).squeeze(2)

    new = TokenStats(
        logprobs=chosen(logp),
        ref_logprobs=chosen(ref),
        token_kl=(logp.exp() * (logp - ref)).sum(-1),
        entropy=-(logp.exp() * logp).sum(-1),
        values=values[group],
    )
    now = new._map(lambda stat: stat.detach())
    reward = (tokens == right[group]).float().mean(1)
    everywhere = torch.ones(rows, LENGTH, dtype=torch.bool)
    rollout = Rollout(
        keys=[SampleKey(f"prompt{row // SAMPLES}", 1, 0, row % SAMPLES) for row in range(rows)],
        prompt_tokens=[torch.tensor([1])] * rows,
        tokens=tokens,
        length=torch.full((rows,), LENGTH),
        mask=everywhere,
        valid=torch.ones(rows, dtype=torch.bool),
        group=group,
        reward=reward,
        clean_reward=reward,
        sampler_logprobs=now.get("logprobs"),
        version=torch.zeros(rows, dtype=torch.long),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )
    return Batch(rollout=rollout, old=now, now=now, n_sequences=rows, n_tokens=rows * LENGTH), new
