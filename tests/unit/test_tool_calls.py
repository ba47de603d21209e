"""How the calls in a model's turn are read, in each form in which models write them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlkit_rewards.tool_calls import FORMATS, LONGEST, Call, Format, Malformed, calls_in

SCHEMAS: dict[str, dict[str, Any]] = {
    "search": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "k": {"type": "integer"},
            "deep": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "since": {"type": "integer", "nullable": True},
        },
        "required": ["query"],
    },
    "now": {"type": "object", "properties": {}},
}
NOW = Call("now")
FOUND = Call("search", {"query": "a b", "k": 2})


def calls(text: str, form: Format) -> list[Call | Malformed]:
    return calls_in(text, form, SCHEMAS)


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        ("hermes", '<tool_call>\n{"name": "search", "arguments": {"query": "a b", "k": 2}}\n</tool_call>', [FOUND]),
        (
            "hermes",
            'Well.\n<tool_call>{"name": "now", "arguments": {}}</tool_call><tool_call>{"name":"now"}',
            [NOW, NOW],
        ),
        (
            "hermes",
            '<tool_call>{"name": "search", "arguments": {"query": "</tool_call>"}}</tool_call>',
            [Call("search", {"query": "</tool_call>"})],
        ),
        (
            "qwen",
            "<tool_call>\n<function=search>\n<parameter=query>\na b\n</parameter>\n<parameter=k>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            [FOUND],
        ),
        (
            "qwen",
            "<function=search><parameter=query>3</parameter><parameter=deep>True</parameter>"
            '<parameter=tags>["x"]</parameter><parameter=since>null</parameter></function>\n<function=now>\n</function>',
            [Call("search", {"query": "3", "deep": True, "tags": ["x"], "since": None}), NOW],
        ),
        (
            "qwen",
            "<tool_call><function=search><parameter=query>\nif a < b:\n    pass\n\n</parameter>",
            [Call("search", {"query": "if a < b:\n    pass\n"})],
        ),
        # For the check to refuse: what is no number stays the text that it is.
        (
            "qwen",
            "<function=search><parameter=k>two</parameter></function>",
            [Call("search", {"k": "two"})],
        ),
        ("json", '{"name": "search", "parameters": {"query": "a b", "k": 2}}', [FOUND]),
        ("json", '{"name": "now", "arguments": {}}; {"name": "now"}', [NOW, NOW]),
        ("json", 'Let me see.\n```json\n[{"name": "now"}, {"name": "now"}]\n```', [NOW, NOW]),
        ("python", '[search(query="a b", k=2), now()]', [FOUND, NOW]),
        ("python", '```python\nsearch("a b", 2)\nnow()\n```', [FOUND, NOW]),
        ("python", "```tool_code\n[now()]\n```", [NOW]),
        (
            "python",
            '[search(query="a" "b", deep=true, tags=("x",), since=None)]',
            [Call("search", {"query": "ab", "deep": True, "tags": ["x"], "since": None})],
        ),
    ],
)
def test_calls_are_read(form: Format, text: str, found: list[Call]) -> None:
    assert calls(text, form) == found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "answer",
    [
        "The answer is 42.",
        "",
        '{"name": "Bob"}',
        "[1, 2]",
        "42",
        "```python\nprint(6 * 7)\nx = 1\n```",
        '```json\n{"x": 1}\n```',
        "{a}",
        "[[",
    ],
)
def test_answers_are_no_calls(form: Format, answer: str) -> None:
    assert calls(answer, form) == []


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_thought_is_no_call(form: Format) -> None:
    written = {
        "hermes": '<tool_call>{"name": "now"}</tool_call>',
        "qwen": "<tool_call><function=now></function></tool_call>",
        "json": '\n```json\n{"name": "now"}\n```\n',
        "python": "\n```python\nnow()\n```\n",
    }[form]
    assert calls(f"<think>I could say {written}</think>No.", form) == []
    assert calls(f"<think>I could say {written}</think>{written}", form) == [NOW]


MILLION = "x" * 1_000_000


@pytest.mark.parametrize(
    ("form", "text", "why"),
    [
        ("hermes", '<tool_call>{"name": "now"', "no JSON: Expecting ',' delimiter, at character 15 of it"),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "1\n2"}}</tool_call>', "a line feed .* JSON writes"),
        ("hermes", '<tool_call>{"name": "now"} and so on</tool_call>', "behind the JSON .* comes 'and so on"),
        ("hermes", '<tool_call>"now"</tool_call>', 'no JSON object with "name" and "arguments"'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', 'has no "name"'),
        ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>', '"arguments" .* no JSON object'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>', "NaN is no JSON"),
        ("hermes", "<tool_call>" + "[" * 100_000, "no JSON"),
        (
            "hermes",
            f'<tool_call>{{"name": "now", "arguments": {{"a": "{MILLION}"}}}}',
            "1,000,039 characters, and 100,000",
        ),
        ("qwen", "<tool_call>now()</tool_call>", "behind <tool_call> comes no <function=NAME>"),
        ("qwen", "<function=now>at once</function>", "'at once</function>' is no <parameter=KEY> and no </function>"),
        ("qwen", "<function=now><parameter=a>1</parameter><parameter=a>2</parameter>", "two parameters 'a'"),
        ("qwen", f"<function=search><parameter=query>{MILLION}</parameter>", "characters, and 100,000 is the most"),
        ("json", '{"name": "search", "parameters": {"query"}}', "no JSON: Expecting ':' delimiter, at character 42"),
        ("json", f'{{"name": "search", "arguments": {{"query": "{MILLION}"}}}}', "characters, and 100,000 is the most"),
        ("python", "[search(query=open('x'))]", "argument 'query' is no plain value: write the value itself"),
        ("python", "[search(query={1})]", "argument 'query' is no plain value"),
        ("python", "[search(**{})]", r"has \* or \*\* before an argument: write each out"),
        ("python", "[search('a', query='b')]", "gives 'query' twice"),
        ("python", "[now(1)]", "gives 1 arguments, and 0 is the most"),
        ("python", "[search(query='a)]", "the call is no Python: unterminated string literal .*, in line 1 of it"),
        ("python", "```python\nx = search(query='a')\n```", "stands among other code: write calls alone"),
        ("python", "```python\nself.now()\nnow.now()\n```", "a tool is called by its name alone"),
        ("python", f"[search(query='{MILLION}')]", "characters, and 100,000 is the most"),
        ("python", "[search(query=" + "(" * 50_000, "the call is no Python"),
    ],
)
def test_malformed_calls_say_what_is_wrong(form: Format, text: str, why: str) -> None:
    first = calls(text, form)[0]
    assert isinstance(first, Malformed)
    assert re.search(why, first.why)
    assert len(first.why) < 300


def test_what_is_written_after_a_malformed_call_is_read() -> None:
    text = '<tool_call>{"name": </tool_call>\n<tool_call>{"name": "now"}</tool_call>'
    broken, good = calls(text, "hermes")
    assert isinstance(broken, Malformed)
    assert good == NOW


PIECES = st.one_of(
    st.sampled_from(["<tool_call>", "</tool_call>", "<function=", "search>", "<parameter=", "k>", "</parameter>"]),
    st.sampled_from(["</function>", "</think>", '{"name": "now"', '"arguments": {', "now(", "```json\n", "\n```\n"]),
    st.sampled_from("{}[]()'\"\\1 \n,\0\ud800"),
)


@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from(FORMATS))
@settings(max_examples=200)
def test_any_text_is_read(text: str, form: Format) -> None:
    for call in calls(text, form):
        if isinstance(call, Call):
            assert len(json.dumps(call.arguments)) <= 2 * LONGEST
