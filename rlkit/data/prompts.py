"""Questions as the model reads them: through its chat template or one of the config, and as token ids."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from rlkit.config import DataConfig
from rlkit.errors import ConfigError

Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions that the model may call, for its chat template."""


def prompt_tokens(
    prompt: str | list[dict[str, str]], config: DataConfig, tokenizer: Any, tools: Tools = ()
) -> list[int]:
    """Token ids of one question, or of a conversation's messages, put to the model as the problems of `config` are."""
    chat = uses_chat(config, tokenizer)
    return encode([render(prompt, config, tokenizer, chat, "the prompt", tools)], tokenizer, chat)[0][0]


def uses_chat(config: DataConfig, tokenizer: Any) -> bool:
    """Whether prompts go through the tokenizer's chat template. ConfigError for settings that do not go together."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if config.template is not None and "{prompt}" not in config.template:
        raise ConfigError(f"data.template must hold {{prompt}}, where the question goes; got {config.template!r}")
    if config.chat and not has:
        raise ConfigError(
            "data.chat is true, but the model's tokenizer has no chat template: set data.template instead"
        )
    chat = has and config.template is None if config.chat is None else config.chat
    for key, given in (("system", config.system is not None), ("chat_template_kwargs", config.chat_template_kwargs)):
        if given and not chat:
            raise ConfigError(
                f"data.{key} needs a chat template, and none is used here: write what it is for into data.template, or "
                "set data.chat: true for a tokenizer that has one"
            )
    if config.chat_template_kwargs:
        _check_arguments(config.chat_template_kwargs, tokenizer)
    return chat


def _check_arguments(arguments: Mapping[str, Any], tokenizer: Any) -> None:
    """ConfigError for arguments that the chat template does not read, and for those that are not the config's."""
    if ours := arguments.keys() & {
        "messages",
        "conversation",
        "tokenize",
        "add_generation_prompt",
        "return_dict",
        "continue_final_message",
    }:
        raise ConfigError(f"data.chat_template_kwargs: {', '.join(sorted(ours))} follows from the data and is not set")
    words = set(re.findall(r"\w+", tokenizer.get_chat_template(tools=arguments.get("tools"))))
    for name in arguments:
        if name not in words and name != "chat_template":
            close = difflib.get_close_matches(name, words, n=1)
            raise ConfigError(
                f"data.chat_template_kwargs: the model's chat template reads no {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else ": leave it out")
            )


def continues(prompt: Any) -> bool:
    """Whether a prompt ends in an assistant's message, which the model then goes on with."""
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and isinstance(prompt[-1], Mapping)
        and prompt[-1].get("role") == "assistant"
        and bool(prompt[-1].get("content"))
    )


def render(prompt: Any, config: DataConfig, tokenizer: Any, chat: bool, where: str, tools: Tools = ()) -> str:
    """The text the model reads, from a question or chat messages; `tools`: JSON schemas for the chat template."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    for message in messages:
        if not (isinstance(message, Mapping) and isinstance(message.get("content"), str) and message.get("role")):
            raise ConfigError(
                f"{where}: the prompt must be text, or a list of messages with a role and a text as content; got "
                f"{str(message)[:80]}. Set data.prompt to another column"
            )
    if not any(message["content"] for message in messages):
        raise ConfigError(f"{where}: the prompt is empty")
    one = messages[0]["content"] if [m["role"] for m in messages] == ["user"] else None
    if one is None and (config.template is not None or not chat):
        raise ConfigError(
            f"{where}: {len(messages)} chat messages cannot be put to a model without its chat template, or into "
            "data.template; only a single user message can"
        )
    if one is not None and config.template is not None:
        # Not str.format: questions and templates are full of LaTeX's braces.
        one = config.template.replace("{prompt}", _without_begin(one, tokenizer))
        messages = [{"role": "user", "content": one}]
    if not chat:
        return str(one)
    if config.system is not None:
        if messages[0]["role"] == "system":
            raise ConfigError(f"{where}: the data has a system message of its own: leave out data.system")
        messages = [{"role": "system", "content": config.system}, *messages]
    messages = [{**message, "content": _without_begin(message["content"], tokenizer)} for message in messages]
    text = templated(messages, config, tokenizer, where, tools)
    if not text:
        raise ConfigError(
            f"{where}: the chat template makes nothing of the prompt: set data.template, or data.chat: false"
        )
    return text


def templated(
    messages: list[dict[str, Any]],
    config: DataConfig,
    tokenizer: Any,
    where: str,
    tools: Tools = (),
    opens: bool = True,
) -> str:
    """What the chat template makes of messages; `opens`: up to where the model goes on.

    ConfigError, with the template's own words, where it refuses them.
    """
    goes_on = opens and continues(messages)
    if opens and not goes_on and messages[-1]["role"] == "assistant":
        messages = messages[:-1]  # an empty one: the generation prompt opens it

    def render(messages: list[dict[str, Any]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=opens and not goes_on,
                continue_final_message=goes_on,
                **({"tools": list(tools)} if tools else {}),
                **config.chat_template_kwargs,
            )
        )

    try:
        return render(messages)
    except Exception as error:  # of the template's code: it may be any
        hint = ""
        if others := [message for message in messages if message["role"] != "system"]:
            with contextlib.suppress(Exception):
                if len(others) < len(messages) and render(others):
                    hint = (
                        ". It takes no system message here: leave it out"
                        + (" (data.system)" if config.system is not None else "")
                        + ", or write it into the user's message, as with data.template and data.chat: true"
                    )
        if isinstance(error, jinja2.UndefinedError) and str(error).endswith("is undefined"):
            hint += ". Variables of its own are given by data.chat_template_kwargs"
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ConfigError(
            f"{where}: the model's chat template refuses the prompt (roles: {roles}): {type(error).__name__}: "
            f"{error}{hint}"
        ) from error


def _without_begin(text: str, tokenizer: Any) -> str:
    """Without the begin token as text: where a template goes around the text, it would not stand at the beginning."""
    return text.removeprefix(tokenizer.bos_token or "")


def encode(texts: Sequence[str], tokenizer: Any, chat: bool) -> tuple[list[list[int]], list[str]]:
    """Token ids of prompts, and what there is to say of them.

    A prompt is no whole text: what a tokenizer adds behind one, an end token mostly, would tell the model that all is
    said. A begin token stands once, whether the text spells it, the tokenizer adds it, or both.
    """
    tokens: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    seen = next((i for i, ids in enumerate(tokens) if ids), None)
    before, behind = ([], []) if chat or seen is None else _added(texts[seen], tokens[seen], tokenizer)
    begin = tokenizer.bos_token_id
    once = twice = 0
    for i, ids in enumerate(tokens):
        whole = [*before, *ids]
        extra = 0
        while begin is not None and whole[extra : extra + 2] == [begin, begin]:
            extra += 1
        twice += bool(extra)
        tokens[i] = whole[extra:]
        once += tokens[i][:1] == [begin]
    put = []
    if once:
        each = "each" if once == len(texts) else f"{once} of {len(texts)}"
        put.append(f"{tokenizer.bos_token} begins {each}" + (f", once where it came twice ({twice})" if twice else ""))
    if behind:
        said = " ".join(map(str, tokenizer.convert_ids_to_tokens(behind)))
        put.append(f"{said}, which the tokenizer adds behind a text, is left out")
    return tokens, put


def _added(text: str, tokens: list[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and behind any text, seen on one."""
    whole: list[int] = tokenizer(text)["input_ids"]
    for at in range(len(whole) - len(tokens) + 1):
        if whole[at : at + len(tokens)] == tokens:
            return whole[:at], whole[at + len(tokens) :]
    raise ConfigError(
        f"the model's tokenizer changes a text's own tokens when it adds special ones (tried on {text[:60]!r}): "
        "prompts cannot be encoded without its end token. Mend the post-processor in its tokenizer.json"
    )
