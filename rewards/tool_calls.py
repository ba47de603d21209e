"""The calls of tools in a model's turn, in the forms that models write them."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from rlkit.wording import one_line

Format = Literal["hermes", "qwen", "json", "python"]
FORMATS: tuple[Format, ...] = get_args(Format)
FORMS: dict[Format, str] = {
    "hermes": '<tool_call>{"name": "NAME", "arguments": {"KEY": value}}</tool_call>',
    "qwen": "<tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>",
    "json": '{"name": "NAME", "arguments": {"KEY": value}} and nothing else, or a list of such',
    "python": "[NAME(KEY=value)]",
}
LONGEST = 100_000
"""Characters of one call."""


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Malformed:
    why: str
    name: str = ""
    """Of the tool, as far as it can be told."""


Parsed = list[Call | Malformed]
_CALL, _NAME_END = re.compile("<tool_call>|<function="), re.compile("[>\n]")
_VALUE_END = re.compile("</parameter>|<parameter=|</function>|</tool_call>")
_SPACE, _BETWEEN = re.compile(r"\s*"), re.compile(r"[\s;,]*")
Schemas = Mapping[str, Mapping[str, Any]]
"""The parameters of each tool: a JSON schema of an object."""


def calls_in(text: str, form: Format, schemas: Schemas) -> Parsed:
    """In their order; none where the turn is an answer. What a model thinks, up to its last </think>, is no call."""
    return _PARSERS[form](text.rpartition("</think>")[2], schemas)


def _hermes(text: str, _: Schemas) -> Parsed:
    found: Parsed = []
    opened, closed = "<tool_call>", "</tool_call>"
    at = text.find(opened)
    while at >= 0:
        at += len(opened)
        try:
            # Not up to the next </tool_call>: a text among the arguments may hold one.
            value, end = _decoded(text, at)
            end = _behind_space(text, end)
            if end < len(text) and not text.startswith(closed, end):
                rest = one_line(text[end : end + 60], 40)
                found.append(Malformed(f"behind the JSON of the call comes {rest!r}, not {closed}"))
            else:
                found.append(_call(value, end - at))
            at = text.find(opened, end)
        except ValueError as error:
            found.append(Malformed(f"the call is no JSON: {error}"))
            at = text.find(opened, at)
    return found


def _qwen(text: str, schemas: Schemas) -> Parsed:
    found: Parsed = []
    at = 0
    while (begin := _first(_CALL, text, at)) < len(text):
        if text.startswith("<tool_call>", begin):
            at = begin + len("<tool_call>")
            if not text.startswith("<function=", _behind_space(text, at)):
                found.append(Malformed("behind <tool_call> comes no <function=NAME>"))
            continue
        name_end = _first(_NAME_END, text, begin)
        name = text[begin + len("<function=") : name_end].strip()
        arguments = dict[str, Any]()
        properties = schemas.get(name, {}).get("properties", {})
        at, why = name_end + 1, ""
        while at < len(text):
            at = _behind_space(text, at)
            if not text.startswith("<parameter=", at):
                break
            key_end = _first(_NAME_END, text, at)
            key = text[at + len("<parameter=") : key_end].strip()
            if key in arguments:
                why = f"the call has two parameters {one_line(key, 60)!r}"
            end = _first(_VALUE_END, text, key_end)
            value = text[key_end + 1 : end].removeprefix("\n").removesuffix("\n")
            arguments[key] = _converted(value, properties.get(key, {}))
            at = end + len("</parameter>") * text.startswith("</parameter>", end)
        if at < len(text) and not text.startswith(("</function>", "</tool_call>"), at):
            why = why or f"in the call, {one_line(text[at : at + 60], 40)!r} is no <parameter=KEY> and no </function>"
        if at - begin > LONGEST:
            why = _too_long(at - begin)
        found.append(Malformed(why, name) if why else Call(name, arguments))
    return found


def _json(text: str, schemas: Schemas) -> Parsed:
    found: Parsed = []
    for source in [body for language, body in _fenced(text) if language in ("", "json")] or [text]:
        source = source.strip()
        if not source.startswith(("{", "[")):
            continue
        values, at = list[Any](), 0
        try:
            while at < len(source):
                value, end = _decoded(source, at)
                values += value if isinstance(value, list) else [value]
                # Llama writes several one after another, with semicolons between them.
                at = _BETWEEN.match(source, end).end()  # type: ignore[union-attr]
        except ValueError as error:
            if '"name"' in source:
                found.append(Malformed(f"the call is no JSON: {error}"))
            continue
        if any(_is_call(value, schemas) for value in values):
            found += [_call(value, len(source)) for value in values]
    return found


def _python(text: str, schemas: Schemas) -> Parsed:
    found: Parsed = []
    for language, body in _fenced(text):
        if language in ("python", "py", "tool_code", "tool_call"):
            found += _pythonic(body, schemas)
    bare = text.strip()
    return _pythonic(bare, schemas) if not found and bare.startswith("[") else found


_PARSERS: dict[Format, Callable[[str, Schemas], Parsed]] = {
    "hermes": _hermes,
    "qwen": _qwen,
    "json": _json,
    "python": _python,
}


def _call(value: Any, size: int) -> Call | Malformed:
    """Of a JSON document that is meant as a call."""
    if not isinstance(value, dict):
        return Malformed('the call is no JSON object with "name" and "arguments"')
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return Malformed('the call has no "name"')
    arguments = value.get("arguments", value.get("parameters", {}))
    if size > LONGEST:
        return Malformed(_too_long(size), name)
    if not isinstance(arguments, dict):
        return Malformed('the "arguments" of the call are no JSON object', name)
    return Call(name, arguments)


def _is_call(value: Any, schemas: Schemas) -> bool:
    """Else it may be an answer in JSON."""
    if not isinstance(value, dict) or "name" not in value:
        return False
    return "arguments" in value or "parameters" in value or value["name"] in schemas


def _too_long(size: int) -> str:
    return f"the call has {size:,} characters, and {LONGEST:,} is the most; it was not run"


def _first(mark: re.Pattern[str], text: str, at: int) -> int:
    """Where it begins; the text's length where it does not come."""
    found = mark.search(text, at)
    return found.start() if found else len(text)


def _behind_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The JSON document that begins there, behind white space, and where it ends. Raises ValueError."""
    begin = _behind_space(text, at)
    try:
        return _DECODER.raw_decode(text, begin)
    except json.JSONDecodeError as error:
        # The commonest mistake, since code has lines.
        raw = error.msg.startswith("Invalid control character")
        said = "a text holds a line feed or the like, where JSON writes \\n" if raw else error.msg.removesuffix(" at")
        raise ValueError(f"{said}, at character {error.pos - begin + 1} of it") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _converted(text: str, schema: Mapping[str, Any]) -> Any:
    """The value of a text by the parameter's schema; the text itself where it is none, for the check to refuse."""
    if schema.get("nullable") and text.strip() in ("null", "None"):
        return None
    kinds = schema.get("type", [])
    if "string" in kinds:
        return text
    try:
        value, end = _decoded({"True": "true", "False": "false"}.get(text.strip(), text), 0)
        return text if text[end:].strip() else value
    except ValueError:
        return text


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """Language and body of each code block; the last one may be left open."""
    language: str | None = None
    lines = list[str]()
    for line in text.splitlines():
        bare = line.strip()
        if language is None and bare.startswith("```"):
            language, lines = bare.strip("`").strip().lower(), []
        elif language is not None and bare == "```":
            yield language, "\n".join(lines)
            language = None
        elif language is not None:
            lines.append(line)
    if language is not None:
        yield language, "\n".join(lines)


class _NoLiteral(ast.NodeTransformer):
    """JSON's names for Python's, as models write them."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        names = {"true": True, "false": False, "null": None}
        return ast.copy_location(ast.Constant(names[node.id]), node) if node.id in names else node


def _pythonic(source: str, schemas: Schemas) -> Parsed:
    """Calls as a list or line by line; nothing of it is run. What calls no tool is an answer."""
    meant = re.search(rf"(?<![\w.])(?:{'|'.join(map(re.escape, schemas))})\s*\(", source) is not None
    if len(source) > LONGEST:
        return [Malformed(_too_long(len(source)))] if meant else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            statements = ast.parse(source).body
    except SyntaxError as error:
        return [Malformed(f"the call is no Python: {error.msg}, in line {error.lineno} of it")] if meant else []
    except (ValueError, MemoryError, RecursionError):
        return [Malformed("the call is no Python, or is nested too deeply")] if meant else []
    nodes = list[ast.expr]()
    for statement in statements:
        value = statement.value if isinstance(statement, ast.Expr) else None
        nodes += value.elts if isinstance(value, ast.List) else [value] if value is not None else []
    only_calls = all(isinstance(statement, ast.Expr) for statement in statements)
    if nodes and only_calls and all(isinstance(node, ast.Call) for node in nodes):
        return [_written(node, schemas) for node in nodes if isinstance(node, ast.Call)]
    return [Malformed("the call of a tool stands among other code: write calls alone")] if meant else []


def _written(node: ast.Call, schemas: Schemas) -> Call | Malformed:
    if not isinstance(node.func, ast.Name):
        return Malformed("a tool is called by its name alone")
    name = node.func.id
    keys = list(schemas.get(name, {}).get("properties", {}))
    if name in schemas and len(node.args) > len(keys):
        return Malformed(f"the call gives {len(node.args)} arguments, and {len(keys)} is the most", name)
    given = [*zip(keys, node.args, strict=False), *((keyword.arg, keyword.value) for keyword in node.keywords)]
    arguments = dict[str, Any]()
    for key, value in given:
        if key is None or isinstance(value, ast.Starred):
            return Malformed("the call has * or ** before an argument: write each out", name)
        if key in arguments:
            return Malformed(f"the call gives {one_line(key, 60)!r} twice", name)
        try:
            # As JSON has it: tuples are lists there, and there are no sets.
            plain = json.dumps(ast.literal_eval(_NoLiteral().visit(value)), allow_nan=False)
            arguments[key] = json.loads(plain)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return Malformed(f"the argument {one_line(key, 60)!r} is no plain value: write the value itself", name)
    return Call(name, arguments)
