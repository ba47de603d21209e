"""A run's newest model as a folder that others load: weights, tokenizer, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from rlkit import embedded, hub
from rlkit.errors import ConfigError, RlkitError
from rlkit.records.folder import RunFolder
from rlkit.report import card, curve


def export(run: Path, folder: Path, *, merged: bool = False, base: str | None = None, name: str | None = None) -> Path:
    """Write `folder`: of a LoRA run the adapter, unless `merged`; of any other the model. Returns it.

    base: what the model that the run began with is called on the hub, where the run knows it as a folder. name: what
    this one will be called there. ConfigError where the folder exists, or no run is there; RlkitError where the run
    has no model yet.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists already: choose another name, or remove it first")
    source = RunFolder.open(run)
    config = source.read_config()
    model, adapter = source.newest_model(), config.model.lora is not None and not merged
    _check_links(source, model.parent)
    base = base or card.hub_id(config.model.path)
    try:
        if adapter:
            shutil.copytree(source.newest_adapter(), folder)
            _copy_tokenizer(model, folder)
            if base is not None:
                _set_base(folder / "adapter_config.json", base)
        else:
            shutil.copytree(model, folder)
        metrics = source.read_metrics()
        curve.draw(metrics, folder / source.learning_curve.name, title=source.path.resolve().name)
        exported = card.Exported(
            name=name or folder.resolve().name,
            base=base,
            license=_license(config.model.path, base),
            adapter=adapter,
            chat=_has_chat_template(model),
        )
        (folder / "README.md").write_text(card.card(source, exported), encoding="utf-8")
    except (OSError, RlkitError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RlkitError):
            raise
        raise ConfigError(f"cannot write {folder}: {error}") from error
    return folder


def _check_links(run: RunFolder, checkpoint: Path) -> None:
    """ConfigError for a link in a checkpoint that leads out of the run: what it leads to would be exported, and might
    be published."""
    home = run.checkpoints.resolve()
    for path in (checkpoint, *checkpoint.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ConfigError(
                f"{path} is a link to {path.resolve()}, outside the run, which would be exported with the model: "
                "replace it by what it leads to, or remove it"
            )


def check_push(run: Path, name: str, *, merged: bool, base: str | None) -> None:
    """Whether what `export` would write can be pushed as `name`, and be of use there. ConfigError where it cannot."""
    hub.check_name(name, "--push")
    if base is not None:
        hub.check_name(base, "--base")
    hub.check_token()
    model = RunFolder.open(run).read_config().model
    if model.lora is not None and not merged and base is None and card.hub_id(model.path) is None:
        raise ConfigError(
            f"--push {name}: the run began with {model.path}, which nobody who loads the adapter has. Say what that "
            "model is called on the hub with --base ORG/NAME, or push the whole model with --merged"
        )


def _copy_tokenizer(model: Path, folder: Path) -> None:
    for file in model.iterdir():
        if file.is_file() and not file.name.startswith(("model", "config", "generation_config", "pytorch_model")):
            shutil.copy(file, folder)


def _set_base(file: Path, base: str) -> None:
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": base}
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _has_chat_template(model: Path) -> bool:
    settings = model / "tokenizer_config.json"
    return (model / "chat_template.jinja").is_file() or (
        settings.is_file() and "chat_template" in json.loads(settings.read_text())
    )


def _license(path: str, base: str | None) -> str | None:
    """What the card of the model that the run began with names, in its folder or on the hub; None: it is not known."""
    if path.startswith(embedded.PREFIX):
        return "apache-2.0"  # rlkit's own
    own = Path(path) / "README.md"
    file = own if own.is_file() or base is None else hub.file_of(base, "README.md")
    if file is None or not file.is_file():
        return None
    parts = file.read_text(encoding="utf-8", errors="replace").split("---\n")
    try:
        header = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    named = header.get("license") if isinstance(header, dict) else None
    return named if isinstance(named, str) else None
