"""The model card of an exported run: the README.md that the Hugging Face hub shows, from what the run's folder says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlkit import embedded, registry
from rlkit.config import PluginRef, RunConfig
from rlkit.data.reading import FILES
from rlkit.errors import ConfigError
from rlkit.records.folder import RunFolder
from rlkit.records.metrics import Metrics, held_out_names, last_step, series
from rlkit.report.curve import suite_of
from rlkit.secrets import hide
from rlkit.wording import counted, number, quoted, visible

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a card is about, beside what the run says of itself."""

    name: str
    """By which others load it: its name on the hub, or its folder's."""
    base: str | None
    """The hub's name of the model that the run began with; None: it has none that is known."""
    license: str | None
    """That of the base model; None: not known."""
    adapter: bool
    """LoRA adapters alone."""
    chat: bool
    """The tokenizer has a chat template."""


def hub_id(path: str) -> str | None:
    """What `path` is called on the hub; None for what is on this machine, or ships with rlkit."""
    if path.startswith("hf://datasets/"):
        path = "/".join(path.removeprefix("hf://datasets/").split("/")[:2])
    elif path.startswith(embedded.PREFIX) or path.endswith(FILES) or Path(path).exists():
        return None
    return path if _HUB_ID.fullmatch(path) else None


def card(run: RunFolder, exported: Exported) -> str:
    """The card's Markdown, with the metadata that the hub reads. RlkitError for files of the run that are damaged."""
    config, metrics, record = run.read_config(), run.read_metrics(), run.read_provenance()
    versions = record.get("versions", {})
    base = exported.base or _shown(config.model.path)
    link = f"[{base}](https://huggingface.co/{base})" if exported.base else _code(base)
    what = f"LoRA adapters for {link}, trained" if exported.adapter else f"A language model, trained from {link}"
    parts = [
        f"---\n{yaml.safe_dump(_metadata(config, exported), sort_keys=False, allow_unicode=True)}---",
        f"# {exported.name.rpartition('/')[2]}",
        f"{what} by reinforcement learning from verifiable rewards: the algorithm {_code(config.algo.kind)} on "
        f"{_data(config.data.path)}, with rlkit {_plain(versions.get('rlkit', '(version unknown)'))}.",
        f"![Reward and pass rate over the steps]({run.learning_curve.name})",
        f"## Use\n\n{_use(config, exported)}",
        "## Training\n\n" + _table(("", ""), _training(config, metrics, versions, exported.adapter)),
        f"## Evaluation\n\n{_evaluation(run, metrics)}",
        f"## How to cite\n\n{_citation(config, versions, record.get('time', ''))}",
        "## Settings\n\nAll of them, for `rlkit run`; of paths on the machine that trained it, the last part.\n\n"
        + _block("yaml", hide(yaml.safe_dump(_public(config), sort_keys=False, allow_unicode=True))),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(config: RunConfig, exported: Exported) -> dict[str, Any]:
    datasets = [name for path in (config.data.path, config.data.eval_path) if path and (name := hub_id(path))]
    found = {
        "license": exported.license,
        "base_model": exported.base,
        "base_model_relation": ("adapter" if exported.adapter else "finetune") if exported.base else None,
        "datasets": list(dict.fromkeys(datasets)),
        "library_name": "peft" if exported.adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlkit", "reinforcement-learning", "rlvr", config.algo.kind, *(["lora"] if exported.adapter else [])],
    }
    return {key: value for key, value in found.items() if value}


def _use(config: RunConfig, exported: Exported) -> str:
    library, loader = ("peft", "AutoPeftModelForCausalLM") if exported.adapter else ("transformers", None)
    imports = (
        f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
        if loader
        else "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )
    name = json.dumps(exported.name)
    code = (
        f"{imports}\n\ntokenizer = AutoTokenizer.from_pretrained({name})\n"
        f'model = {loader or "AutoModelForCausalLM"}.from_pretrained({name}, dtype="{config.model.dtype}")'
    )
    return f"```python\n{code}\n```\n\n{_prompts(config, exported)}"


def _prompts(config: RunConfig, exported: Exported) -> str:
    """How questions were put to the model, and what ended its responses."""
    data, sampling = config.data, config.sampling
    chat = exported.chat and data.template is None if data.chat is None else data.chat
    said = "Questions were put to it " + ("through the tokenizer's chat template" if chat else "as plain text")
    said += f", after the system message {_plain(json.dumps(data.system, ensure_ascii=False))}" if data.system else ""
    said += f", temperature {sampling.temperature:g}, at most {sampling.max_tokens} tokens a response"
    said += f", which {_plain(quoted(sampling.stop))} ends too" if sampling.stop else ""
    return said + (f". `{{prompt}}` is the question:\n\n{_block('text', data.template)}" if data.template else ".")


def _training(config: RunConfig, metrics: Metrics, versions: dict[str, str], adapter: bool) -> list[tuple[str, str]]:
    batch, optimizer, lora = config.batch, config.optimizer, config.model.lora
    rewards = [("" if ref.weight == 1 else f"{ref.weight:g} x ") + _ref(ref) for ref in config.reward]
    done, merged = last_step(metrics), "" if adapter else ", merged"
    return [
        ("data", _data(config.data.path)),
        *([("environment", _ref(config.environment))] if config.environment else []),
        ("reward", " + ".join(rewards) or "the environment's"),
        ("noise on the reward", ", then ".join(map(_ref, config.noise)) or "none"),
        ("algorithm", _ref(config.algo) + _paper(config.algo.kind)),
        *((name, _ref(ref)) for name, ref in (("advantage", config.advantage), ("loss", config.loss)) if ref),
        (
            "weights",
            f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}{merged}" if lora else "all are trained",
        ),
        (
            "steps",
            f"{done}{f' of {config.steps}' if done < config.steps else ''}, each of {batch.prompts_per_step} prompts x "
            f"{batch.samples_per_prompt} samples, and {counted(config.updates_per_step, 'update')}"
            + (f"; the samples are those of the run {config.replay.run.name}" if config.replay else ""),
        ),
        (
            "optimizer",
            f"AdamW, lr {optimizer.lr:g} {optimizer.schedule}, {optimizer.warmup_updates} warm-up updates, weight "
            f"decay {optimizer.weight_decay:g}, {config.model.dtype}",
        ),
        ("seed", str(config.seed)),
        ("versions", _plain(", ".join(f"{name} {version}" for name, version in versions.items())) or "unknown"),
    ]


def _evaluation(run: RunFolder, metrics: Metrics) -> str:
    """Pass rates in training, before and after, and what `rlkit eval` made of the newest checkpoint's model."""
    rows = list(_in_training(metrics))
    said = _table(("pass rate", "before", "after", "n"), rows) if rows else "None was made in training."
    if measured := list(_measured(run)):
        said += "\n\nBy `rlkit eval`, with 95 % intervals over problems:\n\n"
        said += _table(("problems", "metric", "value", "interval", "n"), measured)
    return said


def _in_training(metrics: Metrics) -> Iterator[tuple[str, ...]]:
    for name in held_out_names(metrics):
        at, rates = series(metrics, name)
        if not at:
            continue
        suite, _, samples = name.rpartition("/mean@")
        _, problems = series(metrics, f"{suite}/problems")
        n = f"{problems[-1]:.0f} problems x {counted(int(samples), 'sample')}" if problems else "not on record"
        before = f"{rates[0]:.3f}" if at[0] == 0 else "not measured"
        yield _plain(suite_of(name)), before, f"{rates[-1]:.3f} (step {at[-1]})" if at[-1] else "not measured", n


def _measured(run: RunFolder) -> Iterator[tuple[str, ...]]:
    file = run.evaluations / run.newest_checkpoint().name / "results.json"
    for suite, result in (json.loads(file.read_text()) if file.is_file() else {}).items():
        n = f"{result['problems']} problems x {counted(result['samples'], 'sample')}"
        for name, each in result["metrics"].items():
            interval = f"{number(each['low'])} to {number(each['high'])}"
            yield _plain(_shown(suite)), _plain(name), number(each["value"]), interval, n


def _citation(config: RunConfig, versions: dict[str, str], time: str) -> str:
    version = f"\n  version = {{{versions['rlkit']}}}," if "rlkit" in versions else ""
    entry = (
        f"@software{{rlkit,\n  title = {{rlkit: reinforcement learning from verifiable rewards}},{version}\n"
        f"  year = {{{time[:4] or 'n.d.'}}}\n}}"
    )
    paper = _paper(config.algo.kind)
    return _block("bibtex", entry) + (f"\n\nAnd the algorithm's paper{paper}." if paper else "")


def _paper(algorithm: str) -> str:
    """A link behind an algorithm's name, where the line that sums it up has an arXiv number."""
    try:
        found = _ARXIV.search(registry.find("algorithms", algorithm).summary)
    except ConfigError:  # a plugin that is not on this machine
        found = None
    return f", [arXiv {found[0]}](https://arxiv.org/abs/{found[0]})" if found else ""


def _data(path: str) -> str:
    name = hub_id(path)
    return f"[{name}](https://huggingface.co/datasets/{name})" if name else _code(_shown(path))


def _ref(ref: PluginRef) -> str:
    options = ", ".join(f"{key} {_shorter(value)}" for key, value in ref.options.items() if value not in (None, [], {}))
    return _code(ref.kind) + (f" ({_plain(hide(options))})" if options else "")


def _public(config: RunConfig) -> dict[str, Any]:
    """The settings without what is of the machine, or of its user's accounts."""
    settings: dict[str, Any] = _shorter(config.dump())
    for key in ("name", "out", "trackers"):
        settings.pop(key)
    return settings


def _shorter(value: Any) -> Any:
    """Paths by their last part, in settings of any depth."""
    if isinstance(value, dict):
        return {key: _shorter(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shorter(each) for each in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    return Path(text).name if re.fullmatch(r"(/[^/\n]+){2,}/?", text) else text


def _plain(text: str) -> str:
    """As text, whatever it means in Markdown or HTML."""
    return re.sub(r"([\\`*\[\]])", r"\\\1", " ".join(visible(text).split())).replace("<", "&lt;")


def _code(text: str) -> str:
    """Within a line."""
    text = " ".join(visible(text).split())
    return f"`{text}`" if "`" not in text else _plain(text)


def _block(language: str, text: str) -> str:
    """As lines of code, which no fence within them ends."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells)
