"""Problems: from a file, a hub data set or the embedded task, to prompts as token ids; and the order they come in."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from rlkit import embedded, hub
from rlkit.config import DataConfig
from rlkit.embedded.task import Task
from rlkit.errors import ConfigError, nearest
from rlkit.golds import gold_cell, gold_text
from rlkit.wording import some

if TYPE_CHECKING:
    from rlkit.interfaces.declarations import EnvironmentDeclaration

Row = Mapping[str, Any]
FILES = (".json", ".jsonl", ".parquet")

PROMPTS = ("prompt", "problem", "question")
ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution", "label")
"""Where questions and golds stand in the data sets people have, the first that is there counts."""

NO_GOLDS = "null"
"""In place of the gold's column: there is none."""


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


Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions that the model may call, for its chat template."""


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


def prompt_tokens(
    prompt: str | list[dict[str, str]], config: DataConfig, tokenizer: Any, tools: Tools = ()
) -> list[int]:
    """Token ids of one question, or of a conversation's messages, put to the model as the problems of `config` are."""
    chat = uses_chat(config, tokenizer)
    return encode([render(prompt, config, tokenizer, chat, "the prompt", tools)], tokenizer, chat)[0][0]


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


# Reading


def read_rows(path: str, subset: str | None = None, split: str = "train") -> list[Row]:
    """The rows of a .json, .jsonl or .parquet file, an embedded data set, or a hub data set's split.

    Raises ConfigError, naming the file and the line, for what cannot be read.
    """
    if path.startswith(embedded.PREFIX):
        return _embedded(path, split)
    if path.startswith("hf://"):
        return _parquet(path)
    file = Path(path)
    if file.suffix in FILES:
        if not file.is_file():
            raise ConfigError(f"data file {path!r} does not exist{_beside(file)}")
        if file.stat().st_size == 0:
            raise ConfigError(f"data file {path!r} is empty")
        return _parquet(path) if file.suffix == ".parquet" else _json(file)
    if file.is_file():
        raise ConfigError(
            f"data file {path!r}: cannot read {file.suffix or 'a file without a suffix'}; give {_ENDINGS}"
        )
    return _hub(path, subset, split)


_ENDINGS = "a .json, .jsonl or .parquet file"


def _embedded(path: str, split: str) -> list[Row]:
    known = [embedded.PREFIX + name for name in embedded.TASKS]
    if path not in known:
        raise ConfigError(f"no embedded data set {path!r}{nearest(path, known)}")
    if split not in ("train", "test"):
        raise ConfigError(f"{path} has no split {split!r}{nearest(split, ['train', 'test'])}")
    task: Task = importlib.import_module(f"rlkit.embedded.{path.removeprefix(embedded.PREFIX)}")
    return [{"prompt": p.prompt, "answer": p.answer, **p.columns} for p in task.problems(held_out=split == "test")]


def _beside(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f": there is no folder {str(folder)!r} (looked in {Path.cwd()})"
    return nearest(file.name, [f.name for f in folder.iterdir() if f.suffix in FILES]) + f" (in {folder.resolve()})"


def _json(file: Path) -> list[Row]:
    """A JSON array of objects, or one object a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not JSON: it is not UTF-8 text ({error})") from error
    rows: list[tuple[int, Any]]
    if text.lstrip().startswith("["):
        unit, rows = "item", list(enumerate(_parse(text, file, 1), 1))
    else:
        # Not splitlines: JSON strings may hold other line separators.
        unit, rows = "line", [(i, _parse(line, file, i)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    for i, row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, {unit} {i}: expected an object with named columns, got {type(row).__name__}")
    return [row for _, row in rows]


def _parse(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        said = text.split("\n")[error.lineno - 1].strip()
        raise ConfigError(
            f"{file}, line {at}: not JSON: {error.msg} at column {error.colno}: {said[:60]!r}. "
            "Give an array of objects, or one object a line"
        ) from error


def _parquet(path: str) -> list[Row]:
    try:
        if path.startswith("hf://"):
            hub.settle()
            from datasets import load_dataset

            return list(load_dataset("parquet", data_files=path, split="train", streaming=True))
        import pyarrow.parquet as pq

        # Not by datasets, which knows no maps, and a run's rollouts have one.
        rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
        return rows
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as parquet: {error}") from error


def _hub(path: str, subset: str | None, split: str) -> list[Row]:
    hub.settle()
    from datasets import load_dataset

    try:
        return list(load_dataset(path, subset, split=split))
    except Exception as error:
        part = f"subset {subset!r}, split {split!r}" if subset else f"split {split!r}"
        raise ConfigError(
            f"cannot load the data set {path!r} ({part}): {type(error).__name__}: {error}\n"
            f"For data on this machine give {_ENDINGS}"
        ) from error


# Columns


def column(row: Row, name: str, key: str, where: str) -> Any:
    """A cell; dots in `name` go into nested columns. ConfigError, which tells to set `key`, where there is none."""
    found = cell(row, name)
    if found is MISSING:
        known = list(_names(row))
        raise ConfigError(f"{where}: no column {name!r}{nearest(name, known)} (columns: {', '.join(known)}). Set {key}")
    return found


MISSING = object()


def cell(row: Row, name: str) -> Any:
    """A cell; dots in `name` go into nested columns. MISSING where there is none."""
    if name in row:
        return row[name]
    here: Any = row
    for part in name.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return MISSING
        here = here[part]
    return here


def present(rows: Sequence[Row], names: Sequence[str], key: str, path: str) -> str:
    """The first of these columns that some row has something in. ConfigError, which tells to set `key`, for none."""
    for name in names:
        if any(cell(row, name) not in (None, MISSING) for row in rows):
            return name
    raise ConfigError(
        f"{path}: none of the columns {', '.join(names)} is there (columns: {', '.join(rows[0])}). Set {key}"
    )


def questions(rows: Sequence[Row], name: str, key: str, path: str) -> list[Any]:
    """The prompt column. ConfigError, which tells to set `key`, where a row has no such column."""
    found = [cell(row, name) for row in rows]
    lacking = [i for i, each in enumerate(found, 1) if each is MISSING]
    if len(lacking) == len(rows):
        column(rows[0], name, key, f"{path}, row 1")
    if lacking:
        columns = ", ".join(rows[lacking[0] - 1])
        raise ConfigError(
            f"{path}, row {lacking[0]}: no column {name!r} (columns: {columns}); of {len(rows)} rows {len(lacking)} "
            f"lack it ({some(lacking, MOST_NAMED)}). Give them one, leave them out, or set {key} to another column"
        )
    return found


MOST_NAMED = 5
"""Rows of one fault."""


def golds(rows: Sequence[Row], name: str | None, key: str, path: str) -> list[Any]:
    """The gold column; None where a row has none, or all for no name.

    ConfigError, which tells to set `key`, where no row has that column.
    """
    if name is None:
        return [None] * len(rows)
    found = [cell(row, name) for row in rows]
    if all(gold is MISSING for gold in found):
        known = list(dict.fromkeys(known for row in rows for known in _names(row)))
        raise ConfigError(
            f"{path}, in all rows: no column {name!r}{nearest(name, known)} (columns: {', '.join(known)}). Set {key} "
            f"to the column of golds; or {key}=null for data without golds, if the reward reads none"
        )
    return [None if gold is MISSING else gold for gold in found]


def _names(row: Row, prefix: str = "") -> Iterable[str]:
    for name, value in row.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")


def _identity(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# Prompts


def uses_chat(config: DataConfig, tokenizer: Any) -> bool:
    """Whether prompts go through the tokenizer's chat template. ConfigError for settings that do not go together."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if config.template is not None and "{prompt}" not in config.template:
        raise ConfigError(f"data.template must hold {{prompt}}, where the question goes; got {config.template!r}")
    if config.chat and not has:
        raise ConfigError(
            "data.chat is true, but the model's tokenizer has no chat template: set data.template instead"
        )
    chat = has and config.template is None if config.chat is None else config.chat
    for key, given in (("system", config.system is not None), ("chat_template_kwargs", config.chat_template_kwargs)):
        if given and not chat:
            raise ConfigError(
                f"data.{key} needs a chat template, and none is used here: write what it is for into data.template, or "
                "set data.chat: true for a tokenizer that has one"
            )
    if config.chat_template_kwargs:
        _check_arguments(config.chat_template_kwargs, tokenizer)
    return chat


def _check_arguments(arguments: Mapping[str, Any], tokenizer: Any) -> None:
    """ConfigError for arguments that the chat template does not read, and for those that are not the config's."""
    if ours := arguments.keys() & {
        "messages",
        "conversation",
        "tokenize",
        "add_generation_prompt",
        "return_dict",
        "continue_final_message",
    }:
        raise ConfigError(f"data.chat_template_kwargs: {', '.join(sorted(ours))} follows from the data and is not set")
    words = set(re.findall(r"\w+", tokenizer.get_chat_template(tools=arguments.get("tools"))))
    for name in arguments:
        if name not in words and name != "chat_template":
            close = difflib.get_close_matches(name, words, n=1)
            raise ConfigError(
                f"data.chat_template_kwargs: the model's chat template reads no {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else ": leave it out")
            )


def continues(prompt: Any) -> bool:
    """Whether a prompt ends in an assistant's message, which the model then goes on with."""
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and isinstance(prompt[-1], Mapping)
        and prompt[-1].get("role") == "assistant"
        and bool(prompt[-1].get("content"))
    )


def render(prompt: Any, config: DataConfig, tokenizer: Any, chat: bool, where: str, tools: Tools = ()) -> str:
    """The text the model reads, from a question or chat messages; `tools`: JSON schemas for the chat template."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("content"), str) and message.get("role")):
            raise ConfigError(
                f"{where}: the prompt must be text, or a list of messages with a role and a text as content; got "
                f"{str(message)[:80]}. Set data.prompt to another column"
            )
    if not any(message["content"] for message in messages):
        raise ConfigError(f"{where}: the prompt is empty")
    one = messages[0]["content"] if [m["role"] for m in messages] == ["user"] else None
    if one is None and (config.template is not None or not chat):
        raise ConfigError(
            f"{where}: {len(messages)} chat messages cannot be put to a model without its chat template, or into "
            "data.template; only a single user message can"
        )
    if one is not None and config.template is not None:
        # Not str.format: questions and templates are full of LaTeX's braces.
        one = config.template.replace("{prompt}", _without_begin(one, tokenizer))
        messages = [{"role": "user", "content": one}]
    if not chat:
        return str(one)
    if config.system is not None:
        if messages[0]["role"] == "system":
            raise ConfigError(f"{where}: the data has a system message of its own: leave out data.system")
        messages = [{"role": "system", "content": config.system}, *messages]
    messages = [{**message, "content": _without_begin(message["content"], tokenizer)} for message in messages]
    text = templated(messages, config, tokenizer, where, tools)
    if not text:
        raise ConfigError(
            f"{where}: the chat template makes nothing of the prompt: set data.template, or data.chat: false"
        )
    return text


def templated(
    messages: list[dict[str, Any]],
    config: DataConfig,
    tokenizer: Any,
    where: str,
    tools: Tools = (),
    opens: bool = True,
) -> str:
    """What the chat template makes of messages; `opens`: up to where the model goes on.

    ConfigError, with the template's own words, where it refuses them.
    """
    goes_on = opens and continues(messages)
    if opens and not goes_on and messages[-1]["role"] == "assistant":
        messages = messages[:-1]  # an empty one: the generation prompt opens it

    def render(messages: list[dict[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=opens and not goes_on,
                continue_final_message=goes_on,
                **({"tools": list(tools)} if tools else {}),
                **config.chat_template_kwargs,
            )
        )

    try:
        return render(messages)
    except Exception as error:  # of the template's code: it may be any
        hint = ""
        if others := [message for message in messages if message["role"] != "system"]:
            with contextlib.suppress(Exception):
                if len(others) < len(messages) and render(others):
                    hint = (
                        ". It takes no system message here: leave it out"
                        + (" (data.system)" if config.system is not None else "")
                        + ", or write it into the user's message, as with data.template and data.chat: true"
                    )
        if isinstance(error, jinja2.UndefinedError) and str(error).endswith("is undefined"):
            hint += ". Variables of its own are given by data.chat_template_kwargs"
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ConfigError(
            f"{where}: the model's chat template refuses the prompt (roles: {roles}): {type(error).__name__}: "
            f"{error}{hint}"
        ) from error


def _without_begin(text: str, tokenizer: Any) -> str:
    """Without the begin token as text: where a template goes around the text, it would not stand at the beginning."""
    return text.removeprefix(tokenizer.bos_token or "")


def encode(texts: Sequence[str], tokenizer: Any, chat: bool) -> tuple[list[list[int]], list[str]]:
    """Token ids of prompts, and what there is to say of them.

    A prompt is no whole text: what a tokenizer adds behind one, an end token mostly, would tell the model that all is
    said. A begin token stands once, whether the text spells it, the tokenizer adds it, or both.
    """
    tokens: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    seen = next((i for i, ids in enumerate(tokens) if ids), None)
    before, behind = ([], []) if chat or seen is None else _added(texts[seen], tokens[seen], tokenizer)
    begin = tokenizer.bos_token_id
    once = twice = 0
    for i, ids in enumerate(tokens):
        whole = [*before, *ids]
        extra = 0
        while begin is not None and whole[extra : extra + 2] == [begin, begin]:
            extra += 1
        twice += bool(extra)
        tokens[i] = whole[extra:]
        once += tokens[i][:1] == [begin]
    put = []
    if once:
        each = "each" if once == len(texts) else f"{once} of {len(texts)}"
        put.append(f"{tokenizer.bos_token} begins {each}" + (f", once where it came twice ({twice})" if twice else ""))
    if behind:
        said = " ".join(map(str, tokenizer.convert_ids_to_tokens(behind)))
        put.append(f"{said}, which the tokenizer adds behind a text, is left out")
    return tokens, put


def _added(text: str, tokens: list[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and behind any text, seen on one."""
    whole: list[int] = tokenizer(text)["input_ids"]
    for at in range(len(whole) - len(tokens) + 1):
        if whole[at : at + len(tokens)] == tokens:
            return whole[:at], whole[at + len(tokens) :]
    raise ConfigError(
        f"the model's tokenizer changes a text's own tokens when it adds special ones (tried on {text[:60]!r}): "
        "prompts cannot be encoded without its end token. Mend the post-processor in its tokenizer.json"
    )
