"""A trained reward model: a sequence classifier with one output, here or behind a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlkit import reward
from rlkit.errors import ConfigError
from rlkit.http import Endpoint, Failure, authorisation, checked_url
from rlkit.interfaces.progress import alive
from rlkit.interfaces.rewards import RewardResult, Sample

if TYPE_CHECKING:
    import torch


class RewardModelConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """A folder or hub id for AutoModelForSequenceClassification."""
    url: str | None = None
    """In place of `path`: a server that answers POST {"texts": [...]} with {"scores": [...]}."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key; None: it wants none."""
    chat: bool = False
    """Show prompt and response as two messages, in the reward model's own chat template; false: one after the other,
    as the policy read and wrote them. For a server, false."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None: this rank's GPU where there is one."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and products."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Texts of one forward pass, or of one request."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """A longer text gets no value (`error`), and is never cut; None: as many as the model has positions."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """For one request to `url`, its three retries included."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path, a model to load, or url, a server to ask")
        if self.url is not None:
            checked_url(self.url)
            if set_here := {"chat", "device", "dtype", "max_tokens"} & self._changed():
                raise ValueError(
                    f"{', '.join(sorted(set_here))}: settings of a model that is loaded here, not of a url"
                )
        elif self.api_key_env is not None:
            raise ValueError("api_key_env: the key of a server, which url names")
        return self

    def _changed(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in self.model_fields_set if getattr(self, name) != fields[name].default}


@reward("reward_model")
def reward_model(config: RewardModelConfig) -> LocalModel | RemoteModel:
    """The score of a reward model (a sequence classifier with one output), loaded here or over HTTP."""
    return LocalModel(config) if config.url is None else RemoteModel(config)


class LocalModel:
    """Scores by a model in this process. Raises ConfigError where it cannot be loaded, or is no reward model."""

    in_process = True

    def __init__(self, config: RewardModelConfig) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = f"reward reward_model: {config.path!r}"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(config.path, trust_remote_code=False)
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                config.path, dtype=getattr(torch, config.dtype), trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            own_code = "trust_remote_code" in str(error)
            instead = ". No code of a reward model's folder is run here: serve it elsewhere, and give its url"
            raise ConfigError(
                f"{where} cannot be loaded as a sequence classifier: {error}{instead if own_code else ''}"
            ) from error
        if missing := sorted(loaded["missing_keys"]):
            raise ConfigError(
                f"{where} is not a trained reward model: it lacks the weights {', '.join(missing[:3])}, which would be "
                "random numbers"
            )
        if model.config.num_labels != 1:
            raise ConfigError(f"{where} has {model.config.num_labels} outputs; a reward model has one")
        if config.chat and not self._tokenizer.chat_template:
            raise ConfigError(f"{where} has no chat template: set chat: false")
        self._config = config
        self._device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = model.to(self._device).eval()
        text_config = model.config.get_text_config()
        self._max_tokens = config.max_tokens or getattr(text_config, "max_position_embeddings", None)

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        tokens = [self._tokens(sample) for sample in samples]
        results: list[RewardResult | None] = [None] * len(samples)
        for i, ids in enumerate(tokens):
            if not ids or (self._max_tokens is not None and len(ids) > self._max_tokens):
                error = f"{len(ids)} tokens; the reward model takes 1 to {self._max_tokens}"
                results[i] = RewardResult(value=None, status="error", info={"error": error})
        # Neighbours in length share a batch, so that little is padded.
        todo = sorted((i for i, result in enumerate(results) if result is None), key=lambda i: len(tokens[i]))
        for at in range(0, len(todo), self._config.batch_size):
            batch = todo[at : at + self._config.batch_size]
            alive()
            for i, score in zip(batch, self._scores([tokens[i] for i in batch]), strict=True):
                results[i] = _result(score)
        return [result for result in results if result is not None]

    def _tokens(self, sample: Sample) -> list[int]:
        text = sample.prompt + sample.response
        if self._config.chat:
            messages = [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.response}]
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=not self._config.chat)["input_ids"]
        return ids

    def _scores(self, rows: list[list[int]]) -> list[float]:
        import torch

        pad = self._padding(rows)
        self._model.config.get_text_config().pad_token_id = pad
        self._model.config.pad_token_id = pad
        tensors = [torch.tensor(ids) for ids in rows]
        ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad)
        exists = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=ids.to(self._device), attention_mask=exists.long().to(self._device)
            ).logits
        scores: list[float] = logits[:, 0].float().tolist()
        return scores

    def _padding(self, rows: list[list[int]]) -> int:
        """A token to pad with. A decoder's classifier reads the last token that is not the padding, so one that stands
        in a text would move the place it reads: where the tokenizer has none but the end token, take one that does
        not."""
        pad = self._tokenizer.pad_token_id
        if pad is not None and pad != self._tokenizer.eos_token_id:
            return int(pad)
        used = set().union(*rows)
        return next(token for token in range(len(used) + 1) if token not in used)


class RemoteModel:
    """Scores by a server; a request that fails leaves its texts without a value."""

    in_process = True

    def __init__(self, config: RewardModelConfig) -> None:
        assert config.url is not None
        self._batch_size = config.batch_size
        self._endpoint = Endpoint(
            url=config.url,
            headers=authorisation(config.api_key_env, "reward reward_model"),
            concurrency=4,
            timeout_s=config.timeout_s,
            retries=3,
            backoff_s=0.5,
        )

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        texts = [sample.prompt + sample.response for sample in samples]
        parts = [texts[at : at + self._batch_size] for at in range(0, len(texts), self._batch_size)]
        replies = self._endpoint.post_all([{"texts": part} for part in parts], _scores_of)
        results = []
        for part, reply in zip(parts, replies, strict=True):
            if not isinstance(reply, Failure) and len(reply) != len(part):
                reply = Failure("error", f"{self._endpoint.url}: {len(reply)} scores for {len(part)} texts")
            if isinstance(reply, Failure):
                results += [RewardResult(value=None, status=reply.status, info={"error": reply.reason}) for _ in part]
            else:
                results += [_result(score) for score in reply]
        return results


def _scores_of(reply: Any) -> list[float]:
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list) or not all(isinstance(s, int | float) for s in scores):
        raise ValueError('it must be {"scores": [numbers]}')
    return [float(score) for score in scores]


def _result(score: float) -> RewardResult:
    if not math.isfinite(score):
        return RewardResult(value=None, status="error", info={"error": f"the score is {score}"})
    return RewardResult(value=score)
