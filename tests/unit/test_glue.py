"""A conversation's tokens, put together turn by turn, are those of its rendering; a turn stays as it was sampled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlkit import embedded
from rlkit.config import DataConfig
from rlkit.data.prompts import prompt_tokens
from rlkit.environments.glue import Glue
from rlkit.errors import ConfigError

TOOLS = [
    {"type": "function", "function": {"name": name, "description": "adds", "parameters": {"type": "object"}}}
    for name in ("calculator", "search")
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = {"qwen3"}
TRIMS = {"llama3", "gemma"}
TAKES_TOOLS = {"qwen3", "llama3"}


@functools.cache
def tokenizer_of(family: str) -> Any:
    return FAMILIES[family].tokenizer()


def ends_of(family: str) -> list[int]:
    return list(tokenizer_of(family).convert_tokens_to_ids(list(FAMILIES[family].ends)))


def glue_of(family: str, chat_template: str | None = None, **options: Any) -> Glue:
    own = {key: options.pop(key) for key in ("tools", "keep_past") if key in options}
    if chat_template is not None:
        options["chat_template_kwargs"] = {"chat_template": chat_template}
    return Glue(tokenizer_of(family), DataConfig(path="rows", **options), ends_of(family), **own)


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return text


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def answer(text: str, name: str = "calculator") -> dict[str, str]:
    return {"role": "tool", "name": name, "content": text}


# The trajectory is the rendering

PIECES = [
    "hi",
    " ",
    "\n",
    "\n\n",
    "{x} {{ y }}",
    "{% raw %}",
    "is",
    "42",
    "é",
    '"q" \\',
    "<tool_call>",
    "<|",
    "ab",
    "#",
]
texts = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@st.composite
def conversations(draw: st.DrawFn, family: str, turns: str) -> tuple[dict[str, Any], str, str, list[Any]]:
    """Settings, a question, what `start` says, and (turn, answer) one after the other."""
    options: dict[str, Any] = {"tools": (), "system": None}
    if draw(st.booleans()):
        options["system"] = "Be brief. {{ x }}"
    if turns == "tool" or (family in TAKES_TOOLS and draw(st.booleans())):
        options["tools"] = TOOLS if family in TAKES_TOOLS else ()
    said = []
    for _ in range(draw(st.integers(1, 5))):
        turn = draw(texts).strip()
        if turns == "tool" and family in THINKS and draw(st.booleans()):
            turn = f"<think>\n{draw(texts).strip() or '?'}\n</think>\n\n{turn}"
        spoken: Any = draw(texts)
        if turns == "tool":
            spoken = [answer(draw(texts)) for _ in range(draw(st.integers(1, 3)))]
        said.append((turn, spoken))
    return options, draw(texts.filter(str.strip)), draw(texts), said


@pytest.mark.parametrize(
    ("family", "turns"),
    [(family, turns) for family in FAMILIES for turns in ("user", "tool") if (family, turns) != ("gemma", "tool")],
)
@settings(max_examples=15)
@given(data=st.data())
def test_turn_by_turn_the_tokens_are_those_of_the_whole(family: str, turns: str, data: st.DataObject) -> None:
    check_a_conversation(tokenizer_of(family), family, turns, ends_of(family)[0], data)


@functools.cache
def made_once(tokenizer: Any, end: int, system: str | None, tools: bool, keep_past: bool) -> Glue:
    return Glue(tokenizer, DataConfig(path="rows", system=system), [end], TOOLS if tools else (), keep_past)


def check_a_conversation(tokenizer: Any, family: str, turns: str, end: int, data: st.DataObject) -> None:
    options, question, start, said = data.draw(conversations(family, turns))
    tools, system = options["tools"], options["system"]
    # Where the user speaks, turns hold no thinking that Qwen3's template could drop.
    glue = made_once(tokenizer, end, system, bool(tools), turns == "user" and family in THINKS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": "\n\n".join(filter(None, [question, start]))})
    text, tokens = glue.opening(question, start)
    more: dict[str, Any] = {"tools": tools} if tools else {}
    assert text == rendered(tokenizer, messages, **more)
    for turn, spoken in said:
        assert tokens == ids(tokenizer, rendered(tokenizer, messages, **more))
        sampled = [*ids(tokenizer, turn), end]
        tokens += [*sampled, *glue.between(sampled, spoken)]
        behind = [{"role": "user", "content": spoken}] if isinstance(spoken, str) else spoken
        messages += [{"role": "assistant", "content": turn}, *behind]
    assert tokens == ids(tokenizer, rendered(tokenizer, messages, **more))


def test_tools_answers_are_the_user_s_where_a_template_has_no_role_for_them() -> None:
    end = ends_of("gemma")[:1]
    glue = glue_of("gemma")
    assert glue.between(end, [answer("4"), answer("5")]) == glue.between(end, "4\n\n5")
    silent = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}")
    glue = glue_of("smollm2", silent)
    assert glue.between(ends_of("smollm2")[:1], [answer("4")]) == glue.between(ends_of("smollm2")[:1], "4")
    assert glue_of("smollm2").between([], [answer("4")]) != glue_of("smollm2").between([], "4")


def test_words_of_the_user_that_follow_each_other_are_one_message() -> None:
    glue, tokenizer = glue_of("gemma"), tokenizer_of("gemma")
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert glue.between([], two) == glue.between([], "a\n\nb")
    assert tokenizer.decode(glue.between([], [])) == "<end_of_turn>\n<start_of_turn>user\n<end_of_turn>\n" + (
        "<start_of_turn>model\n"
    )


# Turns stay as they are


class Watched:
    """A tokenizer which keeps what it is given to encode, and refuses to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: Any, **options: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        assert "decode" not in name or name == "added_tokens_decoder", f"{name} was asked for"
        assert name not in ("encode", "convert_tokens_to_string", "convert_ids_to_tokens"), f"{name} was asked for"
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_of_a_turn_is_decoded_or_encoded_again(family: str) -> None:
    tokenizer = tokenizer_of(family)
    a, b = ids(tokenizer, "a") + ids(tokenizer, "b")
    odd = [a, b, *ids(tokenizer, "zebra"), a, b, ends_of(family)[0]]
    assert ids(tokenizer, tokenizer.decode(odd[:2])) not in ([a, b], []), "what follows must be able to fail"
    watched = Watched(tokenizer)
    glue = Glue(watched, DataConfig(path="rows"), ends_of(family), keep_past=True)
    _, tokens = glue.opening("2+2", "go")
    for number in range(3):
        start = len(tokens)
        tokens = [*tokens, *odd, *glue.between(odd, f"reply {number}")]
        assert tokens[start : start + len(odd)] == odd
    assert any("reply 2" in text for text in watched.texts)
    assert not any("zebra" in text for text in watched.texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_that_no_end_token_ended_is_closed(family: str) -> None:
    glue, tokenizer, ends = glue_of(family, keep_past=True), tokenizer_of(family), ends_of(family)
    turn = ids(tokenizer, "so: </stop>")
    closed = glue.between([*turn, ends[0]], "on")
    assert glue.between(turn, "on") == [ends[0], *closed]
    for other in ends[1:]:
        assert glue.between([*turn, other], "on") == closed, "any end token of the model's ends a turn"
    assert glue.between([], "on") == [ends[0], *closed]


def test_an_end_token_that_opens_the_next_message_stands_once() -> None:
    """As in GLM's templates, where a turn ends with whose turn is next."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'user' else '<|model|>' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|model|>{% endif %}"
    )
    tokenizer = tokenizer_of("smollm2")
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    config = DataConfig(path="rows", chat_template_kwargs={"chat_template": template})
    glue = Glue(tokenizer, config, [start, end])
    assert tokenizer.decode(glue.between([start], "on")) == "on<|model|>"
    assert tokenizer.decode(glue.between([end], "on")) == "<|im_start|>on<|model|>"


def test_an_end_that_the_template_writes_as_text_is_put_behind_the_model_s_token() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    glue, tokenizer = glue_of("smollm2", template), tokenizer_of("smollm2")
    assert tokenizer.decode(glue.between(ends_of("smollm2")[:1], "on")) == "</assistant><user>on</user><assistant>"


# Special tokens are none where an environment spells them


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_what_an_environment_spells_is_text(family: str, data: st.DataObject) -> None:
    tokenizer, glue = tokenizer_of(family), made_once(tokenizer_of(family), ends_of(family)[0], None, False, True)
    kind = FAMILIES[family]
    names = [*kind.ends, *kind.special, *filter(None, [kind.begin])]
    pieces = st.lists(st.sampled_from([*names, *names, "<|im_", "end|>", " ", "hi"]), max_size=6)
    start, said = (f"({''.join(data.draw(pieces))})" for _ in range(2))
    special = set(tokenizer.convert_tokens_to_ids(names))
    turn = ends_of(family)[:1]

    def controls(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in special]

    text, tokens = glue.opening("2+2", start)
    assert tokenizer.decode(tokens) == text == glue.opening("2+2", "()")[0].replace("()", start)
    assert controls(tokens) == controls(glue.opening("2+2", "()")[1])
    for wrapped in (said, [answer(said)]):
        plain = "()" if wrapped is said else [answer("()")]
        tokens = glue.between(turn, wrapped)
        assert tokenizer.decode(tokens) == tokenizer.decode(glue.between(turn, plain)).replace("()", said)
        assert controls(tokens) == controls(glue.between(turn, plain))


def test_a_fault_in_the_names_is_none_of_the_others() -> None:
    """A name is cut wherever one begins, so that what is left of it is none either."""
    tokenizer = tokenizer_of("smollm2")
    glue = glue_of("smollm2")
    end = ends_of("smollm2")[0]
    for text in ("<|im_<|im_end|>end|>", "<|im_end|><|im_end|>", "<|im_end\U0010ffff|>", "\U0010ffff<|im_end|>"):
        tokens = glue.between([end], text)
        assert tokens.count(end) == 1
        assert text.replace("\U0010ffff", "") in tokenizer.decode(tokens)


# The first prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, {"system": "Be brief."}, {"template": "Q: {prompt}", "chat": True}, {"chat": False}]
)
def test_without_words_of_the_environment_the_prompt_is_the_data_s(family: str, options: dict[str, Any]) -> None:
    tokenizer, config = tokenizer_of(family), DataConfig(path="rows", **options)
    glue = Glue(tokenizer, config, ends_of(family), keep_past=True)
    for question in ("2+2 <|im_end|>", [{"role": "user", "content": "hi"}]):
        assert glue.opening(question, "")[1] == prompt_tokens(question, config, tokenizer)
    with pytest.raises(ConfigError, match="the prompt is empty"):
        glue.opening("", "")


def test_what_start_says_goes_behind_the_question() -> None:
    glue = glue_of("gemma")
    one = "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
    assert glue.opening("2+2", "guess")[0] == one.format("2+2\n\nguess")
    assert glue.opening([{"role": "user", "content": "2+2"}], "guess")[0] == one.format("2+2\n\nguess")
    assert glue.opening("2+2", [{"role": "user", "content": "guess"}])[0] == one.format("2+2\n\nguess")
    for empty in ("", None, [{"role": "user", "content": ""}]):
        assert glue.opening(empty, "guess")[0] == one.format("guess")
    begun = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    assert glue.opening(begun, "why")[0] == (
        "<bos><start_of_turn>user\n2+2<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
        "<start_of_turn>user\nwhy<end_of_turn>\n<start_of_turn>model\n"
    )
    around = glue_of("gemma", template="Q: {prompt} A:", chat=True)
    assert around.opening("2+2", "guess")[0] == one.format("Q: 2+2\n\nguess A:")
    base = glue_of("gemma", template="Q: {prompt} A:")
    assert base.opening("2+2", "guess")[0] == "Q: 2+2\n\nguess A:"
    assert tokenizer_of("gemma").decode(base.between([], "on")) == "on", "the template is of the first prompt alone"


def test_without_a_chat_template_texts_are_put_as_they_are() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    glue = Glue(tokenizer, DataConfig(path="embedded:arithmetic"), [tokenizer.eos_token_id])
    assert glue.opening("1+2=", "") == ("1+2=", tokenizer.encode("1+2="))
    assert glue.opening("1+2=", "34") == ("1+2=34", tokenizer.encode("1+2=34"))
    assert glue.opening("", "34") == ("34", tokenizer.encode("34"))
    for turn in ([tokenizer.eos_token_id], tokenizer.encode("7"), []):
        assert glue.between(turn, "12+") == tokenizer.encode("12+")
        assert glue.between(turn, "") == []
        assert glue.between(turn, [answer("12")]) == tokenizer.encode("12")
    assert tokenizer.eos_token_id not in glue.between([], "1<eos>2")
    assert tokenizer.eos_token_id not in glue.opening("1", "1<eos>2")[1]


# Append-only, or refused


def refusal(family: str, **options: Any) -> str:
    try:
        glue_of(family, **options)
    except ConfigError as error:
        return str(error)
    return ""


DROPS = "the model's chat template drops earlier thinking when {} follows, so the model would read another past than "
OPENS = "the model's chat template drops the thinking that it opens a turn with when {} follows"
REMEDY = "conversation.keep_past: true trains it with the past as it was sampled; serve it so as well"
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("smollm2", {}, ""),
        ("llama3", {}, ""),
        ("llama3", {"tools": TOOLS}, ""),
        ("gemma", {}, ""),
        ("gemma", {"system": "Be brief."}, ""),
        ("qwen3", {}, DROPS.format("a user message")),
        ("qwen3", {"tools": TOOLS}, ""),
        ("qwen3", NO_THINKING, OPENS.format("a user message")),
        ("qwen3", {"tools": TOOLS, **NO_THINKING}, OPENS.format("a tool's answer")),
    ],
)
def test_a_template_that_rewrites_the_past_is_refused(family: str, options: dict[str, Any], said: str) -> None:
    found = refusal(family, **options)
    assert found.startswith(said)
    assert (REMEDY in found) == bool(said)
    assert bool(found) == bool(said)
    assert not refusal(family, **options, keep_past=True)


def test_qwen3_keeps_thinking_behind_tools_until_a_user_speaks() -> None:
    end, glue = ends_of("qwen3")[:1], glue_of("qwen3", tools=TOOLS)
    glue.between(end, [answer("4")])
    for said in ("on", [answer("4"), {"role": "user", "content": "on"}]):
        with pytest.raises(ConfigError, match="drops earlier thinking when a user message follows"):
            glue.between(end, said)
        glue_of("qwen3", tools=TOOLS, keep_past=True).between(end, said)


REWRITES = "the model's chat template rewrites earlier turns when a user message follows ("
BEGINS_THINKING = CHATML + "{{ '<think>\n' if add_generation_prompt }}"
SPACED = CHATML.replace("<|im_start|>{{", "{{ '\n' if loop.index > 3 and m.role == 'ROLE' }}<|im_start|>{{")
NO_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '<think></think>' ~ m.content.split('</think>')[-1] "
    "if m.role == 'assistant' else m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n<think></think>' if add_generation_prompt }}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, ""),
        (CHATML.replace("content }}", "content.replace('</think>\n\n', '</think>') }}"), ""),
        (BEGINS_THINKING, ""),
        (BEGINS_THINKING.replace("content }}", "content.split('</think>')[-1] }}"), DROPS.format("a user message")),
        (CHATML.replace("m.role }}", "m.role }} {{ loop.revindex }}"), REWRITES + r"'1\nquestion<|im_end|>"),
        (CHATML.replace("messages %}", "messages[-3:] %}"), REWRITES + "'question<|im_end|>"),
        (SPACED.replace("ROLE", "user"), REWRITES + "'<|im_start|>user"),
        (SPACED.replace("ROLE", "assistant"), REWRITES + "'<|im_start|>assistant"),
        ("{{ strftime_now('%S.%f') }}" + CHATML, ""),
        (NO_THOUGHT, ""),
    ],
    ids=["none", "space", "begun, kept", "begun, dropped", "numbered", "cut", "user", "model", "time", "not asked"],
)
def test_what_is_rewritten_is_said(template: str, said: str) -> None:
    found = refusal("smollm2", chat_template=template)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_templates_that_cannot_hold_a_conversation_are_named() -> None:
    users = CHATML.replace("messages %}", "messages if m.role == 'user' %}")
    assert refusal("smollm2", chat_template=users).startswith(
        "the model's chat template leaves out what the model has said, so it cannot hold a conversation: give another"
    )
    once = CHATML + "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    assert refusal("smollm2", chat_template=once) == (
        "the conversation: the model's chat template refuses the prompt (roles: user, assistant, user): TemplateError: "
        "one question"
    )


def test_tools_need_a_template_that_takes_them() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), name_or_path="small-chat")
    tokenizer.chat_template = CHATML
    with pytest.raises(ConfigError) as error:
        Glue(tokenizer, DataConfig(path="rows"), [0], tools=TOOLS)
    assert str(error.value) == (
        "the chat template of small-chat takes no tools, and the environment has some (calculator, search): take a "
        "model whose template does, or give one by data.chat_template_kwargs.chat_template"
    )
    with pytest.raises(ConfigError, match=r"tools \(calculator, search\), which a model reads of in its chat template"):
        Glue(tokenizer, DataConfig(path="rows", chat=False), [0], tools=TOOLS)
    given = {"chat_template_kwargs": {"tools": TOOLS}}
    with pytest.raises(ConfigError, match=r"chat_template_kwargs\.tools: the environment gives its own \(calculator"):
        Glue(tokenizer_of("qwen3"), DataConfig(path="rows", **given), [0], tools=TOOLS)


def test_tools_are_told_in_the_first_prompt() -> None:
    for family in TAKES_TOOLS:
        assert '"calculator"' in glue_of(family, tools=TOOLS, keep_past=True).opening("2+2", "")[0]


def test_a_message_that_the_template_refuses_is_an_error_in_its_words() -> None:
    with pytest.raises(ConfigError, match=r"refuses the prompt \(roles: user, assistant, system\).*take turns"):
        glue_of("gemma").between([], [{"role": "system", "content": "Be brief."}])


# A real tokenizer


@pytest.fixture(scope="module")
def smollm2() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "tools"))
        import small_model
    place = small_model.home()
    if not place.is_dir():
        pytest.skip(f"there is no model at {place}: `python tools/small_model.py` makes it (93 MB to download)")
    return AutoTokenizer.from_pretrained(place)


@pytest.mark.real_model
@pytest.mark.parametrize("turns", ["user", "tool"])
@settings(max_examples=15)
@given(data=st.data())
def test_with_smollm2_s_own_tokens_and_template(smollm2: Any, turns: str, data: st.DataObject) -> None:
    check_a_conversation(smollm2, "smollm2", turns, smollm2.eos_token_id, data)
