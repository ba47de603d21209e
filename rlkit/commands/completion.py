"""What a shell offers after a TAB: presets, keys and their values, plugins, runs. Imports no plugin, and no torch.

`_RLKIT_COMPLETE=bash_source rlkit` prints what makes it known to bash; zsh_source and fish_source likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from rlkit import config as configs
from rlkit import registry
from rlkit.config.keys import LISTS, PLUGINS, SHORT, Key, keys
from rlkit.config.run import RunConfig

Items = list[CompletionItem[str]]
Complete = Callable[[click.Context, click.Parameter, str], Items]


def presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The presets, and files."""
    said = {name: text.partition("\n")[0].lstrip("# ") for name, text in configs.presets().items()}
    return [*_files(incomplete), *_starting(incomplete, said)]


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """KEY=, and then the values that are words."""
    known = _keys()
    name, equals, _ = incomplete.partition("=")
    if not equals:
        return _starting(incomplete, {f"{key}=": each.meaning for key, each in known.items()})
    return _starting(incomplete, (f"{name}={choice}" for choice in _values(known.get(name))))


def config_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """A preset or a file first, then KEY=VALUE."""
    first = presets(ctx, param, incomplete) if not ctx.params.get(param.name or "") else []
    return [*first, *settings(ctx, param, incomplete)]


def presets_and_keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return [item for item in presets(ctx, param, incomplete) if item.type == "plain"] + _starting(
        incomplete, {name: key.meaning for name, key in _keys().items()}
    )


def plugins(kind: registry.Kind, several: bool = False) -> Complete:
    """The names of a kind; several: with commas between."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
        before = incomplete.rpartition(",")[0] if several else ""
        names = (f"{before},{name}" if before else name for name in registry.names(kind))
        return _starting(incomplete, names)

    return complete


def of_its_kind(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The names of the kind that the word before says."""
    return _starting(incomplete, registry.names(ctx.params["kind"]) if ctx.params.get("kind") else ())


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Folders of runs and sweeps: those in runs/, or beside what is typed so far; and any folder."""
    typed = "runs/" if "runs/".startswith(incomplete) else incomplete
    place = Path(typed if typed.endswith("/") else Path(typed).parent)
    found = sorted({file.parent for name in ("config", "sweep") for file in place.glob(f"*/{name}.yaml")})
    return [CompletionItem(incomplete, type="dir"), *_starting(incomplete, map(str, found))]


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Runs, and the models that ship."""
    return [*runs(ctx, param, incomplete), *_starting(incomplete, ("embedded:s", "embedded:xs"))]


def model_of_sample(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return [] if ctx.params.get("words") or ctx.params.get("model") else models(ctx, param, incomplete)


def sweeps(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """The sweeps that ship, and files."""
    from rlkit.sweeps.spec import shipped

    return [*_files(incomplete), *_starting(incomplete, sorted(shipped()))]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    return _files(incomplete)


OF_SHORT: dict[str, Complete] = {"model": models, "data": files, "reward": plugins("rewards")}
"""Short name -> what completes its value."""


def _files(incomplete: str) -> Items:
    # First of all items: bash's script forgets what came before it.
    return [CompletionItem(incomplete, type="file")]


def _starting(incomplete: str, words: Iterable[str]) -> Items:
    """Those that begin so; a mapping's values are shown beside them."""
    said = words if isinstance(words, dict) else {}
    return [CompletionItem(word, help=said.get(word)) for word in words if word.startswith(incomplete)]


def _keys() -> dict[str, Key]:
    """By name, the short ones too."""
    known = {key.name: key for key in keys(RunConfig)}
    return known | {short: known[name] for short, name in SHORT.items()}


def _values(key: Key | None) -> Iterable[str]:
    if key is None:
        return ()
    if key.name in PLUGINS and key.name not in LISTS:
        return registry.names(PLUGINS[key.name])
    return ("true", "false") if key.type == "bool" else key.choices


class Bash(BashComplete):
    """Bash parts words at `=` and `:`, and puts a space behind what it completes, `KEY=` too."""

    name = "bash"
    source_template = BashComplete.source_template.replace(
        "    return 0",
        "    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then\n        compopt -o nospace\n    fi\n\n"
        "    return 0",
    )
    _incomplete = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        given, at = os.environ["COMP_WORDS"].split(), int(os.environ["COMP_CWORD"])
        words: list[str] = []
        parted = False
        for word in given[: at + 1]:
            if words and (parted or word in ("=", ":")):
                words[-1] += word
            else:
                words.append(word)
            parted = word in ("=", ":")
        self._incomplete = words.pop() if len(given) > at else ""
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        end = max(self._incomplete.rfind("="), self._incomplete.rfind(":")) + 1
        value = item.value[end:] if item.value.startswith(self._incomplete[:end]) else item.value
        return f"{item.type},{value}"


add_completion_class(Bash)
