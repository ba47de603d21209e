"""Where the keys of a YAML file stand, so that what is wrong with one points to its line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from rlkit.errors import ConfigError, SettingsError


class Places:
    """The lines of a file's keys; a key that was set elsewhere since then has none."""

    def __init__(self, file: str = "", text: str = "") -> None:
        """Of YAML that parses. ConfigError for a key that stands twice in one place, where the later would count."""
        self._file = file
        self._lines: dict[tuple[str, ...], int] = {}
        self._elsewhere: set[tuple[str, ...]] = set()
        self._walk(yaml.compose(text, Loader=yaml.SafeLoader), (), ())

    def __eq__(self, other: object) -> bool:
        """Two configs of the same settings are equal, wherever they were written."""
        return isinstance(other, Places)

    __hash__ = None  # type: ignore[assignment]

    def set_elsewhere(self, key: str) -> None:
        """What stands in the file at this key no longer counts."""
        self._elsewhere.add(_plain([key]))

    def line(self, path: Sequence[str]) -> str:
        """`mine.yaml:12`, for this key itself; "" where it stands in no file."""
        line = self._lines.get(_plain(path))
        return f"{self._file}:{line}" if line is not None and not self._is_elsewhere(_plain(path)) else ""

    def point(self, error: SettingsError, in_file: bool = False) -> SettingsError:
        """The error, each mistake with the line of its key, or of the section in which the key is missing; in order.
        What stands on no line comes last: a key of a wrong name may be all that is wrong.

        in_file: what stands on no line is the file's as well, such as a key that it lacks.
        """
        found = []
        for path, said in error.mistakes:
            line = self._nearest(_plain(path), in_file)
            place = f"{self._file}:{line}: " if line else f"{self._file}: " if in_file and line == 0 else ""
            found.append((line or math.inf, (path, place + said)))
        return SettingsError([mistake for _, mistake in sorted(found, key=lambda each: each[0])])

    def _nearest(self, path: tuple[str, ...], in_file: bool) -> int | None:
        """The line of a key, or of what it would stand in. 0: the top of the file; None: it is not of the file."""
        if not self._file or self._is_elsewhere(path):
            return None
        if path not in self._lines and any(other[: len(path)] == path for other in self._elsewhere):
            return None  # a section that is not of the file, of which a key was set elsewhere
        for end in range(len(path), 0, -1):
            if line := self._lines.get(path[:end]):
                return line
            if path[end - 1].isdigit() and not in_file:  # one of a list that the file has not
                return None
        return 0

    def _is_elsewhere(self, path: tuple[str, ...]) -> bool:
        return any(path[: len(other)] == other for other in self._elsewhere)

    def _walk(self, node: Any, path: tuple[str, ...], around: tuple[Any, ...]) -> None:
        if any(node is each for each in around):  # an alias within its own anchor
            return
        for name, line, inner in self._children(node):
            # A merge key's are of the mapping itself, and what that says of its own comes first.
            here = path if name == "<<" else _plain([*path, name])
            if here != path:
                self._lines.setdefault(here, line)
            self._walk(inner, here, (*around, node))

    def _children(self, node: Any) -> Iterator[tuple[str, int, Any]]:
        if isinstance(node, yaml.SequenceNode):
            yield from ((str(i), each.start_mark.line + 1, each) for i, each in enumerate(node.value))
        if not isinstance(node, yaml.MappingNode):
            return
        seen: dict[str, int] = {}
        for key, inner in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen and name != "<<":
                raise ConfigError(
                    f"{self._file}:{line}: {name!r} stands on line {seen[name]} already: leave one of them out"
                )
            seen[name] = line
            yield name, line, inner


def _plain(path: Sequence[str]) -> tuple[str, ...]:
    """The first of a list is called as one that stands alone, since a list of one may be written without brackets."""
    return tuple(part for part in ".".join(path).split(".") if part and part != "0")
