"""Problems from files and the embedded task, prompts as token ids, and the order they come in."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlkit import embedded
from rlkit.config import DataConfig
from rlkit.data import Cursor, ProblemSet, as_problems, load_problems
from rlkit.data.prompts import prompt_tokens
from rlkit.errors import ConfigError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))


@pytest.fixture(scope="module")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(embedded.resolve("embedded:xs"))
    tokenizer.chat_template = CHATML
    return tokenizer


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tokenizer: Any, **settings: Any) -> ProblemSet:
    found = load_problems(DataConfig(**settings), tokenizer)
    assert found is not None
    return found


def test_embedded_task_has_disjoint_train_and_held_out_problems(tokenizer: Any) -> None:
    config = DataConfig(path="embedded:arithmetic")
    train, test = load_problems(config, tokenizer), load_problems(config, tokenizer, held_out=True)
    assert train is not None
    assert test is not None
    assert not {p.id for p in train.problems} & {p.id for p in test.problems}
    problem = train.problems[0]
    a, b = problem.text.removesuffix("=").split("+")
    assert problem.answer == str(int(a) + int(b))
    assert tokenizer.decode(problem.tokens) == problem.text
    assert (train.dropped_long, train.duplicates) == (0, 0)


def test_no_held_out_source_is_none_and_a_held_out_file_is_read(tmp_path: Path, tokenizer: Any) -> None:
    train = write(tmp_path, [{"prompt": "1+1=", "answer": "2"}], "train.jsonl")
    test = write(tmp_path, [{"prompt": "2+2=", "answer": "4"}], "test.jsonl")
    assert load_problems(DataConfig(path=train), tokenizer, held_out=True) is None
    held_out = load_problems(DataConfig(path=train, eval_path=test), tokenizer, held_out=True)
    assert held_out is not None
    assert [p.text for p in held_out.problems] == ["2+2="]


@pytest.mark.parametrize("kind", ["jsonl", "json", "lines.json", "parquet"])
def test_every_file_kind_gives_the_same_problems(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    rows = [{"q": "1+1=", "gold": {"value": 2}, "level": 1}, {"q": "1+2=", "gold": {"value": 3}, "level": 2}]
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n\n".join(json.dumps(r) for r in rows))
    found = load(tokenizer, path=str(path), prompt="q", answer="gold.value")
    assert [(p.text, p.answer, p.columns) for p in found.problems] == [
        ("1+1=", "2", {"gold": {"value": 2}, "level": 1}),
        ("1+2=", "3", {"gold": {"value": 3}, "level": 2}),
    ]


def test_verl_rows_are_read_unchanged(tmp_path: Path, chat_tokenizer: Any, tokenizer: Any) -> None:
    row = {
        "data_source": "math",
        "prompt": [{"role": "user", "content": "1+1="}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    }
    settings = {"path": write(tmp_path, [row]), "answer": "reward_model.ground_truth"}
    chat = load(chat_tokenizer, **settings).problems[0]
    assert chat.text == "<user>1+1=</user><assistant>"
    assert chat.answer == "2"
    assert chat.columns["data_source"] == "math"
    base = load(tokenizer, **settings).problems[0]
    assert base.text == "1+1="
    assert base.id == chat.id


def test_templates_and_systems(tmp_path: Path, tokenizer: Any, chat_tokenizer: Any) -> None:
    path = write(tmp_path, [{"prompt": r"\frac{1}{2}", "answer": "0.5"}])
    templated = load(chat_tokenizer, path=path, template="({prompt})=").problems[0]
    assert templated.text == r"(\frac{1}{2})="
    both = load(chat_tokenizer, path=path, template="({prompt})=", chat=True, system="1").problems[0]
    assert both.text == r"<system>1</system><user>(\frac{1}{2})=</user><assistant>"
    plain = load(chat_tokenizer, path=path, chat=False).problems[0]
    assert plain.text == r"\frac{1}{2}"
    assert len({templated.id, both.id, plain.id}) == 1
    assert prompt_tokens("1", DataConfig(path=path, template="({prompt})="), tokenizer) == tokenizer.encode("(1)=")
    for settings, said in [
        ({"template": "no place"}, "data.template must hold {prompt}"),
        ({"chat": True}, "no chat template"),
        ({"system": "1"}, "data.system needs a chat template"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(tokenizer, path=path, **settings)


def test_long_prompts_are_dropped_and_counted_and_duplicates_only_counted(tmp_path: Path, tokenizer: Any) -> None:
    prompts = ["1+1=", "1+1+1+1+1=", "1+1=", "2+2="]
    path = write(tmp_path, [{"prompt": p, "answer": "0"} for p in prompts])
    found = load(tokenizer, path=path, max_prompt_tokens=4)
    assert [p.text for p in found.problems] == ["1+1=", "1+1=", "2+2="]
    assert (found.dropped_long, found.duplicates) == (1, 1)
    with pytest.raises(ConfigError, match=r"all 4 prompts are over data\.max_prompt_tokens \(3 tokens; .* has 4\)"):
        load(tokenizer, path=path, max_prompt_tokens=3)


def test_golds_become_text(tmp_path: Path, tokenizer: Any) -> None:
    golds: list[Any] = ["a", 12, 0.5, ["$8$"], None]
    path = write(tmp_path, [{"prompt": "1", "answer": gold} for gold in golds])
    assert [p.answer for p in load(tokenizer, path=path).problems] == ["a", "12", "0.5", "$8$", ""]


def test_structured_golds_come_as_json_and_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    golds: list[Any] = [{"target": 3, "numbers": [1, 2]}, ["a", "b"], [], [None], [float("nan"), "x"], float("nan")]
    path = write(tmp_path, [{"prompt": "1", "answer": gold} for gold in golds])
    problems = load(tokenizer, path=path).problems
    assert [p.answer for p in problems] == ['{"target": 3, "numbers": [1, 2]}', '["a", "b"]', "", "", "x", ""]
    assert [p.gold for p in problems[:4]] == golds[:4]
    assert problems[5].gold is None


def test_golds_of_a_table(tmp_path: Path, tokenizer: Any) -> None:
    cells = [Decimal("1.50"), Decimal("-2.00")]
    day = datetime.date(2024, 2, 29)
    table = pa.table({"prompt": ["1", "2"], "answer": cells, "day": [day, None], "empty": [1.0, float("nan")]})
    pq.write_table(table, tmp_path / "rows.parquet")
    path = str(tmp_path / "rows.parquet")
    found = load(tokenizer, path=path).problems
    assert [(p.answer, p.gold) for p in found] == [("1.50", Decimal("1.50")), ("-2.00", Decimal("-2.00"))]
    assert [p.answer for p in load(tokenizer, path=path, answer="day").problems] == ["2024-02-29", ""]
    assert [(p.answer, p.gold) for p in load(tokenizer, path=path, answer="empty").problems] == [
        ("1.0", 1.0),
        ("", None),
    ]


def test_the_question_comes_as_it_is(tmp_path: Path, chat_tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(tmp_path, [{"prompt": messages, "answer": 2}, {"prompt": "2+2?", "answer": 4}])
    problems = load(chat_tokenizer, path=path).problems
    assert [p.question for p in problems] == [messages, "2+2?"]
    assert problems[1].text == "<user>2+2?</user><assistant>"


def test_a_missing_file_names_its_neighbours(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path, [{}], "gsm8k_train.jsonl")
    said = r"^data\.path: data file '.*' does not exist; did you mean 'gsm8k_train.jsonl'\?"
    with pytest.raises(ConfigError, match=said) as caught:
        load(tokenizer, path=str(tmp_path / "gsm8k_trian.jsonl"))
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="there is no folder"):
        load(tokenizer, path=str(tmp_path / "nowhere" / "rows.jsonl"))


def test_missing_held_out_problems_name_their_setting(tokenizer: Any) -> None:
    config = DataConfig(path="embedded:arithmetic", eval_path="nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"^data\.eval_path: data file 'nowhere\.jsonl' does not exist"):
        load_problems(config, tokenizer, held_out=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\n  \n", "holds no problems"),
        ("[]", "holds no problems"),
        ('{"prompt": "1", "answer": "2"}\n{"prompt": ', r"line 2: not JSON: .*'\{\"prompt\":'"),
        ('[{"prompt": "1"},\n{"prompt" 1}]', "line 2: not JSON"),
        ('{"prompt": "1", "answer": "2"}\n3', "line 2: expected an object with named columns, got int"),
        ("prompt,answer\n1,2", "line 1: not JSON"),
        ('{"prompt": "", "answer": "2"}', "row 1: the prompt is empty"),
        ('{"prompt": 5, "answer": "2"}', "row 1: the prompt must be text"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, tokenizer: Any, text: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(tokenizer, path=str(path))
    assert "rows.jsonl" in str(caught.value)


def test_bad_bytes(tmp_path: Path, tokenizer: Any) -> None:
    for name, said in [("rows.jsonl", "not UTF-8"), ("rows.parquet", "cannot be read as parquet")]:
        (tmp_path / name).write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(ConfigError, match=said):
            load(tokenizer, path=str(tmp_path / name))
    (tmp_path / "rows.csv").write_text("prompt,answer")
    with pytest.raises(ConfigError, match=r"cannot read \.csv; give a \.json, \.jsonl or \.parquet file"):
        load(tokenizer, path=str(tmp_path / "rows.csv"))


def test_a_lacking_column_names_the_nearest_and_all(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, [{"question": "1", "answer": "2", "meta": {"ground_truth": "2"}}])
    with pytest.raises(
        ConfigError, match=r"row 1: no column 'questoin'; did you mean 'question'\?.*Set data.prompt"
    ) as e:
        load(tokenizer, path=path, prompt="questoin")
    assert "columns: question, answer, meta, meta.ground_truth" in str(e.value)
    with pytest.raises(ConfigError, match=r"no column 'meta\.truth'; did you mean .*'meta\.ground_truth'"):
        load(tokenizer, path=path, prompt="question", answer="meta.truth")


def test_rows_that_lack_the_column_are_counted_from_one(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[dict[str, str]] = [{"question": "1", "answer": "2"}] * 9
    for i in (1, 3, 4, 5, 6, 8):
        rows[i] = {"answer": "2", "text": "1"}
    with pytest.raises(ConfigError) as caught:
        load(tokenizer, path=write(tmp_path, rows), prompt="question")
    assert str(caught.value).partition(".jsonl")[2] == (
        ", row 2: no column 'question' (columns: answer, text); of 9 rows 6 lack it (2, 4, 5, 6, 7, ...). Give them "
        "one, leave them out, or set data.prompt to another column"
    )


def test_unknown_embedded_data_and_split(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'embedded:arithmetic'"):
        load(tokenizer, path="embedded:arithmetics")
    with pytest.raises(ConfigError, match="no split 'tset'; did you mean 'test'"):
        load(tokenizer, path="embedded:arithmetic", split="tset")


def test_several_messages_need_a_chat_template(tmp_path: Path, tokenizer: Any, chat_tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}]
    path = write(tmp_path, [{"prompt": messages, "answer": "2"}])
    assert load(chat_tokenizer, path=path).problems[0].text == "<system>1</system><user>2</user><assistant>"
    with pytest.raises(ConfigError, match="2 chat messages cannot be put to a model without its chat template"):
        load(tokenizer, path=path)
    with pytest.raises(ConfigError, match="system message of its own"):
        load(chat_tokenizer, path=path, system="3")


def byte_tokenizer(single: str = "$A", chat: str | None = None, bos: str | None = "<s>") -> Any:
    """Bytes, and the tokens <s>, </s> and [X]; `single` is what the post-processor makes of a text."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "[X]"]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, tokenizer.token_to_id(token)) for token in special]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>")
    made.chat_template = chat
    return made


def read(tokenizer: Any, *prompts: Any, **settings: Any) -> tuple[list[str], list[str]]:
    """What the model reads of prompts, and what is said of it."""
    rows = [{"prompt": prompt, "answer": ""} for prompt in prompts]
    found = as_problems(rows, DataConfig(path="rows", **settings), tokenizer, "rows")
    texts = [tokenizer.decode(problem.tokens) for problem in found.problems]
    config = DataConfig(path="rows", **settings)
    assert texts == [tokenizer.decode(prompt_tokens(prompt, config, tokenizer)) for prompt in prompts]
    return texts, found.put


@pytest.mark.parametrize(
    ("single", "settings", "prompts", "expected", "said"),
    [
        ("$A </s>", {}, ["ab", "c"], ["ab", "c"], ["</s>, which the tokenizer adds behind a text, is left out"]),
        ("[X] $A [X] </s>", {}, ["ab"], ["[X]ab"], ["[X] </s>, which the tokenizer adds behind a text, is left out"]),
        ("<s> $A", {}, ["<s>ab", "c", "<s><s>d"], ["<s>ab", "<s>c", "<s>d"],
         ["<s> begins each, once where it came twice (2)"]),
        ("$A", {}, ["<s>ab", "c"], ["<s>ab", "c"], ["<s> begins 1 of 2"]),
        ("<s> $A", {"template": "<s>Q: {prompt}"}, ["a", "<s>b"], ["<s>Q: a", "<s>Q: b"],
         ["<s> begins each, once where it came twice (2)"]),
        ("<s> $A", {"template": "Q: {prompt}"}, ["<s>b"], ["<s>Q: b"], ["<s> begins each"]),
        ("<s> $A", {}, ["a<s>b"], ["<s>a<s>b"], ["<s> begins each"]),
        ("$A", {}, ["ab"], ["ab"], []),
    ],
)  # fmt: skip
def test_a_prompt_begins_once_and_does_not_end(
    single: str, settings: dict[str, Any], prompts: list[str], expected: list[str], said: list[str]
) -> None:
    assert read(byte_tokenizer(single), *prompts, **settings) == (expected, said)


def test_a_chat_template_s_begin_token_stands_once_too() -> None:
    tokenizer = byte_tokenizer("<s> $A </s>", "{{ bos_token }}" + CHATML)
    question = [{"role": "user", "content": "<s>c"}]
    texts, put = read(tokenizer, "ab", "<s>b", question)
    assert texts == [f"<s><user>{each}</user><assistant>" for each in ("ab", "b", "c")]
    assert put == ["<s> begins each"]
    assert read(tokenizer, "ab", template="<s>({prompt})", chat=True)[0] == ["<s><user>(ab)</user><assistant>"]
    doubled = byte_tokenizer("$A", "<s>{{ bos_token }}" + CHATML)
    assert read(doubled, "ab")[0] == ["<s><user>ab</user><assistant>"]
    none = byte_tokenizer("$A </s>", bos=None)
    assert read(none, "<s><s>ab")[0] == ["<s><s>ab"], "it has no begin token: what is written is meant"


def test_an_assistant_s_last_message_is_gone_on_with(tmp_path: Path) -> None:
    def ends_in(content: str, role: str = "assistant") -> list[dict[str, str]]:
        return [{"role": "user", "content": "q"}, {"role": role, "content": content}]

    tokenizer = byte_tokenizer("$A", CHATML)
    texts, put = read(tokenizer, ends_in("Let me see.\n<think>"), ends_in(""), ends_in("t", "tool"), "q")
    assert texts == [
        "<user>q</user><assistant>Let me see.\n<think>",
        "<user>q</user><assistant>",
        "<user>q</user><tool>t</tool><assistant>",
        "<user>q</user><assistant>",
    ]
    assert put == ["the model goes on with the assistant's message in 1 of 4"]
    assert read(tokenizer, ends_in("So"), system="S")[0] == ["<system>S</system><user>q</user><assistant>So"]
    trims = byte_tokenizer("$A", CHATML.replace("m.content", "m.content | trim"))
    assert read(trims, ends_in("So the"))[0] == ["<user>q</user><assistant>So the"]
    drops = byte_tokenizer("$A", CHATML.replace("messages", "messages[:1]"))
    with pytest.raises(ConfigError, match=r"row 1: the model's chat template refuses .*does not appear in the"):
        read(drops, ends_in("So"))


@pytest.mark.parametrize(
    ("template", "settings", "prompt", "said"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
         {"system": "S"}, "q", r"roles: system, user\): TemplateError: no system\. It takes no system message here: "
         r"leave it out \(data\.system\), or write it into the user's message"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
         {}, [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}],
         "takes no system message here: leave it out, or write"),
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('users last') }}{% endif %}" + CHATML,
         {}, [{"role": "user", "content": "q"}, {"role": "tool", "content": "t"}], r"TemplateError: users last$"),
        ("{{ date.today }}" + CHATML, {}, "q", r"'date' is undefined\. Variables of its own are given by data\.chat_"),
        ("{{ messages[0].content + 1 }}", {}, "q", r"TypeError: can only concatenate"),
        ("{{ 1 / 0 }}", {}, "q", "ZeroDivisionError"),
        ("{% for m in messages %}", {}, "q", "TemplateSyntaxError"),
        ("{{ messages[0].content[:0] }}", {}, "q", "the chat template makes nothing of the prompt"),
    ],
)  # fmt: skip
def test_whatever_a_chat_template_refuses_is_said_with_the_row(
    template: str, settings: dict[str, Any], prompt: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        read(byte_tokenizer("$A", template), prompt, **settings)
    assert str(error.value).startswith("rows, row 1: ")


def test_no_messages_are_no_prompt(chat_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="row 1: the prompt is empty"):
        read(chat_tokenizer, [])


def test_data_without_golds(tmp_path: Path, tokenizer: Any) -> None:
    bare = write(tmp_path, [{"prompt": "1"}, {"prompt": "2", "level": 3}], "bare.jsonl")
    found = load(tokenizer, path=bare, answer=None).problems
    assert [(p.answer, p.columns) for p in found] == [("", {}), ("", {"level": 3})]
    mixed = write(tmp_path, [{"prompt": "1"}, {"prompt": "2", "answer": 4}, {"prompt": "3", "answer": None}], "m.jsonl")
    assert [p.answer for p in load(tokenizer, path=mixed).problems] == ["", "4", ""]
    nested = write(tmp_path, [{"prompt": "1", "meta": None}, {"prompt": "2", "meta": {"gold": "a"}}], "n.jsonl")
    assert [p.answer for p in load(tokenizer, path=nested, answer="meta.gold").problems] == ["", "a"]
    with pytest.raises(ConfigError, match=r"bare\.jsonl, in all rows: no column 'answer'.*prompt, level.*answer=null"):
        load(tokenizer, path=bare)
    with pytest.raises(ConfigError, match=r"no column 'meta\.golds'; did you mean 'meta\.gold'"):
        load(tokenizer, path=nested, answer="meta.golds")


def test_arguments_of_chat_templates() -> None:
    tokenizer = byte_tokenizer("$A", CHATML + "{% if thinks is defined and not thinks %}<done>{% endif %}")
    assert read(tokenizer, "q")[0] == ["<user>q</user><assistant>"]
    assert read(tokenizer, "q", chat_template_kwargs={"thinks": False})[0] == ["<user>q</user><assistant><done>"]
    for given, said in [
        ({"think": False}, "reads no 'think'; did you mean 'thinks'"),
        ({"nothing_like_it": 1}, "reads no 'nothing_like_it': leave it out"),
        ({"tokenize": True}, "tokenize follows from the data"),
    ]:
        with pytest.raises(ConfigError, match=said):
            read(tokenizer, "q", chat_template_kwargs=given)
    with pytest.raises(ConfigError, match=r"data\.chat_template_kwargs needs a chat template"):
        read(byte_tokenizer(), "q", chat_template_kwargs={"thinks": False})


def test_gsm8k_rows_are_read_as_they_are(tokenizer: Any) -> None:
    path = SHARED / "gsm8k_train.jsonl"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    found = load(tokenizer, path=str(path), prompt="question", max_prompt_tokens=4096)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found.problems) == len(rows) == 7473
    assert [p.answer for p in found.problems] == [row["answer"] for row in rows]


def test_cursor_goes_through_everything_once_a_pass_in_a_fresh_order() -> None:
    cursor = Cursor(10, seed=3)
    passes = [cursor.take(10) for _ in range(3)]
    assert all(sorted(p) == list(range(10)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3
    assert passes[0] != Cursor(10, seed=4).take(10)


def test_cursor_position_is_all_there_is_to_save() -> None:
    straight, cut = Cursor(7, seed=5), Cursor(7, seed=5)
    whole = straight.take(40)
    parts = cut.take(3) + cut.take(9)
    resumed = Cursor(7, seed=5, position=cut.position)
    assert parts + resumed.take(28) == whole
    assert resumed.position == straight.position == 40
    # The order itself is a promise: a run resumed under another numpy must meet it.
    assert Cursor(7, seed=5).take(14) == [4, 3, 5, 6, 2, 0, 1, 6, 1, 5, 4, 2, 0, 3]
