from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, Field

from rlkit import registry
from rlkit.errors import ConfigError, origin
from rlkit.interfaces.rewards import Sample


class Config(BaseModel):
    scale: float = 1.0


def test_a_name_registered_twice_names_both_places() -> None:
    @registry.reward("test_registry_twice")
    def first(samples: Sequence[Sample]) -> list[float]:
        return []

    with pytest.raises(ConfigError) as error:

        @registry.reward("test_registry_twice")
        def second(samples: Sequence[Sample]) -> list[float]:
            return []

    assert "first" in str(error.value)
    assert "second" in str(error.value)
    assert "test_registry.py" in str(error.value)
    assert registry.find("rewards", "test_registry_twice").factory is first


def test_a_name_of_a_built_in_plugin_is_taken_before_that_is_imported() -> None:
    with pytest.raises(ConfigError, match=r"registered twice.*rlkit_algorithms\.ppo"):
        registry.algorithm("ppo")(lambda: None)


def test_two_functions_of_one_name_in_one_file_are_two() -> None:
    def twice(samples: Sequence[Sample]) -> list[float]:
        return []

    registry.reward("test_registry_lines")(twice)

    def twice(samples: Sequence[Sample]) -> list[float]:  # type: ignore[no-redef]
        return [1.0]

    with pytest.raises(ConfigError, match="registered twice"):
        registry.reward("test_registry_lines")(twice)


def test_a_notebooks_cell_can_be_run_again() -> None:
    for value in (1.0, 2.0):

        def mine(samples: Sequence[Sample], value: float = value) -> list[float]:
            return [value]

        mine.__module__ = "__main__"
        mine.__code__ = mine.__code__.replace(co_firstlineno=int(value))
        registry.reward("test_registry_notebook")(mine)
    assert registry.build("rewards", "test_registry_notebook", {})([]) == [2.0]


def test_registering_the_same_function_again_is_harmless() -> None:
    def same(samples: Sequence[Sample]) -> list[float]:
        return []

    registry.reward("test_registry_same")(same)
    registry.reward("test_registry_same")(same)


def test_options_are_the_keyword_only_parameters() -> None:
    @registry.reward("test_registry_options")
    def scaled(samples: Sequence[Sample], *, factor: float = 2.0) -> list[float]:
        """Scaled.

        More.
        """
        return [factor for _ in samples]

    assert registry.build("rewards", "test_registry_options", {"factor": "3"})([None]) == [3.0]
    assert registry.build("rewards", "test_registry_options", {})([None]) == [2.0]
    assert registry.find("rewards", "test_registry_options").summary == "Scaled."
    with pytest.raises(ConfigError, match="did you mean 'factor'"):
        registry.build("rewards", "test_registry_options", {"factr": 3})


def test_a_class_is_built_with_its_options() -> None:
    @registry.reward("test_registry_class")
    class Constant:
        def __init__(self, *, value: float) -> None:
            self.value = value

        def __call__(self, samples: Sequence[Sample]) -> list[float]:
            return [self.value for _ in samples]

    assert registry.build("rewards", "test_registry_class", {"value": 0.5})([None]) == [0.5]
    with pytest.raises(ConfigError, match=r"'reward\.value' is missing"):
        registry.build("rewards", "test_registry_class", {})


def test_a_file_is_loaded_once_and_named_as_the_origin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from rlkit import reward\n\nreward('test_registry_file')(lambda samples: [1.0] * len(samples))\n")
    registry.load([str(file)])
    registry.load([str(file)])
    assert registry.find("rewards", "test_registry_file").distribution == str(file)


def test_names_import_nothing() -> None:
    assert {"vimpo", "grpo", "ppo"} <= set(registry.names("algorithms"))


def test_a_config_model_that_says_nothing_of_unknown_options_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))

    @registry.algorithm("test_registry_plain")
    def plain(config: Config) -> Config:
        return config

    assert isinstance(registry.build("algorithms", "test_registry_plain", {"scale": 2}), Config)
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        registry.build("algorithms", "test_registry_plain", {"scle": 2})


class Sorted(BaseModel):
    model_config = {"populate_by_name": True}
    order: str = Field("up", alias="kind")


class Several(BaseModel):
    share: float = Field(1.0, validation_alias=AliasChoices("share", AliasPath("weight", 0)))


def sort(*, kind: str = "up") -> None: ...


def scaled(samples: Sequence[Sample], *, weight: float = 1.0) -> list[float]:
    return [weight for _ in samples]


class Scaled:
    def __init__(self, *, weight: float = 1.0) -> None: ...


def by_alias(config: Sorted) -> None: ...


def by_path(config: Several) -> None: ...


KIND = "it has an option 'kind', which no config could set, for there 'kind' names the plugin. Rename the option"
WEIGHT = (
    "it has an option 'weight', which no config could set, for there 'weight' is the reward's share in the sum of "
    "several. Rename the option"
)


@pytest.mark.parametrize(
    ("kind", "factory", "said"),
    [
        *((kind, sort, KIND) for kind in registry.KINDS),
        *((kind, by_alias, KIND) for kind in registry.KINDS),
        ("rewards", scaled, WEIGHT),
        ("rewards", Scaled, WEIGHT),
        ("rewards", by_path, WEIGHT),
    ],
)
def test_an_option_that_no_config_could_set_is_refused(
    kind: registry.Kind, factory: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    registry.register(kind, "test_registry_taken")(factory)
    with pytest.raises(ConfigError) as caught:
        registry.validate_options(registry.find(kind, "test_registry_taken"), {}, "here")
    assert said in str(caught.value)
    assert f"'test_registry_taken', test_registry:{factory.__name__} (" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", [kind for kind in registry.KINDS if kind != "rewards"])
def test_a_weight_is_a_name_like_others_where_nothing_is_summed(
    kind: registry.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    registry.register(kind, "test_registry_weight")(Scaled)
    assert registry.validate_options(registry.find(kind, "test_registry_weight"), {"weight": 2}, "here").weight == 2


def test_the_origin_of_an_object_is_its_class_s_and_of_a_partial_its_function_s() -> None:
    assert origin(Config()).startswith("test_registry:Config (")
    assert re.fullmatch(r"test_registry:sort \(.*test_registry\.py:\d+\)", origin(functools.partial(sort, kind="down")))


def test_what_a_package_registers_is_not_that_of_the_file_that_imports_it(tmp_path: Path) -> None:
    """In a process of its own, where nothing has been imported yet."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlkit import advantage\nimport rlkit_algorithms.advantages\n@advantage('mine')\ndef mine(): ...\n"
    )
    code = (
        "from rlkit import registry\n"
        f"registry.load([{str(file)!r}])\n"
        f"print([p.name for p in registry.of({str(file)!r})], registry.find('advantages', 'group').homes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mine'] ('rlkit_algorithms.advantages',)"
