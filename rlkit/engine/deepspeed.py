"""The engine: one DeepSpeed-wrapped model. The policy, a reference of its own and a critic are its instances.

DeepSpeed averages gradients over ranks and divides by its accumulation steps. Losses here are sums already divided by
what the whole optimizer batch holds, so the engine multiplies by the number of ranks, configures one accumulation step,
and says itself which micro-batch is the last.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.config import OptimizerConfig, RunConfig
from rlkit.engine import distributed, offload
from rlkit.engine.modules import Critic, Policy, whole_shape
from rlkit.engine.passes import LOGPROBS, REFERENCE
from rlkit.engine.reference import Compared, Kept, Reference, check_reference
from rlkit.engine.resharding import Layout, Saved, place
from rlkit.engine.settings import adamw, deepspeed_config, learning_rate
from rlkit.engine.shares import put_together
from rlkit.engine.states import Files
from rlkit.engine.tally import Tally
from rlkit.errors import NotFiniteError, RlkitError
from rlkit.interfaces.learning import Batch, Metrics, Rollout, Targets, TokenStats
from rlkit.interfaces.names import Stat
from rlkit.interfaces.progress import alive
from rlkit.interfaces.rewards import SampleKey
from rlkit.ops.head import Head
from rlkit.ops.packing import place_rows, plan_microbatches, scatter_rows

Loss = Callable[[TokenStats, Batch, Targets], tuple[Tensor, Metrics]]

WeightGroup = tuple[list[nn.Parameter], Callable[[], dict[str, Tensor]]]
"""See `Policy.weight_groups`."""

TAG = "state"

GATHERED_BYTES = 2**28
"""Of weights that ZeRO-3 gathers together, to be given out: one by one, most of the time would go into waiting."""

_THIRD_BIT = {torch.float32: (torch.int32, 1 << 20), torch.bfloat16: (torch.int16, 1 << 4)}
"""Of the mantissa, for each dtype of weights: as which integers they are seen, and the bit in them."""


class Engine:
    """A model under DeepSpeed. Every method but the properties is collective: call it on all ranks alike.

    Args:
        module: from `load_policy` or `load_critic`. It belongs to the engine from then on.
        config: of the run; read are `engine`, `model`, `batch.tokens_per_microbatch` and `sampling.temperature`.
        tokenizer: exported beside the weights; None: weights alone.
        optimizer: None: frozen.
        total_updates: optimizer updates of the whole run, at which the schedule ends.
    """

    def __init__(
        self,
        module: Policy | Critic,
        config: RunConfig,
        tokenizer: Any = None,
        *,
        optimizer: OptimizerConfig | None = None,
        total_updates: int = 1,
    ) -> None:
        distributed.init()
        import deepspeed

        self.role = module.role
        self._module = module
        self._tokenizer = tokenizer
        self._optimizer = optimizer
        self._total_updates = total_updates
        self._budget = config.batch.tokens_per_microbatch
        self._temperature = config.sampling.temperature
        self._shapes = {name: list(whole_shape(parameter)) for name, parameter in module.named_parameters()}
        self._observed: frozenset[Stat] = frozenset({"entropy"}) if isinstance(module, Policy) else frozenset()
        self._stage = config.zero_stage
        self._dtype: str = config.model.dtype
        self._leaves = config.engine.offload_states and optimizer is not None
        self._away = False
        """The optimizer's state is in host memory."""
        if optimizer is None:
            module.requires_grad_(False)
            # ZeRO 1 and 2 cut optimizer state and gradients, of which a frozen model has none.
            self._stage = 3 if self._stage == 3 else 0
        # DeepSpeed prints memory figures here in some settings.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=None if optimizer is None else adamw(module, optimizer),
                config=deepspeed_config(config, optimizer, self._stage, _trained(module)),
                dist_init_required=False,
            )
        self._files = Files()
        if optimizer is not None:  # else there is nothing to save
            self._files.take_over(self._engine)
        module.find_out()
        if self._stage == 3 and isinstance(module, Policy) and module.form is not None:
            for parameter in module.head_parameters:
                deepspeed.zero.register_external_parameter(module, parameter)

    @property
    def updates(self) -> int:
        """Optimizer updates made."""
        return int(self._engine.global_steps - self._engine.skipped_steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this engine can be loaded into: plain data."""
        return {
            "model": self._module.path,
            "parameters": self._shapes,
            "zero_stage": self._stage,
            "ranks": distributed.world_size(),
            "dtype": self._dtype,
        }

    @property
    def layout(self) -> Layout:
        return Layout(ranks=distributed.world_size(), zero_stage=self._stage, dtype=self._dtype)

    @property
    def progress(self) -> float:
        """Share of the planned optimizer updates that are made, 0 .. 1."""
        return min(1.0, self.updates / self._total_updates)

    def token_stats(self, rollout: Rollout, want: frozenset[Stat], reference: Reference | None = None) -> TokenStats:
        """Statistics of the rollout's tokens in `mask`, without gradient: [B, T] float32 on the CPU, on every rank.

        Each rank computes its share of the rows. `ref_logprobs` and `token_kl` need the reference. Raises RlkitError
        where it is missing, and out of memory.
        """
        if not want:
            return TokenStats()
        check_reference(want, reference)
        if want == REFERENCE and reference is not None:
            # The reference's own log-probs are enough: what the policy says is not asked for.
            return TokenStats(ref_logprobs=reference.logprobs(rollout))
        return self._measure(rollout, want, reference)

    def own_logprobs(self, rollout: Rollout, *, adapters: bool = True) -> Tensor:
        """This model's log-probs of the rollout's tokens, as `token_stats` gives them; without its LoRA adapters where
        `adapters` is False."""
        return self._measure(rollout, LOGPROBS, None, adapters=adapters).get("logprobs")

    @torch.no_grad()
    def _measure(
        self, rollout: Rollout, want: frozenset[Stat], reference: Reference | None, adapters: bool = True
    ) -> TokenStats:
        names = sorted(want)
        plan = self._plan(rollout)
        found = [torch.empty(len(names), 0, device=distributed.device())]
        self._engine.eval()
        compared = Compared.by(reference, want)
        with self._memory():
            for rows in plan[distributed.rank()]:
                alive()
                part = rollout.rows(rows) if rows else _weightless(rollout)
                stats = self._pass(part, want, compared, adapters=adapters)
                found.append(torch.stack([stats[name].float() for name in names]))
        shares = [[row for part in share for row in part] for share in plan]
        whole = put_together(torch.cat(found, dim=1), shares, rollout.mask)
        return TokenStats(**dict(zip(names, whole, strict=True)))

    @torch.no_grad()
    def hidden_states(self, place: Mapping[str, Tensor], *, adapters: bool = True) -> Tensor:
        """[N, d] states that predict the N tokens of a micro-batch (see `place_rows`), without gradient."""
        hidden: Tensor = self._engine(**place, hidden_only=True, adapters=adapters)["hidden"]
        return hidden

    @property
    def width(self) -> int:
        """Of the hidden states, that `hidden_states` gives."""
        assert isinstance(self._module, Policy)
        return self._module.width

    @torch.no_grad()
    def keep(self, rollout: Rollout, states: Callable[[Mapping[str, Tensor]], Tensor]) -> Kept:
        """What `states`, a form of `hidden_states`, gives of this rank's share of the rows."""
        found: dict[SampleKey, Tensor] = {}
        empty = torch.empty(0)
        self._engine.eval()
        with self._memory():
            for rows in self._plan(rollout)[distributed.rank()]:
                alive()
                part = rollout.rows(rows) if rows else _weightless(rollout)
                hidden = states(place_rows(part, distributed.device(), self._module.packs)).cpu()
                empty = hidden[:0]
                if rows:
                    found |= zip(part.keys, torch.split(hidden, part.mask.sum(1).tolist()), strict=True)
        return Kept(found, empty)

    def head(self, *, adapters: bool = True) -> Head:
        """The model's head, whole on every rank: to be kept for as long as a pass lasts."""
        assert isinstance(self._module, Policy)
        with self._gathered(self._module.head_parameters), torch.no_grad():
            head = self._module.head(adapters)
            return replace(head, weight=self._kept(head.weight), bias=self._kept(head.bias))

    def _kept(self, weight: Tensor | None) -> Tensor | None:
        """What ZeRO-3 has gathered goes at the end of the `with`."""
        if weight is None:
            return None
        return weight.detach().clone() if self._stage == 3 else weight.detach()

    @property
    def head_has_adapters(self) -> bool:
        return isinstance(self._module, Policy) and self._module.head_has_adapters

    def local_weights(self, trained: bool = False) -> list[Tensor]:
        """What this rank holds of the weights (of those that learn alone, with `trained`): whole tensors, or under
        ZeRO-3 its shards. They may be written to; then call `renew`."""
        parameters: list[Any] = [p for p in self._module.parameters() if p.requires_grad or not trained]
        return [parameter.ds_tensor.data if self._stage == 3 else parameter.data for parameter in parameters]

    @property
    def part(self) -> int:
        """Which part of the weights `local_weights` are: its rank under ZeRO-3, else 0, the whole."""
        return distributed.rank() if self._stage == 3 else 0

    def renew(self) -> None:
        """Have the next pass see what was written to `local_weights`: ZeRO-3 keeps some weights gathered."""
        if self._stage == 3:
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            parameters: list[Any] = list(self._module.parameters())
            for parameter in parameters:
                if parameter.ds_status == ZeroParamStatus.AVAILABLE:
                    parameter.partition()

    def update(
        self,
        batch: Batch,
        targets: Targets,
        loss: Loss,
        stats: frozenset[Stat] = LOGPROBS,
        reference: Reference | None = None,
        *,
        observe: frozenset[Stat] = frozenset(),
    ) -> dict[str, float]:
        """One optimizer step on an optimizer batch that every rank holds whole.

        Rows without a token in `mask` are left out. `loss` sees the rest in micro-batches, on this engine's device,
        with `stats` computed with gradient and `observe` without; where `batch.old.logprobs` is None it sees the
        forward's own, detached. `reference` is needed for statistics that compare with it (see `token_stats`).

        Returns the loss's metrics as means over the whole batch, and `ROLE/loss`, `ROLE/grad_norm` (before clipping)
        and `ROLE/lr`; for a policy also `policy/entropy`, `sampler/gap_mean` and `sampler/gap_max`. With no token to
        learn from, no step is made and the result is empty.

        Raises NotFiniteError for a loss or gradient that is not finite (no step is made), RlkitError out of memory.
        """
        if self._optimizer is None:
            raise RlkitError("a frozen engine was asked to learn")
        if not batch.mask.any():
            return {}
        self._come_back()
        lr = learning_rate(self._optimizer, self.updates, self._total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        check_reference(stats | observe, reference)
        tally = self._accumulate(batch, targets, loss, stats, observe, reference)
        norm = self._step(tally)
        return tally.means() | {f"{self.role}/grad_norm": norm, f"{self.role}/lr": lr}

    def make_room(self) -> None:
        """Leave the device to a sampler, but for the weights, where `engine.offload_states` asks for it. What has left
        comes back by itself."""
        if self._leaves and not self._away:
            offload.leave(self._engine, self._stage)
            self._away = True

    def _come_back(self) -> None:
        if self._away:
            with self._memory():
                offload.come_back(self._engine, self._stage, distributed.device())
            self._away = False

    def _accumulate(
        self,
        batch: Batch,
        targets: Targets,
        loss: Loss,
        stats: frozenset[Stat],
        observe: frozenset[Stat],
        reference: Reference | None,
    ) -> Tally:
        """Forward and backward over this rank's micro-batches."""
        self._engine.train()
        tally = Tally(self.role)
        compared = Compared.by(reference, stats | observe)
        device = distributed.device()
        plan = self._plan(batch.rollout)[distributed.rank()]
        with self._memory():
            for index, rows in enumerate(plan):
                alive()
                last = index == len(plan) - 1
                self._engine.set_gradient_accumulation_boundary(last)
                part = batch.rows(rows) if rows else replace(batch.rows([0]), rollout=_weightless(batch.rollout))
                new = self._forward(part.rollout, stats, compared, observe=self._observed | observe)
                part = part.to(device)
                if rows:
                    if part.old.logprobs is None and new.logprobs is not None:
                        part.old.logprobs = new.logprobs.detach()
                    value, metrics = loss(_only(new, stats | observe), part, targets.rows(rows).to(device))
                    tally.add(value, metrics, new, part)
                else:
                    value = torch.stack([new.get(stat).sum() for stat in sorted(stats)]).sum() * 0.0
                if last and distributed.any_rank(bool(tally.bad())):
                    # A gradient that is nowhere finite makes every ZeRO stage skip the step and clear its buffers.
                    value = value * math.nan
                self._engine.backward(value * distributed.world_size())
        return tally

    def _step(self, tally: Tally) -> float:
        """Clip and step; the gradient's global norm before clipping."""
        if self._stage == 0:
            # DeepSpeed tells no norm here, and would step with a gradient that is not finite.
            grads = [p.grad for p in self._module.parameters() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(grads))
            if math.isfinite(norm):
                self._engine.step()
                return norm
            self._engine.zero_grad()
        else:
            self._engine.step()
            if self._engine.was_step_applied():
                return float(self._engine.get_global_grad_norm())
        keys = sorted({key for keys in distributed.gather_objects(tally.bad()) for key in keys}, key=str)
        if keys:
            shown = "\n  ".join(str(key) for key in keys[:8]) + ("\n  ..." if len(keys) > 8 else "")
            raise NotFiniteError(
                f"{self.role}, update {self.updates}: the loss is not finite; no step was made. Samples:\n  {shown}",
                keys,
            )
        raise NotFiniteError(
            f"{self.role}, update {self.updates}: the loss is finite, but its gradient is not; no step was made"
        )

    def _forward(
        self,
        rollout: Rollout,
        want: frozenset[Stat],
        compared: Compared | None,
        *,
        observe: frozenset[Stat] = frozenset(),
    ) -> TokenStats:
        """One micro-batch: its statistics, [b, T], 0 outside the mask. `observe` comes without gradient."""
        found = self._pass(rollout, want, compared, observe=observe)
        return TokenStats(**{name: scatter_rows(values, rollout.mask) for name, values in found.items()})

    def _pass(
        self,
        rollout: Rollout,
        want: frozenset[Stat],
        compared: Compared | None,
        *,
        observe: frozenset[Stat] = frozenset(),
        adapters: bool = True,
    ) -> dict[Stat, Tensor]:
        """One micro-batch: its statistics, [N], at the tokens in its mask."""
        place = place_rows(rollout, distributed.device(), self._module.packs)
        reference = None
        if compared is not None:
            reference = (compared.hidden_states(rollout, place), compared.head)
        found: dict[Stat, Tensor] = self._engine(
            **place,
            want=want,
            observe=observe,
            temperature=self._temperature,
            reference=reference,
            adapters=adapters,
        )
        return found

    def _plan(self, rollout: Rollout) -> list[list[list[int]]]:
        """[rank][micro-batch] -> rows with a token in `mask`."""
        learnt = [int(row) for row in rollout.mask.any(1).nonzero().flatten()]
        prompts = [tuple(rollout.prompt_tokens[row].tolist()) for row in learnt]
        lengths = [len(prompt) + int(rollout.length[row]) for row, prompt in zip(learnt, prompts, strict=True)]
        plan = plan_microbatches(lengths, self._budget, distributed.world_size(), self._module.packs, prompts)
        return [[[learnt[at] for at in part] for part in share] for share in plan]

    @contextlib.contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # CUDA's OutOfMemoryError is one
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise RlkitError(
                f"{self.role}: out of memory with batch.tokens_per_microbatch: {self._budget}. Try "
                f"-s batch.tokens_per_microbatch={max(1, self._budget // 2)}, "
                f"model.gradient_checkpointing: true, or a higher engine.zero_stage. ({str(error).splitlines()[0]})"
            ) from error

    @contextlib.contextmanager
    def _gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters)) if self._stage == 3 else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def perturbed(self) -> Iterator[None]:
        """Every number of every weight an eighth to a sixteenth larger or smaller, as its own bits decide, for as long
        as the context lasts; then each is exactly what it was, though no copy is kept."""
        self._turn_bits()
        try:
            yield
        finally:
            self._turn_bits()

    def _turn_bits(self) -> None:
        """Turn the third bit of each number's mantissa; twice is nothing. Unlike a common factor, which a norm that
        follows would take away, it shows wherever the weight is read."""
        for tensor in self.local_weights():
            integers, mask = _THIRD_BIT[tensor.dtype]
            tensor.view(integers).bitwise_xor_(mask)
        self.renew()

    def weights(self, *, apart: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights under their Hugging Face names, whole, on every rank; LoRA merged, tied weights once.
        `apart`: an adapter's parts come beside their weight, which is without them (see `parts_of`).

        The tensors are copies. Go through all of it on every rank: under ZeRO-3 they are gathered when their turn
        comes, so many at once as make up 256 MB.
        """
        if not isinstance(self._module, Policy):
            raise RlkitError("only a policy's weights are given out")
        lasting = {tensor.untyped_storage().data_ptr() for tensor in self._tensors()}
        for groups in _together(self._module.weight_groups(apart), GATHERED_BYTES if self._stage == 3 else 0):
            for weight in self._copies(groups, lasting).items():
                alive()
                yield weight

    @torch.no_grad()
    def _copies(self, groups: Sequence[WeightGroup], lasting: Set[int]) -> dict[str, Tensor]:
        """What has come into being for this (gathered, or merged) is nobody else's, and not copied again."""
        with self._gathered([part for parts, _ in groups for part in parts]):
            found = {name: weight for _, make in groups for name, weight in make().items()}
            return {
                name: weight.clone() if weight.untyped_storage().data_ptr() in lasting else weight
                for name, weight in found.items()
            }

    def _tensors(self) -> Iterator[Tensor]:
        """All that stays in memory of the module."""
        yield from self._module.buffers()
        for parameter in self._module.parameters():
            yield parameter.data
        if self._stage == 3:
            yield from self.local_weights()

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder that `from_pretrained` and vLLM load, with the tokenizer.

        RlkitError, on every rank, where it cannot be written; then there is no folder.
        """
        state = {name: weight.cpu() for name, weight in self.weights() if distributed.main_rank()}

        def write() -> None:
            assert isinstance(self._module, Policy)
            self._module.write(folder, state)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(folder)

        self._written(folder, write, "model")

    @property
    def has_adapters(self) -> bool:
        """Whether there is something for `export_adapter` to write."""
        return isinstance(self._module, Policy) and bool(self._module.adapters())

    def export_adapter(self, folder: Path) -> None:
        """Write the policy's adapters as a folder that peft loads. RlkitError as `export`."""
        policy = self._module
        assert isinstance(policy, Policy)
        parameters = policy.adapters()
        with self._gathered(list(parameters.values())):
            weights = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        self._written(folder, lambda: policy.write_adapter(folder, weights), "adapter")

    def _written(self, folder: Path, write: Callable[[], None], what: str) -> None:
        """Have the main rank write a folder. RlkitError, on every rank, where it cannot; then there is none."""
        try:
            distributed.on_main(write)
        except RlkitError as error:
            if distributed.main_rank():
                shutil.rmtree(folder, ignore_errors=True)
            raise RlkitError(f"the {what} could not be written to {folder}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write weights, optimizer state and the number of updates, to be read by `load`. RlkitError, on every rank,
        where that fails on one."""
        self._come_back()
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        distributed.on_all(self._files.check)

    def load(self, folder: Path, saved: Layout) -> None:
        """Go on from what `save` wrote when the engine lay so on its ranks. RlkitError for a damaged folder."""
        self._come_back()
        if saved == self.layout:
            path, _ = self._engine.load_checkpoint(str(folder), tag=TAG)
            if path is None:
                raise RlkitError(f"{folder} holds no {self.role}: the checkpoint is damaged; resume from another")
            self._keep_settings()
            return
        learns = [name for name, parameter in self._module.named_parameters() if parameter.requires_grad]
        place(Saved(folder / TAG, saved, self._shapes, learns), self._engine, self._module, self._stage)
        self.renew()

    def _keep_settings(self) -> None:
        """DeepSpeed loads the optimizer's settings too, and a resume may have changed them."""
        wanted = self._optimizer
        if wanted is None:
            return
        for group in self._engine.optimizer.param_groups:
            group.update(betas=wanted.betas, eps=wanted.eps, weight_decay=wanted.weight_decay)
        if self._stage > 0:
            self._engine.optimizer.clip_grad = wanted.clip_norm


def _together(groups: Iterable[WeightGroup], size: int) -> Iterator[list[WeightGroup]]:
    """Groups of weights, as many at once as are not over so many bytes, or one."""
    found: list[WeightGroup] = []
    held = 0
    for group in groups:
        added = sum(getattr(part, "ds_numel", part.numel()) * part.element_size() for part in group[0])
        if found and held + added > size:
            yield found
            found, held = [], 0
        found.append(group)
        held += added
    if found:
        yield found


def _trained(module: nn.Module) -> int:
    """Numbers that learn; ZeRO-3 may hold them elsewhere."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)


def _weightless(rollout: Rollout) -> Rollout:
    """A row that counts nothing, for a rank that has a micro-batch fewer than another: it must take part in the
    collectives of every pass."""
    row = rollout.rows([int(rollout.length.argmin())])
    row.mask = torch.zeros_like(row.mask)
    return row


def _only(stats: TokenStats, wanted: frozenset[Stat]) -> TokenStats:
    return TokenStats(**{name: stats.get(name) for name in wanted})
