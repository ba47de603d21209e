"""Rewards on the form of a response: its tags, its length, its JSON. They need no gold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
from referencing import Registry

from rlkit import reward
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample

from .common import bad_gold, declares, no_answer


@reward("format")
@declares(0.0, 1.0, in_process=True)
def format(samples: Sequence[Sample], *, thinking: str = "think", answer: str = "answer") -> list[RewardResult]:
    """1 where the response is <think>...</think><answer>...</answer> and nothing else; else 0 (arXiv 2501.12948).

    Each tag stands once, the answer is not empty, and white space around the tags is free. A prompt that ends with
    <think> has opened it already. An empty response: `no_answer`.

    thinking: name of the tag around the thinking.
    answer: name of the tag around the answer; "": what follows the thinking is the answer, without tags.
    """
    return [_format(sample, thinking, answer) for sample in samples]


def _format(sample: Sample, thinking: str, answer: str) -> RewardResult:
    text = sample.response.strip()
    if not text:
        return no_answer()
    if sample.prompt.rstrip().endswith(f"<{thinking}>"):
        text = f"<{thinking}>{text}"
    tags = [tag for name in (thinking, answer) if name for tag in (f"<{name}>", f"</{name}>")]
    places = [text.find(tag) for tag in tags]
    once = all(text.count(tag) == 1 for tag in tags)
    if not once or places != sorted(places) or places[0] != 0:
        return RewardResult(value=0.0)
    after_thinking = text[places[1] + len(tags[1]) :].strip()
    if not answer:
        return RewardResult(value=float(bool(after_thinking)))
    inside = after_thinking.removeprefix(tags[2]).removesuffix(tags[3])
    tight = len(after_thinking) - len(inside) == len(tags[2]) + len(tags[3])
    return RewardResult(value=float(tight and bool(inside.strip())))


@reward("length")
@declares(-1.0, 0.0, in_process=True)
class Length:
    """DAPO's soft overlong penalty (arXiv 2503.14476): 0 up to max_tokens - buffer, falling to -1 at max_tokens.

    Give it a weight beside a reward on the answer.

    max_tokens: length, in tokens of the response, at which the penalty is -1: as a rule `sampling.max_tokens`.
    buffer: tokens over which it falls to that.
    """

    def __init__(self, *, max_tokens: int, buffer: int):
        if not 0 < buffer <= max_tokens:
            raise ConfigError(f"reward length: buffer must lie in 1 .. max_tokens, but is {buffer} of {max_tokens}")
        self.free, self.buffer = max_tokens - buffer, buffer

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [min(0.0, max(-1.0, (self.free - len(sample.tokens)) / self.buffer)) for sample in samples]


@reward("json_schema")
@declares(0.0, 1.0)
class JsonSchema:
    """1 where the response's JSON fits a schema; else 0.

    The JSON is the last ```json block, or the whole response. No JSON that parses: `no_answer`; a row without a sound
    schema: `bad_gold`. References to other documents are not followed.

    definition: the schema of all rows; null: each row has its own, in `column`.
    column: the data's column of schemas, as objects or as text.
    """

    def __init__(self, *, definition: dict[str, Any] | None = None, column: str = ""):
        if (definition is None) == (not column):
            raise ConfigError(
                "reward json_schema: give either definition (a schema) or column (the column that holds it)"
            )
        self.column = column
        try:
            self.validator = _validator(definition) if definition is not None else None
        except jsonschema.SchemaError as error:
            raise ConfigError(f"reward json_schema: definition is not a JSON schema: {error.message}") from error

    def __call__(self, samples: Sequence[Sample]) -> list[RewardResult]:
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> RewardResult:
        validator = self.validator
        if validator is None:
            schema = sample.columns.get(self.column)
            try:
                validator = _validator(json.loads(schema) if isinstance(schema, str) else schema)
            except (jsonschema.SchemaError, ValueError) as error:
                return bad_gold(str(error)[:300])
        try:
            value = json.loads(_json_text(sample.response))
        except (ValueError, RecursionError):
            return no_answer()
        for fault in validator.iter_errors(value):
            return RewardResult(value=0.0, info={"error": f"{fault.json_path}: {fault.message}"[:300]})
        return RewardResult(value=1.0)


def _validator(schema: Any) -> Any:
    if not isinstance(schema, dict | bool):
        raise ValueError(f"a schema must be an object, not {schema!r}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=Registry())


def _json_text(response: str) -> str:
    _, fence, block = response.rpartition("```json")
    return block.partition("```")[0] if fence else response
