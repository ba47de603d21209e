"""Problems: from a file, a hub data set or the embedded task, to prompts as token ids; and the order they come in."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlkit import embedded
from rlkit.config import DataConfig
from rlkit.data.prompts import continues, encode, render, uses_chat
from rlkit.data.reading import Row, golds, questions, read_rows
from rlkit.errors import ConfigError
from rlkit.golds import gold_cell, gold_text

if TYPE_CHECKING:
    from rlkit.interfaces.declarations import EnvironmentDeclaration


@dataclass(frozen=True, slots=True)
class Problem:
    id: str
    """Hash of the prompt column's content, or of the whole row where that is empty: the same in every run, whatever the
    template."""
    text: str
    """The prompt as the model reads it; "" where the row has none, and an environment says something first."""
    tokens: list[int]
    answer: str
    """The gold column as text; "" where the row, or the data, has none."""
    columns: dict[str, Any]
    """The row's other columns."""
    question: Any = None
    """The prompt column's cell."""
    gold: Any = None
    """The gold column's cell; None where it holds no gold."""


@dataclass(frozen=True, slots=True)
class ProblemSet:
    problems: list[Problem]
    dropped_long: int
    """Rows left out because their prompt is over `max_prompt_tokens`."""
    duplicates: int
    """Problems whose prompt had come before; they are kept."""
    source: str
    put: list[str]
    """How the prompts are put to the model, where there is something to say of it."""


def load_problems(
    config: DataConfig, tokenizer: Any, held_out: bool = False, environment: EnvironmentDeclaration | None = None
) -> ProblemSet | None:
    """Read `data.path`, or the held-out problems; None where there are none to hold out. `environment`: that in which
    the model acts.

    Raises ConfigError for data that cannot be read, lacks a column, or does not suit the tokenizer.
    """
    path, split, setting = config.path, config.split, "data.path"
    if held_out:
        if config.eval_path is None and not config.path.startswith(embedded.PREFIX):
            return None
        path, split, setting = config.eval_path or config.path, config.eval_split, "data.eval_path"
    try:
        rows = read_rows(path, config.subset, split)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error
    if not rows:
        raise ConfigError(f"{path} holds no problems: it is empty")
    return as_problems(rows, config, tokenizer, path, environment)


def as_problems(
    rows: Sequence[Row],
    config: DataConfig,
    tokenizer: Any,
    path: str,
    environment: EnvironmentDeclaration | None = None,
) -> ProblemSet:
    """Problems out of rows, in their order, put to the model as `config` says; `path` is for messages. With an
    `environment`, which may begin by itself, a prompt may be empty.

    Raises ConfigError for a row that lacks a column, and for data that does not suit the tokenizer.
    """
    chat = uses_chat(config, tokenizer)
    prompts = questions(rows, config.prompt, "data.prompt", path)
    answers = golds(rows, config.answer, "data.answer", path)
    acts, tools = environment is not None, environment.tools if environment is not None else ()
    texts = [
        "" if acts and not prompt else render(prompt, config, tokenizer, chat, f"{path}, row {i}", tools)
        for i, prompt in enumerate(prompts, 1)
    ]
    tokens, put = encode(texts, tokenizer, chat)
    if continued := sum(map(continues, prompts)):
        put.append(f"the model goes on with the assistant's message in {continued} of {len(prompts)}")
    problems = [
        Problem(
            # Rows without a question are told apart by what else they tell the environment.
            id=_identity(prompts[i] or dict(row)),
            text=texts[i],
            tokens=tokens[i],
            answer=gold_text(answers[i], f"{path}, row {i + 1}, column {config.answer!r}"),
            columns={name: value for name, value in row.items() if name not in (config.prompt, config.answer)},
            question=prompts[i],
            gold=gold_cell(answers[i]),
        )
        for i, row in enumerate(rows)
        if len(tokens[i]) <= config.max_prompt_tokens
    ]
    if not problems:
        raise ConfigError(
            f"{path}: all {len(rows)} prompts are over data.max_prompt_tokens ({config.max_prompt_tokens} tokens; the "
            f"shortest has {min(map(len, tokens))}): raise it"
        )
    duplicates = len(problems) - len({problem.id for problem in problems})
    return ProblemSet(problems, len(rows) - len(problems), duplicates, path, put)


class Cursor:
    """Where a run stands in its problems: each pass over them is a fresh permutation.

    The order is a function of the seed and the number of the pass alone, so `position`, the number of problems
    taken so far, is all there is to save.
    """

    def __init__(self, n: int, seed: int, position: int = 0) -> None:
        self.n = n
        self.seed = seed
        self.position = position

    def take(self, k: int) -> list[int]:
        """The next k indices. Across the end of a pass a problem may come twice among them."""
        taken = []
        for at in range(self.position, self.position + k):
            taken.append(int(_order(self.n, self.seed, at // self.n)[at % self.n]))
        self.position += k
        return taken


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, passes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    # numpy promises the stream of a bit generator for ever, but not that of Generator.permutation.
    return np.random.PCG64([seed, passes]).random_raw(n).argsort(kind="stable")


def _identity(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
