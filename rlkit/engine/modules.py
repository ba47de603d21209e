"""The modules that DeepSpeed wraps: a policy (a causal language model) and a critic (its body with a scalar head).

Both take padded rows and answer for chosen positions only. What is said of a token is computed inside the wrapped
forward, where ZeRO-3 has the head's weight gathered; called after it, the weight would be empty.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.embedded import resolve
from rlkit.engine.adapters import (
    adapted,
    adapter_parameters,
    adapters_off,
    merged_weight,
    parts_of,
    weight_of,
    write_adapter,
)
from rlkit.engine.attention import use_packing
from rlkit.engine.head_form import head_form
from rlkit.engine.weight_names import alike, group, on_disk
from rlkit.interfaces.names import Stat
from rlkit.ops.head import Head, head_stats


def is_cut(model: nn.Module) -> bool:
    """ZeRO-3 has cut its weights into shards."""
    return any(hasattr(parameter, "ds_shape") for parameter in model.parameters())


def whole_shape(parameter: Tensor) -> torch.Size:
    """Whether it is cut or not."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


class Policy(nn.Module):
    """A causal language model that says log-probs and their like of given tokens."""

    role = "policy"

    def __init__(self, lm: Any, path: str, like: Policy | None = None) -> None:
        """like: a policy of the same model, which has found out what is found out of one here."""
        super().__init__()
        self.lm = lm
        self.path = path
        self.form: tuple[float, float | None] | None = None
        """Of the head; None: it is not known, and what stands for hidden states below are the model's own logits."""
        self.packs = False
        """Rows go behind each other, without padding."""
        self._known = False
        if like is not None:
            self.form, self.packs = like.form, use_packing(lm.base_model, like.packs)
            self._known = True
        elif not is_cut(lm):
            self.find_out()

    def find_out(self) -> None:
        """Try what the model does. One that ZeRO-3 has cut while it was loaded can be tried only within its engine."""
        if not self._known:
            self.form, self.packs = head_form(self.lm, self.path), use_packing(self.lm.base_model)
            self._known = True

    @property
    def width(self) -> int:
        """Of what stands for hidden states."""
        vocabulary, size = whole_shape(self.lm.get_output_embeddings().weight)
        return vocabulary if self.form is None else size

    def head(self, adapters: bool = True) -> Head:
        """The output head, with its adapters where it has any; its weights are empty outside forward under ZeRO-3."""
        if self.form is None:
            return Head(None)
        layer = self.lm.get_output_embeddings()
        weight = merged_weight(layer) if adapters and adapted(layer) else layer.weight
        return Head(weight, getattr(layer, "bias", None), *self.form)

    @property
    def head_has_adapters(self) -> bool:
        return adapted(self.lm.get_output_embeddings())

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.lm.get_output_embeddings().parameters())

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        tokens: Tensor,
        *,
        want: Set[Stat] = frozenset(),
        observe: Set[Stat] = frozenset(),
        temperature: float = 1.0,
        reference: tuple[Tensor, Head | None] | None = None,
        adapters: bool = True,
        hidden_only: bool = False,
        **bounds: Tensor,
    ) -> dict[str, Tensor]:
        """Statistics of N tokens: token n is predicted by the hidden state at `input_ids[rows[n], columns[n]]`.

        Args:
            input_ids: [b, L] int64, padded on the right with anything; or packed, [1, all tokens].
            rows, columns, tokens: [N] int64; N may be 0.
            want: statistics; see `head_stats`.
            observe: more statistics, without gradient.
            temperature: of the distribution that was drawn from.
            reference: the reference's hidden states [N, d'] and head; None for the head: it is this one.
            adapters: False switches LoRA off.
            hidden_only: no statistics, but the hidden states themselves, [N, d], as "hidden" (see `form`).
            bounds: of packed sequences, the rest of what `rlkit.ops.packing.pack` gives.

        Returns:
            Each statistic, [N].
        """
        hidden = self._hidden({"input_ids": input_ids, **bounds}, adapters)[rows, columns]
        if hidden_only:
            return {"hidden": hidden}
        head = self.head(adapters)
        compared = None if reference is None else (reference[0], reference[1] or head)
        return head_stats(hidden, head, tokens, want=want, observe=observe, temperature=temperature, reference=compared)

    def _hidden(self, sequences: dict[str, Tensor], adapters: bool) -> Tensor:
        with contextlib.nullcontext() if adapters else adapters_off(self):
            if self.form is None:
                logits: Tensor = self.lm(**sequences, use_cache=False).logits
                return logits
            return _hidden_states(self.lm.base_model, sequences)

    def weight_groups(
        self, apart: bool = False
    ) -> Iterator[tuple[list[nn.Parameter], Callable[[], dict[str, Tensor]]]]:
        """The weights of the model without adapters, or with them merged, tied ones once: parameters, and a function
        that makes of what they hold the weights under the names on disk, once they are gathered. These may be, or be
        parts of, the parameters themselves. `apart`: adapters beside their weights (see `parts_of`), where the names on
        disk are those in memory."""
        groups: dict[str, list[str]] = {}
        for name in self._own_names():
            if apart and alike(self.lm) and (found := parts_of(self.lm, name)) is not None:
                yield found
                continue
            groups.setdefault(name if alike(self.lm) else group(name), []).append(name)
        for names in groups.values():
            merged = {name.replace(".base_layer.", "."): weight_of(self.lm, name) for name in names}
            parts = [part for parts, _ in merged.values() for part in parts]
            yield parts, functools.partial(self._made, {name: make for name, (_, make) in merged.items()})

    def _made(self, weights: dict[str, Callable[[], Tensor]]) -> dict[str, Tensor]:
        return on_disk(self.lm, {name: make() for name, make in weights.items()})

    def _own_names(self) -> list[str]:
        """Of the parameters, and of the buffers that are saved."""
        saved = self.lm.state_dict().keys()
        names = [name for name, _ in self.lm.named_parameters()] + [n for n, _ in self.lm.named_buffers() if n in saved]
        return [name for name in names if ".lora_" not in name]

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write `weights`, under their names on disk, as a Hugging Face folder."""
        self.lm.save_pretrained(folder, state_dict=weights, save_original_format=False)
        for file in folder.glob("*.safetensors"):
            file.chmod(0o644)  # written for the user alone

    def adapters(self) -> dict[str, nn.Parameter]:
        """The parameters of its adapters, under peft's names on disk; empty where it has none that peft can load."""
        return adapter_parameters(self.lm)

    def write_adapter(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write `weights`, named as `adapters` does, as peft's folder."""
        base = resolve(self.path)
        write_adapter(folder, self.lm, weights, str(Path(base).resolve()) if Path(base).exists() else base)


class Critic(nn.Module):
    """The value of the state before a token, from a language model's body and a scalar head."""

    role = "critic"

    def __init__(self, body: Any, path: str) -> None:
        super().__init__()
        self.body = body
        self.head = ValueHead(_width(body), body.dtype)
        self.packs = False
        self.path = path
        self._known = False
        if not is_cut(body):
            self.find_out()

    def find_out(self) -> None:
        """As a policy's."""
        if not self._known:
            self.packs = use_packing(self.body)
            self._known = True

    def forward(
        self,
        input_ids: Tensor,
        rows: Tensor,
        columns: Tensor,
        tokens: Tensor,
        *,
        want: Set[Stat] = frozenset({"values"}),
        observe: Set[Stat] = frozenset(),
        temperature: float = 1.0,
        reference: None = None,
        adapters: bool = True,
        **bounds: Tensor,
    ) -> dict[str, Tensor]:
        """{"values": [N]}; arguments as `Policy.forward`, of which it needs those of the sequences."""
        return {"values": self.head(_hidden_states(self.body, {"input_ids": input_ids, **bounds})[rows, columns])}


class ValueHead(nn.Module):
    """A linear head, [N, d] -> [N], computed in float32. It starts at 0: the critic knows nothing yet."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


def _hidden_states(body: Any, sequences: Mapping[str, Tensor | None]) -> Tensor:
    # No attention mask: the padding is on the right, where a causal model does not look, and without a mask
    # attention takes its fast causal path.
    hidden: Tensor = body(**sequences, use_cache=False).last_hidden_state
    return hidden


@torch.no_grad()
def _width(body: Any) -> int:
    """Of the body's hidden states, which some project from `hidden_size` to another width."""
    if is_cut(body):
        settings = body.config.get_text_config()
        return int(getattr(settings, "word_embed_proj_dim", settings.hidden_size))
    states: Tensor = body(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).last_hidden_state
    return states.shape[-1]
