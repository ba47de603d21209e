"""Tools, called as a model asks for it: each call checked, run and answered with a message that the model can read."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from rlkit.errors import RlkitError, nearest
from rlkit.wording import counted, one_line

from .tool_calls import FORMS, Call, Format, Malformed, calls_in

LEAST, MOST_OF_A_TURN = 100, 100_000
"""Characters that are shown of a result whatever else the turn holds, and of all results of one turn: an environment
may not say any amount at once."""


class ToolError(Exception):
    """What went wrong with a call, for the model to read; a tool may raise it, too."""


@dataclass(frozen=True)
class Answers:
    messages: list[dict[str, str]]
    """One of role "tool" for each call, in order."""
    counts: dict[str, float]
    """tool_calls, tool_errors, and tool/NAME of each tool."""


class Toolbox:
    """Tools by name, with the schema of each: see `tool_schema.schema_of`.

    result_chars: the most that is shown of what a tool returns; of all calls of a turn together, `MOST_OF_A_TURN`.
    """

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]],
        schemas: Mapping[str, Mapping[str, Any]],
        *,
        form: Format = "hermes",
        result_chars: int = 4000,
    ) -> None:
        self._tools = tools
        self._parameters = {name: schema["function"]["parameters"] for name, schema in schemas.items()}
        self._checks = {
            name: jsonschema.Draft202012Validator(
                {"properties": {key: _standard(each) for key, each in parameters["properties"].items()}}
            )
            for name, parameters in self._parameters.items()
        }
        self._form: Format = form
        self._result_chars = result_chars

    def answer(self, turn: str, most: int) -> Answers | None:
        """Make the calls in a model's turn, the first `most` of them; None: there are none, so that it is an answer."""
        calls = calls_in(turn, self._form, self._parameters)
        if not calls:
            return None
        counts: Counter[str] = Counter(tool_calls=0, tool_errors=0)
        messages, room = list[dict[str, str]](), MOST_OF_A_TURN
        for call in calls[:most]:
            counts["tool_calls"] += 1
            if call.name in self._tools:
                counts[f"tool/{call.name}"] += 1
            try:
                content = self._made(call)
            except ToolError as error:
                counts["tool_errors"] += 1
                content = f"error: {error}"
            content = _cut(content, min(self._result_chars, max(room, LEAST)))
            room -= len(content)
            messages.append(_message(call.name, content))
        if left := calls[most:]:
            said = f"error: no more calls can be made; {counted(len(left), 'call')} not run. Answer without a call"
            messages.append(_message(left[0].name, said))
        return Answers(messages, dict(counts))

    def _made(self, call: Call | Malformed) -> str:
        """What the tool returns, as text. Raises ToolError."""
        if isinstance(call, Malformed):
            raise ToolError(f"{call.why}. Write {FORMS[self._form]}")
        if call.name not in self._tools:
            name = one_line(call.name, 60)
            hint = nearest(name, self._tools)
            all_of_them = "" if hint.startswith("; known") else f" The tools are: {', '.join(sorted(self._tools))}"
            raise ToolError(f"there is no tool {name!r}{hint}{all_of_them}")
        if wrong := self._misfit(call):
            raise ToolError(f"{call.name}: {wrong}")
        properties = self._parameters[call.name]["properties"]
        arguments = {key: _as_hinted(value, properties[key]) for key, value in call.arguments.items()}
        try:
            result = self._tools[call.name](**arguments)
            if inspect.isawaitable(result):
                result = asyncio.run(_awaited(result))
            return result if isinstance(result, str) else _text(result)
        except (ToolError, RlkitError, MemoryError):  # the last two are no doing of the model's
            raise
        except Exception as error:
            raise ToolError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error

    def _misfit(self, call: Call) -> str | None:
        """Why the arguments do not fit the parameters; None: they do."""
        parameters = self._parameters[call.name]
        known = parameters["properties"]
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        if unknown := [key for key in call.arguments if key not in known]:
            key = one_line(unknown[0], 60)
            return f"there is no argument {key!r}; {takes}"
        if missing := [key for key in parameters.get("required", ()) if key not in call.arguments]:
            return f"the argument {missing[0]!r} is missing; {takes}"
        error = jsonschema.exceptions.best_match(self._checks[call.name].iter_errors(call.arguments))
        if error is None:
            return None
        argument, *within = error.absolute_path
        where = "".join(f"[{step!r}]" for step in within)
        return f"the argument {argument!r}{where} does not fit: {one_line(error.message, 200)}"


def _as_hinted(value: Any, schema: Mapping[str, Any]) -> Any:
    """In JSON 5.0 is a whole number."""
    return int(value) if schema.get("type") == "integer" and isinstance(value, float) else value


def _cut(text: str, most: int) -> str:
    """What can be encoded, up to the limit: the beginning and the end, and between them how much is left out."""
    left_out = len(text) - most
    if left_out > 0:
        end = most // 4
        text = f"{text[: most - end]}\n[... {left_out:,} characters left out ...]\n{text[-end:]}"
    return text.encode(errors="replace").decode()


async def _awaited(result: Any) -> Any:
    return await result


def _message(name: str, content: str) -> dict[str, str]:
    return {"role": "tool", "name": one_line(name, 60) or "unknown", "content": content}


def _text(result: Any) -> str:
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(result)


def _standard(schema: Any) -> Any:
    """The schema as JSON schema has it, where chat templates say `nullable`."""
    if isinstance(schema, list):
        return [_standard(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    said = {key: _standard(value) for key, value in schema.items() if key not in ("nullable", "description")}
    if schema.get("nullable"):
        if "enum" in said:
            said["enum"] = [*said["enum"], None]
        if "anyOf" in said:
            said["anyOf"] = [*said["anyOf"], {"type": "null"}]
        if "type" in said:
            said["type"] = [*([said["type"]] if isinstance(said["type"], str) else said["type"]), "null"]
    return said
