"""Rewards as users have them: any callable that Python knows, and files that import what lies beside them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit import modules, registry
from rlkit.config import ScoringConfig
from rlkit.errors import ConfigError
from rlkit.interfaces.rewards import RewardResult, Sample, SampleKey
from rlkit.scoring import Scorer, WeightedReward, score

CALLABLES = """
    from __future__ import annotations

    import functools
    from typing import TYPE_CHECKING

    import numpy as np

    from rlkit import reward

    if TYPE_CHECKING:
        from nowhere import Sample, Unknown

    def scaled(samples: Sequence[Sample], *, scale: float) -> list[Unknown]:
        "The gold, scaled."
        return [scale * (s.answer in s.response) for s in samples]

    scaled.range = (0.0, 9.0)

    class Judge:
        "Judges."
        range = (-1.0, 1.0)

        def __init__(self, sign=1):
            self.sign = sign

        def __call__(self, samples: list[Sample], *, low: float = 0.0) -> list[float]:
            return [self.sign * float(s.answer in s.response) or low for s in samples]

        def method(self, samples: Unknown):
            return [0.25 for _ in samples]

    class Made:
        def __init__(self, *, value: float, other: str = "x"):
            self.value = value

        def __call__(self, samples):
            return [self.value for _ in samples]

    class Asks:
        async def __call__(self, samples):
            return [0.5 for _ in samples]

    reward("users_partial")(functools.partial(scaled, scale=0.5))
    reward("users_partial_2")(functools.partial(functools.partial(scaled), scale=2.0))
    reward("users_instance")(Judge())
    reward("users_method")(Judge().method)
    reward("users_made")(functools.partial(Made, value=0.75))
    reward("users_ufunc")(np.frompyfunc(lambda s: float(s.answer in s.response), 1, 1))
    reward("users_vectorized")(np.vectorize(lambda s: s.answer in s.response))
    reward("users_async")(Asks())
    reward("users_typed")(scaled)
"""


def sample(response: str, answer: str = "7", **more: Any) -> Sample:
    key = SampleKey("p", 0, 0, 0)
    return Sample(key=key, prompt="3+4=", response=response, tokens=[1], answer=answer, truncated=False, **more)


def write(folder: Path, **files: str) -> Path:
    """`__` in a name stands for a folder's slash."""
    for name, text in files.items():
        file = folder / (name.replace("_in_", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return folder


def scored(plugin: Path, kind: str, *samples: Sample, **options: Any) -> list[RewardResult]:
    """In a worker process."""
    with Scorer([WeightedReward(kind, options)], [str(plugin)], ScoringConfig(workers=1)) as scorer:
        return scorer.score(samples or [sample("so 7"), sample("no")])


@pytest.fixture(scope="module")
def callables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("callables"), callables=CALLABLES) / "callables.py"


@pytest.mark.parametrize(
    ("name", "options", "expected", "declared"),
    [
        ("users_partial", {}, [0.5, 0.0], (0.0, 9.0)),
        ("users_partial", {"scale": 0.25}, [0.25, 0.0], (0.0, 9.0)),
        ("users_partial_2", {}, [2.0, 0.0], (0.0, 9.0)),
        ("users_instance", {}, [1.0, 0.0], (-1.0, 1.0)),
        ("users_instance", {"low": -0.5}, [1.0, -0.5], (-1.0, 1.0)),
        ("users_method", {}, [0.25, 0.25], None),
        ("users_made", {}, [0.75, 0.75], None),
        ("users_made", {"value": 0.5}, [0.5, 0.5], None),
        ("users_ufunc", {}, [1.0, 0.0], None),
        ("users_vectorized", {}, [1.0, 0.0], None),
        ("users_async", {}, [0.5, 0.5], None),
        ("users_typed", {"scale": 3}, [3.0, 0.0], (0.0, 9.0)),
    ],
)
def test_any_callable_is_a_reward(
    callables: Path, name: str, options: dict[str, Any], expected: list[float], declared: Any
) -> None:
    with Scorer([WeightedReward(name, options)], [str(callables)], ScoringConfig(workers=1)) as scorer:
        assert scorer.range == declared
        assert [r.value for r in scorer.score([sample("so 7"), sample("no")])] == expected


def test_what_is_listed_of_a_callable_is_what_its_author_wrote(callables: Path) -> None:
    registry.load([str(callables)])
    assert registry.find("rewards", "users_partial").summary == "The gold, scaled."
    assert registry.find("rewards", "users_instance").summary == "Judges."
    assert "callables.py" in registry.find("rewards", "users_ufunc").origin
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        registry.build("rewards", "users_partial", {"sclae": 1.0})


def test_two_objects_of_one_class_under_one_name_are_two() -> None:
    registry.reward("users_twice")(np.frompyfunc(len, 1, 1))
    with pytest.raises(ConfigError, match=r"registered twice.*test_users_code\.py:\d+"):
        registry.reward("users_twice")(np.frompyfunc(len, 1, 1))


def test_an_option_whose_annotation_is_known_to_type_checkers_alone_is_named(tmp_path: Path) -> None:
    text = """
        from __future__ import annotations
        from rlkit import reward
        @reward("users_unresolved")
        def unresolved(samples: AlsoUnknown, *, how: Unknown = None, much: float = 1.0): return [much for _ in samples]
    """
    registry.load([str(write(tmp_path, unresolved=text) / "unresolved.py")])
    with pytest.raises(ConfigError, match=r"unresolved\.py.*option 'how' \(Unknown\).*TYPE_CHECKING"):
        registry.build("rewards", "users_unresolved", {})


@pytest.mark.parametrize(
    ("value", "number", "correct"),
    [
        (np.isclose(1, 1), 1.0, True),
        (np.float32(0.5), 0.5, False),
        (np.int64(2), 2.0, True),
        (np.array(0.25), 0.25, False),
        (torch.tensor(1.0), 1.0, True),
        (torch.tensor(True), 1.0, True),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5, False),
        (Decimal("0.5"), 0.5, False),
        (RewardResult(value=np.bool_(True), parts={"a": torch.tensor(2)}), 1.0, True),  # type: ignore[arg-type,dict-item]
        (RewardResult(value=0.5, correct=np.bool_(True)), 0.5, True),  # type: ignore[arg-type]
        (RewardResult(value=np.float16(1), token_values=[torch.tensor(1.0)]), 1.0, True),  # type: ignore[list-item,arg-type]
    ],
)
def test_numbers_of_any_library_are_numbers(value: Any, number: float, correct: bool) -> None:
    (result,) = score(lambda samples: [value], "mine", [sample("7")])
    assert (result.value, result.correct) == (number, correct)
    assert type(result.value) is float
    assert type(result.correct) is bool
    assert all(type(part) in (int, float) for part in result.parts.values())


@pytest.mark.parametrize("returned", [np.array([1.0, 0.0]), torch.tensor([1.0, 0.0]), (np.True_, np.False_)])
def test_an_array_with_one_result_per_sample_is_a_list_of_them(returned: Any) -> None:
    assert [r.value for r in score(lambda samples: returned, "mine", [sample("7"), sample("8")])] == [1.0, 0.0]


# Files and their neighbours


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What files bring along stays in no other test's way."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("users_"):
            del sys.modules[name]
    sys.path[:] = path


RIGHT = """
    def right(completions, answer, **kwargs):
        {lazy}
        return [float(last(c) == a) for c, a in zip(completions, answer)]
"""
LAST = "def last(text): return text.split()[-1]"


def foreign(path: Path | str) -> list[float | None]:
    options = {"path": str(path), "name": "right"}
    with Scorer([WeightedReward("function", options)], [], ScoringConfig(workers=1)) as scorer:
        return [r.value for r in scorer.score([sample("so 7"), sample("no")])]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("where", "imports"),
    [
        ("rewards", "from users_helpers import last"),
        ("sub_in_rewards", "from users_helpers import last"),
        ("users_pkg_in_rewards", "from .users_helpers import last"),
        ("users_pkg_in_rewards", "from users_helpers import last"),
        ("users_pkg_in_rewards", "from users_pkg.users_helpers import last"),
        ("users_pkg_in_deep_in_rewards", "from ..users_helpers import last"),
        ("not-a-name_in_rewards", "from users_helpers import last"),
    ],
)
def test_a_reward_file_imports_its_neighbours(tmp_path: Path, where: str, imports: str, lazy: bool) -> None:
    body = RIGHT.format(lazy=imports) if lazy else imports + "\n" + textwrap.dedent(RIGHT.format(lazy=""))
    folder = where.rpartition("_in_")[0]
    files = {where: body}
    if folder.startswith("users_pkg"):
        files |= {f"{folder}_in___init__": "", "users_pkg_in___init__": "", "users_pkg_in_users_helpers": LAST}
    else:
        files |= {f"{folder}_in_users_helpers" if folder else "users_helpers": LAST}
    write(tmp_path, **files)
    assert foreign(tmp_path / (where.replace("_in_", "/") + ".py")) == [1.0, 0.0]


def test_a_module_is_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "from .users_helpers import last\n" + textwrap.dedent(RIGHT.format(lazy=""))
    write(
        tmp_path, users_pkg_in_rewards=body, users_pkg_in_users_helpers=LAST, users_pkg_in___init__="", users_one=LAST
    )
    write(tmp_path, users_flat="from users_one import last\n" + textwrap.dedent(RIGHT.format(lazy="")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert foreign("users_pkg.rewards") == [1.0, 0.0]
    assert foreign("users_flat") == [1.0, 0.0]
    with pytest.raises(ConfigError, match=r"module 'users_pkg\.other' does not exist.*working directory"):
        foreign("users_pkg.other")


def test_files_and_neighbours_of_one_name_do_not_collide(tmp_path: Path) -> None:
    parts = []
    for name, value in (("a", 1.0), ("b", 0.5)):
        write(tmp_path / name, rewards="from users_common import VALUE\ndef f(completions, **kwargs): return [VALUE]")
        write(tmp_path / name, users_common=f"VALUE = {value}")
        parts.append(WeightedReward("function", {"path": str(tmp_path / name / "rewards.py"), "name": "f"}))
    for name, value in (("c", 0.25), ("d", 0.125)):
        body = "from . import users_common\ndef f(completions, **kwargs): return [users_common.VALUE]"
        write(tmp_path / name, users_pkg_in___init__="", users_pkg_in_rewards=body)
        write(tmp_path / name, users_pkg_in_users_common=f"VALUE = {value}")
        parts.append(
            WeightedReward("function", {"path": str(tmp_path / name / "users_pkg" / "rewards.py"), "name": "f"})
        )
    with Scorer(parts, [], ScoringConfig(workers=1)) as scorer:
        (result,) = scorer.score([sample("7")])
    assert list(result.parts.values()) == [1.0, 0.5, 0.25, 0.125]


def test_a_plugin_file_imports_its_neighbours(tmp_path: Path) -> None:
    text = """
        from {dot}users_helpers import last
        from rlkit import reward
        @reward("users_{name}")
        def mine(samples): return [float(last(s.response) == s.answer) for s in samples]
    """
    write(tmp_path, mine=text.format(dot="", name="plain"), users_helpers=LAST)
    # Its package imports it as well: it is one plugin all the same.
    write(tmp_path, users_pkg_in___init__="from .mine import mine", users_pkg_in_users_helpers=LAST)
    write(tmp_path, users_pkg_in_mine=text.format(dot=".", name="packed"))
    assert [r.value for r in scored(tmp_path / "mine.py", "users_plain")] == [1.0, 0.0]
    assert [r.value for r in scored(tmp_path / "users_pkg" / "mine.py", "users_packed")] == [1.0, 0.0]


def test_a_neighbour_that_registers_comes_along(tmp_path: Path) -> None:
    neighbour = "from rlkit import reward\nreward('users_beside')(lambda samples: [0.5 for _ in samples])"
    write(tmp_path, mine="import users_neighbour", users_neighbour=neighbour)
    assert scored(tmp_path / "mine.py", "users_beside")[0].value == 0.5


def test_neighbours_hide_no_library(tmp_path: Path) -> None:
    write(tmp_path, mine="import users_helpers", users_helpers="", colorsys="raise SystemExit('the wrong one')")
    sys.modules.pop("colorsys", None)
    modules.load(str(tmp_path / "mine.py"), "plugin")
    import colorsys

    assert colorsys.__file__ is not None
    assert not colorsys.__file__.startswith(str(tmp_path))


def test_in_the_trainer_too_by_the_command_line(tmp_path: Path) -> None:
    text = """
        from users_helpers import last
        from rlkit import reward
        @reward("users_here")
        def here(samples):
            from users_later import ONE
            return [ONE * float(last(s.response) == s.answer) for s in samples]
        here.in_process = True
    """
    write(tmp_path, mine=text, users_helpers=LAST, users_later="ONE = 1.0")
    (tmp_path / "rows.jsonl").write_text('{"response": "so 7", "answer": "7"}\n')
    said = subprocess.run(
        [sys.executable, "-m", "rlkit", "verify", "rows.jsonl", "--reward", "users_here", "--plugin", "mine.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "users_here: 1 correct" in said.stdout
