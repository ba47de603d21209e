"""rlkit never imports its plugins, its modules never import each other in a circle, and light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlkit

ROOT = Path(rlkit.__file__).parent
HEAVY = {"torch", "transformers", "vllm", "deepspeed", "wandb", "datasets", "peft", "matplotlib"}


def imports_of(path: Path, top_level_only: bool) -> set[str]:
    """Modules that a file imports; `if TYPE_CHECKING` blocks do not count."""
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if not (inside and top_level_only):
                if isinstance(child, ast.Import):
                    found.update(alias.name for alias in child.names)
                elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                    found.add(child.module)
                    found.update(f"{child.module}.{alias.name}" for alias in child.names)
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(path.read_text()), inside=False)
    return found


FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


@pytest.mark.parametrize("module", sorted(FILES))
def test_rlkit_never_imports_its_plugins(module: str) -> None:
    imported = imports_of(FILES[module], top_level_only=False)
    assert not [
        name
        for name in imported
        if name.split(".")[0] in {"rlkit_algorithms", "rlkit_rewards", "algorithms", "rewards"}
    ]


def test_no_import_cycle() -> None:
    graph = {module: imports_of(path, top_level_only=True) & FILES.keys() - {module} for module, path in FILES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        (["config", "ls"], set()),
        (["config", "show", "embedded"], set()),
        (["config", "schema"], {"torch"}),
        (["list", "rewards", "math"], set()),
        (["config", "validate", "embedded"], {"torch"}),
        (["run", "embedded_xs", "--dry-run"], {"torch", "transformers"}),
    ],
)
def test_light_commands_import_nothing_heavy(arguments: list[str], allowed: set[str]) -> None:
    script = (
        "import sys\nfrom rlkit.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout.rpartition("HEAVY ")[2]))
    assert loaded <= allowed
