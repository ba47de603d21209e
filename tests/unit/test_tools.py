"""The environment `tools`: calls made and answered, with whatever a model writes and whatever a tool does."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlkit import Observation, Task, registry
from rlkit.errors import ConfigError

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap, or your system's like"
)

MINE = '''
import asyncio
import functools


def search(query: str, k: int = 3, tags: list[str] | None = None) -> list[str]:
    """Searches.

    Args:
        query: What to look for.
        k: How many.
        tags: Of which kinds.
    """
    return [query] * k


async def later(text: str) -> str:
    """Says it later.

    Args:
        text: What.
    """
    await asyncio.sleep(0)
    return text


def fail(how: str) -> str:
    """Fails.

    Args:
        how: In which way.
    """
    raise {"key": KeyError, "value": ValueError, "bare": RuntimeError("")}[how]("nothing there")


def flood(characters: int) -> str:
    """Says much.

    Args:
        characters: How much.
    """
    return "a" * (characters - 3) + "end"


class Memory:
    """Not a tool itself."""

    def __init__(self) -> None:
        self.kept = []

    def keep(self, text: str) -> None:
        """Keeps a text.

        Args:
            text: The text.
        """
        self.kept.append(text)

    def recall(self) -> dict[str, int]:
        """All that was kept."""
        return {text: len(text) for text in self.kept}

    def _hidden(self) -> None: ...


class Wants:
    def __init__(self, key): ...

    def look(self) -> str:
        """Looks."""


class Renamed(Memory):
    look_up = Memory.recall

    @property
    def connection(self):
        raise OSError("there is none")


renamed = Renamed()
partly = functools.partial(search, k=2)


def go(at: int | list[int]) -> str:
    """Looks.

    Args:
        at: Where.
    """
    return str(at)


def calculator(expression: str) -> str:
    """Another one.

    Args:
        expression: What.
    """
    return expression


def unhinted(query):
    """Searches.

    Args:
        query: What.
    """


class Empty: ...


NUMBER = 3
'''


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(MINE)
    return str(path)


def started(tools: list[str], **options: Any) -> Any:
    environment = registry.build("environments", "tools", {"tools": tools, **options})
    assert environment.start(Task(question="?", answer="4"), 0) == ""
    return environment


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def contents(said: Observation) -> list[str]:
    assert not isinstance(said.text, str)
    assert all(message.keys() == {"role", "name", "content"} and message["role"] == "tool" for message in said.text)
    assert not said.done
    return [message["content"] for message in said.text]


def test_calls_of_a_turn_are_answered_in_order(mine: str) -> None:
    environment = started([f"{mine}:search", f"{mine}:Memory", f"{mine}:later", "calculator"])
    names = ["search", "keep", "recall", "later", "calculator"]
    assert [tool["function"]["name"] for tool in environment.tools] == names
    assert environment.range == (0.0, 0.0)
    said = environment.step(
        "Two things.\n"
        + call("search", query="ants", k=2.0)
        + call("keep", text="ants")
        + call("recall")
        + call("later", text="\u00e4")
        + call("calculator", expression="6*7")
    )
    assert contents(said) == ['["ants", "ants"]', "null", '{"ants": 4}', "\u00e4", "42"]
    assert said.reward is None
    counts = dict.fromkeys((f"tool/{name}" for name in names), 1)
    assert said.counts == {"tool_calls": 5, "tool_errors": 0, **counts}


def test_a_turn_without_a_call_is_the_answer(mine: str) -> None:
    said = started([f"{mine}:search"]).step("It is 4.")
    assert said == Observation(done=True)


def test_each_trajectory_has_its_own_object_of_a_class(mine: str) -> None:
    environment = started([f"{mine}:Memory"])
    environment.step(call("keep", text="ants"))
    assert contents(environment.step(call("recall"))) == ['{"ants": 4}']
    environment.start(Task(), 1)
    assert contents(environment.step(call("recall"))) == ["{}"]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (call("serch", query="x"), "there is no tool 'serch'; did you mean 'search'? The tools are: fail, go, search"),
        (call("open_door"), "there is no tool 'open_door'; known: fail, go, search"),
        (call("x" * 50_000), f"there is no tool '{'x' * 30} ... {'x' * 30}'; known: fail, go, search"),
        (call("search"), "search: the argument 'query' is missing; it takes query, k, tags"),
        (call("search", query="x", j=1), "search: there is no argument 'j'; it takes query, k, tags"),
        (call("search", query=3), "search: the argument 'query' does not fit: 3 is not of type 'string'"),
        (call("search", query="x", k=2.5), "search: the argument 'k' does not fit: 2.5 is not of type 'integer'"),
        (call("search", query="x", k=True), "search: the argument 'k' does not fit: True is not of type 'integer'"),
        (
            call("search", query="x", tags=["a", 1]),
            "search: the argument 'tags'[1] does not fit: 1 is not of type 'string'",
        ),
        (call("go", at=[1, "b"]), "go: the argument 'at'[1] does not fit: 'b' is not of type 'integer'"),
        (call("fail", how="key"), "KeyError: 'nothing there'"),
        (call("fail", how="value"), "ValueError: nothing there"),
        (
            '<tool_call>{"name": "search", "arguments": {"query": "x"</tool_call>',
            "the call is no JSON: Expecting ',' delimiter, at character 46 of it. "
            'Write <tool_call>{"name": "NAME", "arguments": {"KEY": value}}</tool_call>',
        ),
        (
            call("search", query="x" * 1_000_000),
            "the call has 1,000,048 characters, and 100,000 is the most; it was not run. "
            'Write <tool_call>{"name": "NAME", "arguments": {"KEY": value}}</tool_call>',
        ),
    ],
)
def test_a_call_that_cannot_be_made_is_answered_with_an_error(turn: str, said: str, mine: str) -> None:
    answered = started([f"{mine}:{name}" for name in ("search", "fail", "go")]).step(turn)
    assert contents(answered) == [f"error: {said}"]
    assert (answered.counts["tool_calls"], answered.counts["tool_errors"]) == (1, 1)


def test_an_argument_may_be_null_where_its_hint_says_so(mine: str) -> None:
    assert contents(started([f"{mine}:search"]).step(call("search", query="x", k=1, tags=None))) == ['["x"]']


@pytest.mark.parametrize("name", ["Renamed", "renamed"])
def test_a_method_is_called_by_the_name_that_it_has_in_its_class(name: str, mine: str) -> None:
    environment = started([f"{mine}:{name}"])
    assert [tool["function"]["name"] for tool in environment.tools] == ["keep", "look_up", "recall"]
    assert contents(environment.step(call("look_up"))) == ["{}"]


def test_results_are_cut(mine: str) -> None:
    (content,) = contents(started([f"{mine}:flood"], result_chars=400).step(call("flood", characters=10_000_000)))
    assert content == f"{'a' * 300}\n[... 9,999,600 characters left out ...]\n{'a' * 97}end"


def test_results_of_one_turn_are_cut_together(mine: str) -> None:
    environment = started([f"{mine}:flood"], result_chars=40_000)
    said = contents(environment.step(call("flood", characters=39_990) * 5))
    assert [len(each) for each in said[:2]] == [39_990, 39_990]
    assert [each.partition("[... ")[2].partition(" ")[0] for each in said[2:]] == ["19,970", "39,890", "39,890"]


def test_calls_above_the_most_are_not_run(mine: str) -> None:
    environment = started([f"{mine}:Memory"], most_calls=3)
    environment.step(call("keep", text="a"))
    said = contents(environment.step(call("keep", text="b") + call("recall") + call("keep", text="c") + call("recall")))
    assert said == [
        "null",
        '{"a": 1, "b": 1}',
        "error: no more calls can be made; 2 calls not run. Answer without a call",
    ]
    again = environment.step(call("recall"))
    assert contents(again) == ["error: no more calls can be made; 1 call not run. Answer without a call"]
    assert again.counts["tool_calls"] == 0


def test_calls_may_cost(mine: str) -> None:
    environment = started([f"{mine}:search"], most_calls=4, call_cost=0.25, error_cost=0.5)
    assert environment.range == (-3.0, 0.0)
    assert environment.step(call("search", query="x") + call("search")).reward == -1.0
    assert environment.step("Done.").reward is None


@pytest.mark.parametrize(
    ("form", "turn"),
    [
        (
            "qwen",
            "<tool_call>\n<function=search>\n<parameter=query>\nx\n</parameter>\n<parameter=k>\n1\n</parameter>\n</function>",
        ),
        ("json", '{"name": "search", "parameters": {"query": "x", "k": 1}}'),
        ("python", '[search(query="x", k=1)]'),
    ],
)
def test_other_formats(form: str, turn: str, mine: str) -> None:
    assert contents(started([f"{mine}:search"], format=form).step(turn)) == ['["x"]']
    meant = started([f"{mine}:search"]).step(turn)
    if form != "qwen":  # that one has a <tool_call>, and is answered
        assert meant.done
        assert meant.text == f"No call in format hermes, but one in format {form}: is `format: {form}` meant?"


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        (
            ["calculator", "calculator"],
            "two tools are called 'calculator', calculator and calculator, and the model calls",
        ),
        (["calculator", "{mine}:calculator"], "two tools are called 'calculator', calculator and .*mine.py:calculator"),
        (
            ["calc"],
            "no tool 'calc'; those that ship are calculator and python, and one of your own is given as FILE.py:NAME",
        ),
        (["{mine}:serch"], "tool: .*mine.py has no 'serch'; did you mean 'search'"),
        (["nowhere.py:search"], "tool: file .*nowhere.py' does not exist"),
        (["{mine}:unhinted"], "tool 'unhinted', .*mine.py.*: its parameter 'query' has no type hint"),
        (["{mine}:Empty"], "mine.py:Empty: it is .*; name a function, or a class or an object whose public methods"),
        (["{mine}:NUMBER"], "mine.py:NUMBER: it is .*; name a function"),
        (["{mine}:partly"], r"mine.py:partly: it is partial \(.*; name a function"),
        (["{mine}:Wants"], "made without arguments, and its __init__ wants 'key': give it a default"),
        ([], "tools"),
    ],
)
def test_tools_that_cannot_be(tools: list[str], said: str, mine: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.build("environments", "tools", {"tools": [tool.format(mine=mine) for tool in tools]})


def test_a_file_is_found_from_wherever_its_processes_work(
    mine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(mine).parent)
    options = registry.validate_options(
        registry.find("environments", "tools"), {"tools": "mine.py:search"}, "environment"
    )
    assert options.model_dump()["tools"] == [f"{mine}:search"]


def test_without_bubblewrap_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        registry.build("environments", "tools", {"tools": ["python"]})


def python(*cells: str) -> str:
    return "".join(call("python", code=cell) for cell in cells)


@pytest.fixture(scope="module")
def kept() -> Any:
    return registry.build("environments", "tools", {"tools": ["python"], "keep_state": True, "tool_timeout_s": 3})


@needs_bubblewrap
def test_python_keeps_its_state_where_asked(kept: Any) -> None:
    kept.start(Task(), 0)
    first = kept.step(python("import math\nx = 6\nprint('six')", "def f(y):\n    return x * y\nf(7)"))
    assert contents(first) == ["six\n", "42\n"]
    assert contents(kept.step(python("f(math.floor(2.5))"))) == ["12\n"]
    kept.start(Task(), 0)
    forgotten = kept.step(python("x", "1 + 1"))
    assert contents(forgotten) == ["error: NameError: name 'x' is not defined (line 1)", "2\n"]
    assert forgotten.counts == {"tool_calls": 2, "tool_errors": 1, "tool/python": 2}


@needs_bubblewrap
def test_what_ends_python_costs_its_state_alone(kept: Any) -> None:
    kept.start(Task(), 0)
    kept.step(python("x = 1"))
    crashed = kept.step(python("print('so far')\nimport os\nos._exit(3)", "x"))
    assert contents(crashed) == [
        "error: the process that runs the code ended: it was killed, crashed, or ended itself. What earlier code has "
        "defined is lost.\nUntil then it printed:\nso far\n",
        "error: NameError: name 'x' is not defined (line 1)",
    ]


@needs_bubblewrap
def test_code_that_hangs_is_answered_in_time() -> None:
    environment = registry.build("environments", "tools", {"tools": ["python"], "tool_timeout_s": 1})
    environment.start(Task(), 0)
    hung = environment.step(python("print(1)\nwhile True:\n    pass", "print(2)"))
    assert contents(hung) == [
        "error: stopped: the code of one turn may take 1 s.\nUntil then it printed:\n1\n",
        "error: not run: the code of one turn may take 1 s together",
    ]
    assert contents(environment.step(python("x = 2\nx"))) == ["2\n"]
    assert contents(environment.step(python("x"))) == ["error: NameError: name 'x' is not defined (line 1)"]


@needs_bubblewrap
@pytest.mark.parametrize(
    ("cell", "content"),
    [
        ("1 +", "error: SyntaxError: invalid syntax (line 1)"),
        ("\0", "error: SyntaxError: source code string cannot contain null bytes"),
        ("def f():\n    return 1 / 0\n\nf()", "error: ZeroDivisionError: division by zero (line 2)"),
        ("import sys\nprint(1)\nsys.exit(0)", "1\n"),
        ("raise SystemExit('no')", "error: SystemExit: no"),
        ("raise KeyboardInterrupt", "error: KeyboardInterrupt (line 1)"),
        ("input()", "error: EOFError: EOF when reading a line (line 1)"),
        ("x = 'a' * 10**10", "error: MemoryError (line 1)"),
        (
            "import os\nif os.fork() == 0:\n    print('child')\nelse:\n    os.wait()\n    print('parent')",
            "child\nparent\n",
        ),
        ("import sys\nprint('e', file=sys.stderr)", "e\n"),
        ("None", ""),
        (
            "open('/etc/passwd')",
            "error: FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd' (line 1)",
        ),
        ("'\\ud800'", "'\\ud800'\n"),
    ],
)
def test_what_code_says(kept: Any, cell: str, content: str) -> None:
    kept.start(Task(), 0)
    assert contents(kept.step(python(cell))) == [content]


@needs_bubblewrap
def test_code_reaches_no_network(kept: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept.start(Task(), 0)
        reach = f"import socket\nsocket.create_connection({server.getsockname()!r}, 1)"
        (content,) = contents(kept.step(python(reach)))
    assert content == "error: ConnectionRefusedError: [Errno 111] Connection refused (line 2)"


@needs_bubblewrap
def test_a_flood_of_output_is_stopped(kept: Any) -> None:
    kept.start(Task(), 0)
    (content,) = contents(kept.step(python("while True:\n    print('x' * 4096)")))
    assert content.startswith("error: stopped: code may print 1,024 KiB.\nUntil then it printed:\nxxx")
    assert len(content) < 4100


@needs_bubblewrap
def test_code_cannot_answer_for_the_sandbox(kept: Any) -> None:
    """It shares its process with what tells how a cell ended; whatever it says is a text for the model at most."""
    kept.start(Task(), 0)
    lies = """
import contextlib, os
for fd in range(3, 10):
    with contextlib.suppress(OSError):
        os.write(fd, b"[1]\\n")
"""
    said = contents(kept.step(python(lies, "1 + 1", "2 + 2")))
    assert len(said) == 3
    kept.start(Task(), 0)
    assert contents(kept.step(python("1 + 1"))) == ["2\n"]


def test_it_needs_no_torch(mine: str) -> None:
    """A process of environments starts in a fraction of a second."""
    script = (
        "import sys\nfrom rlkit import registry\n"
        f"registry.build('environments', 'tools', {{'tools': ['calculator', {mine + ':search'!r}]}})\n"
        "print(sorted({'torch', 'transformers', 'sympy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
