"""What lies between a model's turns, as tokens: made of the chat template once, and put behind what was sampled.

A conversation is one sequence, in which a turn stays as it was sampled. What the environment says is rendered behind
the place of a turn, and encoded from the token that ended the turn on.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlkit.config import DataConfig
from rlkit.data.prompts import encode, render, templated, uses_chat
from rlkit.errors import ConfigError
from rlkit.interfaces.environments import Said

Message = dict[str, Any]

TURN = "what-the-model-said"
"""Stands for a turn where the template is asked what it puts behind one."""

APART = "\U0010ffff"
"""No character, by Unicode; marks a place within a text whose two sides are encoded apart."""

BLANK_LINE = "\n\n"

PAST = "the conversation"
"""What is put to the template, in messages."""

THINKING = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")]
"""Between what models think, in templates that know of it."""


class Glue:
    """A chat template's words around the turns of a conversation; without a chat template, none.

    What an environment says becomes tokens in which no special token stands, whatever it spells: it can neither end a
    message nor begin one. Messages of the user that follow each other are one, joined by a blank line, since some
    templates refuse two. Where the template knows no tools' answers (it raises, or leaves their text out), they are put
    as the user's. Without a chat template the texts are put as they are, roles or not.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: DataConfig,
        ends: Iterable[int],
        tools: Sequence[Mapping[str, Any]] = (),
        keep_past: bool = False,
    ) -> None:
        """`ends`: the model's end tokens; `tools`: JSON schemas, of an environment that answers calls.

        Raises ConfigError for a chat template that takes no tools where there are some, and, without `keep_past`
        (conversation.keep_past), for one that rewrites earlier turns when the environment answers: as a tool where
        there are some, else as the user.
        """
        self._tokenizer = tokenizer
        self._config = config
        self._ends = frozenset(ends)
        self._tools = list(tools)
        self._chat = uses_chat(config, tokenizer)
        # The clock stands still, for templates that write the time.
        now = datetime.datetime.now()
        fixed = {"strftime_now": now.strftime, **config.chat_template_kwargs}
        self._timeless = config.model_copy(update={"chat_template_kwargs": fixed})
        self._names = _special_names(tokenizer, self._ends)
        self._has_tool_role = False
        self._refused: dict[str, str] = {}
        if self._tools:
            self._check_tools()
        if not self._chat:
            return
        self._closing = self._closes()
        self._has_tool_role = self._shows_tools()
        if not keep_past:
            probed = ["user", "tool"] if self._has_tool_role else ["user"]
            self._refused = {role: said for role in probed if (said := self._rewrites(role))}
            answers = "tool" if self._tools and self._has_tool_role else "user"
            if answers in self._refused:
                raise ConfigError(self._refused[answers])

    def opening(self, question: Any, said: Said) -> tuple[str, list[int]]:
        """The first prompt, as text and as token ids: the data's question, and behind it what `start` says.

        Of a question that ends in the user's words they are one message, joined by a blank line; with data.template
        both are its {prompt}. Without a chat template and data.template, what is said is put directly behind. "" is
        nothing: the prompt is the data's. Raises ConfigError as `rlkit.data` does for prompts.
        """
        spoken, behind = self._messages(said) if said else [], ""
        if not self._chat and self._config.template is None:
            spoken, behind = [], _texts(spoken)
        if spoken:
            asked = question if isinstance(question, list) else [_user(question)] if question else []
            question = _joined([*asked, *spoken])
        text = behind
        if question or not behind:
            text = render(question, self._config, self._tokenizer, self._chat, PAST, self._tools) + behind
        first, _, others = text.partition(APART)
        tokens, _ = encode([first], self._tokenizer, self._chat)
        return text.replace(APART, ""), tokens[0] + self._encoded(others)

    def between(self, turn: Sequence[int], said: Said) -> list[int]:
        """Token ids to put behind a turn as it was sampled, so that the next one can begin.

        They close the turn, unless an end token of the model's has done so, hold what the environment says, and open
        the model's next turn. The turn's own tokens are neither decoded nor encoded. Without a chat template: the text
        alone. Raises ConfigError where the template refuses the messages, or would rewrite earlier turns for them.
        """
        messages = self._messages(said)
        if not self._chat:
            return self._encoded(_texts(messages))
        for message in messages:
            if message["role"] in self._refused:
                raise ConfigError(self._refused[message["role"]])
        tokens = self._encoded(self._behind(_joined(messages)))
        if turn and turn[-1] in self._ends:
            # A template that closes no turn may open the next message with the token that ended the turn.
            closing = self._closing or [turn[-1]]
            if tokens[: len(closing)] == closing:
                return tokens[len(closing) :]
        return tokens

    # Text and tokens

    def _messages(self, said: Said) -> list[Message]:
        """What is said as messages, in whose texts no special token's name is left whole."""
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else [dict(each) for each in said]
        return [
            {key: self._parted(value) if isinstance(value, str) else value for key, value in message.items()}
            | ({"role": "user"} if message["role"] == "tool" and not self._has_tool_role else {})
            for message in messages or [{"role": "user", "content": ""}]
        ]

    def _parted(self, text: str) -> str:
        return self._names.sub(rf"\g<0>{APART}", text.replace(APART, ""))

    def _encoded(self, text: str) -> list[int]:
        encoded = self._tokenizer(text.split(APART), add_special_tokens=False)["input_ids"]
        return [token for tokens in encoded for token in tokens]

    # The template, asked

    def _rendered(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, opens: bool = True
    ) -> str:
        system = [] if self._config.system is None else [{"role": "system", "content": self._config.system}]
        tools = self._tools if tools is None else tools
        return templated([*system, *messages], self._timeless, self._tokenizer, PAST, tools, opens)

    def _behind(self, messages: Sequence[Message], opens: bool = True) -> str:
        """What the template puts behind a turn that these messages follow."""
        _, found, behind = self._rendered([_user("?"), _model(TURN), *messages], opens=opens).partition(TURN)
        if not found:
            raise ConfigError(
                "the model's chat template leaves out what the model has said, so it cannot hold a conversation: give "
                "another by data.chat_template_kwargs.chat_template"
            )
        return behind

    def _closes(self) -> list[int]:
        """The tokens that close a turn, up to the end token; none where the template closes it with none."""
        tokens = self._encoded(self._behind([], opens=False))
        return next((tokens[:at] for at, token in enumerate(tokens, 1) if token in self._ends), [])

    def _shows_tools(self) -> bool:
        """Whether the template knows the role of tools."""
        answers = ["its-first-answer", "its-second-answer"]
        conversation = [_user("?")]
        for answer in answers:
            conversation += [_model(TURN), _tool(answer)]
        try:
            text = self._rendered(conversation)
        except ConfigError:
            return False
        return all(answer in text for answer in answers)

    def _check_tools(self) -> None:
        names = ", ".join(str(tool.get("function", tool).get("name")) for tool in self._tools)
        if not self._chat:
            raise ConfigError(
                f"the environment has tools ({names}), which a model reads of in its chat template, and none is used "
                "here: take a model that has one, and leave out data.template"
            )
        if "tools" in self._config.chat_template_kwargs:
            raise ConfigError(f"data.chat_template_kwargs.tools: the environment gives its own ({names}): leave it out")
        if self._rendered([_user("?")]) == self._rendered([_user("?")], tools=()):
            raise ConfigError(
                f"the chat template of {self._tokenizer.name_or_path} takes no tools, and the environment has some "
                f"({names}): take a model whose template does, or give one by data.chat_template_kwargs.chat_template"
            )

    def _rewrites(self, role: str) -> str:
        """What the template does to earlier turns when a message of this role follows; "" where they stay.

        White space around a turn, and within its thinking, is not looked at: most templates strip it.
        """
        for tags in self._ways_to_speak():
            messages = [_user("question")]
            try:
                prompt = self._rendered(messages)
                for number in range(1, 4):
                    turn = f"answer {number}" if tags is None else f"thought {number}\n{tags[1]}\n\nanswer {number}"
                    # Who sends a turn back to the template writes its thinking whole, whoever has opened it.
                    whole = turn if tags is None else f"{tags[0]}\n{turn}"
                    if tags is not None and not prompt.rstrip().endswith(tags[0]):
                        turn = whole
                    answer = _tool(f"reply {number}") if role == "tool" else _user(f"reply {number}")
                    messages = [*messages, _model(whole), answer]
                    longer, behind = self._rendered(messages), self._behind([answer])
                    was = prompt + turn + behind
                    around = longer.startswith(prompt.rstrip()) and longer.endswith(behind)
                    if not around or "".join(longer.split()) != "".join(was.split()):
                        return _sentence(was, longer, role, tags)
                    prompt = longer
            except ConfigError as error:
                return str(error)
        return ""

    def _ways_to_speak(self) -> list[tuple[str, str] | None]:
        """Without thinking, and with it between these tags: what the template knows of, and its own opening allows."""
        own = self._config.chat_template_kwargs.get("chat_template")
        source = own or self._tokenizer.get_chat_template(tools=self._tools or None)
        opening = self._rendered([_user("question")]).rstrip()
        ways: list[tuple[str, str] | None] = [None]
        for tags in THINKING:
            if opening.endswith(tags[0]):
                return [tags]
            if tags[1] in source and not opening.endswith(tags[1]):
                ways.append(tags)
        return ways


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _model(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _tool(text: str) -> Message:
    return {"role": "tool", "name": "tool", "content": text}


def _sentence(was: str, now: str, role: str, tags: tuple[str, str] | None) -> str:
    at = next((at for at, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    follows = "a tool's answer" if role == "tool" else "a user message"
    if tags is not None and now.count("thought") < was.count("thought"):
        does = f"drops earlier thinking when {follows} follows"
    elif any(was.startswith(tag, at) for tag, _ in THINKING):
        does = f"drops the thinking that it opens a turn with when {follows} follows"
    else:
        does = f"rewrites earlier turns when {follows} follows ({was[at : at + 40]!r} becomes {now[at : at + 40]!r})"
    return (
        f"the model's chat template {does}, so the model would read another past than it has written. "
        "conversation.keep_past: true trains it with the past as it was sampled; serve it so as well "
        "(docs/conversations.md)"
    )


def _texts(messages: Iterable[Message]) -> str:
    return BLANK_LINE.join(message["content"] for message in messages)


def _joined(messages: Iterable[Message]) -> list[Message]:
    """With messages of the user that follow each other as one."""
    made: list[Message] = []
    for message in messages:
        last = made[-1] if made else {}
        texts = [last.get("content"), message.get("content")]
        if last.get("role") == message.get("role") == "user" and all(isinstance(text, str) for text in texts):
            made[-1] = {**last, "content": BLANK_LINE.join(filter(None, texts))}
        else:
            made.append(message)
    return made


def _special_names(tokenizer: Any, ends: Iterable[int]) -> re.Pattern[str]:
    """Finds the first character of each special token's name."""
    added = tokenizer.added_tokens_decoder
    names = {str(token) for number, token in added.items() if token.special or number in ends}
    either = "|".join(map(re.escape, sorted(names - {""})))
    return re.compile(rf"(?=(?:{either})).", re.DOTALL) if either else re.compile(r"(?!)")
