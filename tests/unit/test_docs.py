"""What docs/ says can be done, done: its commands and samples run, and its tables are those of the code."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from rlkit import embedded, registry
from rlkit.cli import main
from rlkit.interfaces.declarations import (
    AdvantageDeclaration,
    EnvironmentDeclaration,
    LossDeclaration,
    RewardDeclaration,
)

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SMALL = ["batch.prompts_per_step=2", "batch.samples_per_prompt=2", "eval.problems=2", "steps=2"]
PRESETS = ("dr_grpo", "dapo", "gspo", "cispo", "rloo")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, content) of each fenced block, and of each command on a line of its own, in order."""
    text = (DOCS / page).read_text()
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$|^`(rlkit [^`\n]+)`$", text, re.DOTALL | re.MULTILINE):
        yield found[1] or "sh", found[2] or found[3]


@pytest.mark.parametrize("page", sorted(page.name for page in (DOCS / "studies").glob("*.md")))
def test_the_tables_of_a_study_are_its_files(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import study_tables

    text = (DOCS / "studies" / page).read_text()
    assert text.count("<!-- end -->") > 1
    assert study_tables.filled(DOCS / "studies" / page) == text, (
        f"run `python tools/study_tables.py docs/studies/{page}`"
    )


@pytest.fixture
def table_tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import config_table

    return config_table


def test_the_table_of_settings_is_the_code_s(table_tool: ModuleType) -> None:
    page = (DOCS / "configuration.md").read_text()
    assert table_tool.config_table() in page, "put the output of `python tools/config_table.py` into the page"


@pytest.mark.parametrize(
    ("page", "kind", "name"),
    [
        ("algorithms.md", "algorithms", "vimpo"),
        ("algorithms.md", "algorithms", "vimpo_auto"),
        ("algorithms.md", "algorithms", "grpo"),
        ("algorithms.md", "algorithms", "ppo"),
        ("configuration.md", "samplers", "vllm"),
        ("configuration.md", "samplers", "vllm_server"),
        ("configuration.md", "samplers", "transformers"),
        ("configuration.md", "trackers", "wandb"),
        ("tools.md", "environments", "tools"),
    ],
)
def test_the_tables_of_options_are_the_code_s(
    page: str, kind: registry.Kind, name: str, table_tool: ModuleType
) -> None:
    table = table_tool.options_table(kind, name)
    assert table in (DOCS / page).read_text(), f"put `python tools/config_table.py {kind} {name}` into {page}"


@pytest.mark.parametrize("name", PRESETS)
def test_a_descendant_of_grpo_differs_as_its_row_says(name: str) -> None:
    row = next(line for line in (DOCS / "algorithms.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    said = dict(re.findall(r"`(\w+): ([^`]+)`", row))
    base, own = (registry.find("algorithms", each).options().model_dump() for each in ("grpo", name))
    assert {key: json.loads(value) if value[0].isdigit() else value for key, value in said.items()} == {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in own.items()
        if value != base[key]
    }


@pytest.mark.parametrize(
    ("page", "declarations"),
    [
        ("writing-an-algorithm.md", [AdvantageDeclaration, LossDeclaration]),
        ("writing-a-reward.md", [RewardDeclaration]),
        ("writing-an-environment.md", [EnvironmentDeclaration]),
    ],
)
def test_the_tables_of_declarations_name_the_code_s(page: str, declarations: list[Any]) -> None:
    table = (DOCS / page).read_text().partition("| name | who may carry it |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted({each.name for kind in declarations for each in dataclasses.fields(kind)})


def keys() -> set[str]:
    """Every config key, sections and the options of the plugins that ship among them."""
    places = {"algorithms": "algo", "rewards": "reward", "samplers": "sampler"}
    found = {
        f"{places[kind]}.{key}" for kind in places for name in registry.names(kind) for key in option_keys(kind, name)
    }
    import config_table

    found |= set(re.findall(r"^\| `([\w.]+)`", config_table.config_table(), re.MULTILINE))
    return found | {".".join(key.split(".")[:n]) for key in found for n in range(1, key.count(".") + 1)}


def option_keys(kind: registry.Kind, name: str) -> list[str]:
    import config_table

    return re.findall(r"^\| `([\w.]+)`", config_table.options_table(kind, name), re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "column"),
    [
        ("from-trl.md", 2),
        ("from-verl.md", 2),
        ("from-openrlhf.md", 2),
        ("metrics.md", 5),
        ("learning-rates.md", None),
        ("troubleshooting.md", None),
    ],
)
def test_the_keys_that_a_page_names_are_there(page: str, column: int | None, table_tool: ModuleType) -> None:
    text = (DOCS / page).read_text()
    if column is not None:
        text = "\n".join(line.split("|")[column] for line in text.splitlines() if line.startswith("|"))
    known = keys()
    sections = {key.split(".")[0] for key in known}
    named = {
        found[1] for found in re.finditer(r"[`( ]([a-z_]+(?:\.[a-z_]+)+)", text) if found[1].split(".")[0] in sections
    }
    assert len(named) > 5
    assert sorted(named - known) == []


def test_every_plugin_that_ships_and_its_options_are_named() -> None:
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    for kind in registry.KINDS:
        for name in registry.names(kind):
            plugin = registry.find(kind, name)
            if not plugin.distribution.startswith("rlkit-rlvr "):
                continue
            for word in (name, *plugin.options.model_fields):
                assert f"`{word}" in text, f"{kind} {name}: {word} is not in docs/"


@pytest.mark.parametrize(
    "page",
    [
        *sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")),
        "../README.md",
        "../CONTRIBUTING.md",
        "../SECURITY.md",
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    here = DOCS / page
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", here.read_text()):
        there = here.parent / target if target else here
        assert there.exists(), f"{page} links to {target}, which is not there"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with what the pages take for granted; plugins loaded there are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
    shutil.copytree(embedded.resolve("embedded:xs"), "my-base-model")
    shutil.copytree(embedded.resolve("embedded:xs"), "smollm2")
    Path("smollm2", "chat_template.jinja").write_text("{{ messages[-1].content }}")
    Path("words.txt").write_text("1 2 3\n")
    rows = [{"question": f"{a}+{b}", "answer": str(a + b)} for a in range(10, 13) for b in range(20, 23)]
    for name in ("train", "test"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        "getting-started.md",
        "own-data.md",
        "around-the-algorithm.md",
        "reading-a-run.md",
        pytest.param("python.md", marks=pytest.mark.slow),
        "configuration.md",
        "exit-codes.md",
        "from-trl.md",
        "from-verl.md",
        "from-openrlhf.md",
        "learning-rates.md",
        "troubleshooting.md",
        "evaluation.md",
        "sweeps.md",
        pytest.param("replaying.md", marks=pytest.mark.slow),
        "writing-a-reward.md",
        pytest.param("writing-an-environment.md", marks=pytest.mark.slow),
        "writing-an-algorithm.md",
        "checking-a-plugin.md",
        "../README.md",
    ],
)
def test_the_commands_and_samples_of_a_page_work(page: str, place: Path) -> None:
    """Runs are made small. A python block that imports is run; one that begins with a file's name becomes the file."""
    todo = []
    for language, content in blocks(page):
        if name := re.match(r"# ([\w-]+\.(py|yaml))\n", content):
            Path(name[1]).write_text(content)
        elif language == "sh":
            todo += [line for line in content.splitlines() if line.startswith("rlkit ")]
        elif language == "python" and "import " in content:
            todo.append(content)
    assert todo
    for each in todo:
        if each.startswith("rlkit "):
            run(shlex.split(each, comments=True)[1:])
        else:
            exec(each, {})
    if list(place.glob("test_*.py")):
        done = subprocess.run([sys.executable, "-m", "pytest", "-q"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def run(arguments: list[str]) -> None:
    if arguments[0] == "run":
        for option in ("--steps", "--batch"):
            if option in arguments:
                del arguments[arguments.index(option) : arguments.index(option) + 2]
        arguments += [part for setting in SMALL for part in ("-s", setting)]
        if "--resume" in arguments:
            arguments += ["-s", "steps=3"]
        if "--fork" in arguments:
            arguments += ["-s", "steps=4"]
        # What needs a hub, a server or a second process is planned only: other tests do it.
        if re.search(r"(mine|small)\.yaml|vllm|wandb|--nproc", " ".join(arguments)):
            arguments.append("--dry-run")
    if arguments[0] == "sweep" and "--wandb-sweep" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"rlkit {shlex.join(arguments)}\n{result.output}"
