"""The environment `tools`: the model calls functions, reads what they return, and answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from rlkit import Observation, Task, environment, modules
from rlkit.blame import shown
from rlkit.errors import ConfigError

from .calculator import calculator
from .common import named_in
from .python_tool import Python
from .sandbox import Limits, Sandbox
from .sandbox_probe import tried_out
from .tool_calls import FORMATS, Call, Format, calls_in
from .tool_schema import schema_of
from .toolbox import LEAST, MOST_OF_A_TURN, Toolbox

_WHERE = "environment 'tools'"
_SHIPPED = ("calculator", "python")


def _whole(tool: Any) -> Any:
    """Tools are made in other processes, which may work elsewhere."""
    path, colon, name = str(tool).rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon and modules.is_file(path) else tool


def _listed(tools: Any) -> Any:
    return [_whole(each) for each in (tools if isinstance(tools, list) else [tools])]


def _known(tools: list[str]) -> list[str]:
    for tool in tools:
        if ":" not in tool and tool not in _SHIPPED:
            raise ValueError(
                f"there is no tool {tool!r}; those that ship are {' and '.join(_SHIPPED)}, and one of your own is "
                "given as FILE.py:NAME or MODULE:NAME"
            )
    return tools


class ToolsConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    tools: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed), AfterValidator(_known)]
    """`calculator`, `python`, and functions or classes of your own: FILE.py:NAME or MODULE:NAME."""
    format: Format = "hermes"
    """How the model writes a call: hermes (Qwen3, Hermes), qwen (Qwen3-Coder's XML), json (Llama 3) or python (Llama 4,
    Gemma)."""
    result_chars: Annotated[int, Field(ge=LEAST, le=MOST_OF_A_TURN)] = 4000
    """The most that is shown of what a call returns."""
    most_calls: Annotated[int, Field(ge=1, le=256)] = 64
    """In one trajectory; those above it are not run."""
    call_cost: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward for each call."""
    error_cost: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the reward for each call that is answered with an error, besides `call_cost`."""
    keep_state: bool = False
    """Tool python: what a call defines is there for the next one of the trajectory."""
    tool_timeout_s: Annotated[float, Field(ge=0.5)] = 5.0
    """Tool python: seconds that the code of one turn may take together; less than conversation.timeout_s."""
    memory_mib: int = 512
    """Tool python: MiB of address space of one process; of all together where a control group can be made."""
    unsafe_run_without_sandbox: bool = False
    """Tool python: run the code as it is, with all that you may do."""


@environment("tools")
class Tools:
    """Tools that the model calls: python, calculator, functions of your own. A turn without a call is the answer.

    It gives no reward but what calls cost: set a `reward` beside it. Calls that are malformed, or that fail, are
    answered with an error that the model reads; see docs/tools.md.

    Raises ConfigError for a tool that is not there, or of which no model could be told, and, with the tool python,
    where bubblewrap is missing or does not hold; SandboxError for a fault of the sandbox.
    """

    def __init__(self, config: ToolsConfig) -> None:
        self._config = config
        self.range = (0.0 - config.most_calls * (config.call_cost + config.error_cost), 0.0)
        self._python = Python(_sandbox(config), keep_state=config.keep_state) if "python" in config.tools else None
        self._sources = {source: self._source(source) for source in config.tools}
        self._schemas: dict[str, dict[str, Any]] = {}
        came_from = dict[str, str]()
        for source in config.tools:
            for name, function in self._sources[source].described.items():
                if name in came_from:
                    raise ConfigError(
                        f"{_WHERE}: two tools are called {name!r}, {came_from[name]} and {source}, and the model calls "
                        "them by name: rename one, or leave it out"
                    )
                came_from[name] = source
                self._schemas[name] = schema_of(function, name)
        self.tools = list(self._schemas.values())

    def start(self, task: Task, seed: int) -> str:
        if self._python is not None:
            self._python.new_trajectory()
        self._left = self._config.most_calls
        self._box = Toolbox(
            {name: tool for source in self._sources.values() for name, tool in source.make().items()},
            self._schemas,
            form=self._config.format,
            result_chars=self._config.result_chars,
        )
        return ""

    def step(self, action: str) -> Observation:
        if self._python is not None:
            self._python.new_turn()
        answers = self._box.answer(action, self._left)
        if answers is None:
            return Observation(done=True, text=self._misread(action))
        calls, errors = answers.counts["tool_calls"], answers.counts["tool_errors"]
        self._left -= int(calls)
        cost = calls * self._config.call_cost + errors * self._config.error_cost
        reward = 0.0 - cost if self.range[0] < 0 else None
        return Observation(text=answers.messages, reward=reward, counts=answers.counts)

    def _misread(self, turn: str) -> str:
        """For people: that what ended the trajectory reads as a call in another format."""
        parameters = {name: schema["function"]["parameters"] for name, schema in self._schemas.items()}
        for form in FORMATS:
            if any(isinstance(call, Call) and call.name in parameters for call in calls_in(turn, form, parameters)):
                return f"No call in format {self._config.format}, but one in format {form}: is `format: {form}` meant?"
        return ""

    def _source(self, named: str) -> _Source:
        if named == "calculator":
            return _functions({"calculator": calculator})
        if named == "python" and self._python is not None:
            return _functions({"python": self._python.python})
        path, _, name = named.rpartition(":")
        return _own(named_in(path, name, "tool:"), named)


@dataclass(frozen=True)
class _Source:
    described: Mapping[str, Callable[..., Any]]
    """By the name of each tool, what its schema is made of."""
    make: Callable[[], Mapping[str, Callable[..., Any]]]
    """The tools themselves, for one trajectory."""


def _functions(functions: Mapping[str, Callable[..., Any]]) -> _Source:
    return _Source(functions, lambda: functions)


def _own(thing: Any, named: str) -> _Source:
    """A function; or a class, of which each trajectory has an object; or an object: of both, the public methods."""
    if inspect.isroutine(thing):
        return _functions({thing.__name__: thing})
    kind = thing if inspect.isclass(thing) else type(thing)  # whose properties are not read
    methods = {
        name: getattr(thing, name)
        for name, _ in inspect.getmembers(kind, lambda each: inspect.isfunction(each) or inspect.ismethod(each))
        if not name.startswith("_")
    }
    if not methods:
        raise ConfigError(
            f"tool {named}: it is {shown(thing)}; name a function, or a class or an object whose public methods are "
            "tools"
        )
    if not inspect.isclass(thing):
        return _functions(methods)
    empty = inspect.Parameter.empty
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.default is empty and parameter.kind not in variable:
            raise ConfigError(
                f"tool {named}: each trajectory has an object of its own, made without arguments, and its __init__ "
                f"wants {parameter.name!r}: give it a default"
            )

    def make() -> Mapping[str, Callable[..., Any]]:
        made = thing()
        return {name: getattr(made, name) for name in methods}

    return _Source(methods, make)


def _sandbox(config: ToolsConfig) -> Sandbox:
    limits = Limits(timeout_s=config.tool_timeout_s, memory_mib=config.memory_mib, processes=8, output_kib=1024)
    return tried_out(limits, unsafe=config.unsafe_run_without_sandbox, where=_WHERE)
