"""What a chat template is told of a function, and which functions no model could be told of."""

from __future__ import annotations

import datetime
import enum
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, Optional

import pytest
from rlkit_rewards.tool_schema import schema_of

from rlkit.errors import ConfigError


def search(query: str, k: int = 3) -> list[str]:
    """Searches the library.

    More than one line is fine.

    Args:
        query: What to look for,
            in a few words.
        k: How many results.

    Returns:
        The titles.
    """
    return [query] * k


def test_the_schema_of_a_function() -> None:
    assert schema_of(search) == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Searches the library.\n\nMore than one line is fine.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "What to look for, in a few words."},
                    "k": {"type": "integer", "description": "How many results."},
                },
                "required": ["query"],
            },
            "return": {"type": "array", "items": {"type": "string"}, "description": "The titles."},
        },
    }


def no_arguments() -> None:
    """Tells the time."""


def every_hint(
    a: int,
    b: float | None,
    c: Literal["x", "y"],
    d: dict[str, list[int]],
    e: tuple[int, str],
    f: int | str,
    g: Any,
    h: Optional[bool],  # noqa: UP045
    i: list[int] | dict[str, int],
    j: list,  # type: ignore[type-arg]
    k: dict,  # type: ignore[type-arg]
    m: Literal[1, "x"] = 1,
) -> dict[str, Any]:
    """All that can be said.

    Args:
        a: A.
        b: B.
        c: C.
        d: D.
        e: E.
        f: F.
        g: G.
        h: H.
        i: I.
        j: J.
        k: K.
        m: M.
    """
    return {}


class Box:
    def look(self, at: str) -> str:
        """Looks.

        Args:
            at: Where.
        """
        return at


@pytest.mark.parametrize("function", [search, no_arguments, every_hint, Box.look, Box().look])
def test_it_is_what_models_have_been_trained_on(function: Callable[..., Any]) -> None:
    from transformers.utils import get_json_schema

    assert schema_of(function) == get_json_schema(function)


def test_a_docstring_may_give_types_too() -> None:
    def look(at: str) -> str:
        """Looks.

        Args:
            at (str): Where: anywhere.
        """
        return at

    assert schema_of(look)["function"]["parameters"]["properties"]["at"]["description"] == "Where: anywhere."


class Colour(enum.Enum):
    RED = 1


def hinted(hint: Any) -> Callable[..., Any]:
    def tool(at: Any) -> None:
        """Looks.

        Args:
            at: Where.
        """

    tool.__annotations__["at"] = hint
    return tool


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (datetime.date, "the hint date: no JSON schema can say that; write str, int, float, bool, list"),
        (Colour, "the hint Colour: no JSON schema can say that"),
        (set[int], r"the hint set\[int\]: no JSON schema can say that"),
        (Callable[[int], int], "no JSON schema can say that"),
        (list[bytes], r"the hint list\[bytes\]: no JSON schema can say that"),
        (dict[int, str], r"the keys of a JSON object are texts; write dict\[str, \.\.\.\]"),
        (tuple[int, ...], r"a tuple of any length; write list\[\.\.\.\]"),
        (Literal[b"x"], "a Literal of other than texts and numbers; write the texts"),
        ("Nowhere", "its type hints cannot be resolved: name 'Nowhere' is not defined. Import what they name"),
    ],
)
def test_hints_that_no_schema_can_say(hint: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^tool 'tool', .*test_tool_schema.*{said}"):
        schema_of(hinted(hint))


def without_hint(query, k: int = 3):  # type: ignore[no-untyped-def]
    """Searches.

    Args:
        query: What.
        k: How many.
    """


def without_docstring(query: str) -> None: ...


def without_argument(query: str, k: int) -> None:
    """Searches.

    Args:
        query: What.
    """


def one_by_one(query: str) -> Iterator[str]:
    """Searches.

    Args:
        query: What.
    """
    yield query


async def one_by_one_later(query: str) -> AsyncIterator[str]:
    """Searches.

    Args:
        query: What.
    """
    yield query


def with_many(*queries: str) -> None:
    """Searches.

    Args:
        queries: What.
    """


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (without_hint, "its parameter 'query' has no type hint, .*: write it, as in `query: str`"),
        (without_docstring, 'it has no docstring, .*: write one, with a line "name: what it is" under "Args:"'),
        (without_argument, 'its parameter \'k\' is not in the docstring: write a line "k: what it is" under "Args:"'),
        (with_many, r"its parameter 'queries' cannot be given by name, .*: write each parameter out, without \* or /"),
        (one_by_one, "it is a generator, and the model reads what a tool returns: return it as a whole"),
        (one_by_one_later, "it is a generator"),
        (lambda x: x, "by its name, and this has none: write it as a `def`"),
        (functools.partial(search, k=2), "by its name, and this has none: write it as a `def`"),
    ],
)
def test_functions_of_which_no_model_could_be_told(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        schema_of(function)
