"""Chat templates that format conversations as families of models do, and a tokenizer that they stand on.

What a system message says of tools, in a family's own words, is left short here: all that is between turns is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CHATML = "{% macro turn(role, text) %}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{% endmacro %}"

SMOLLM2 = (
    _CHATML
    + """
{%- if messages[0].role != 'system' -%}
    {{ turn('system', 'You are a helpful AI assistant named SmolLM, trained by Hugging Face') }}
{%- endif -%}
{%- for message in messages -%}{{ turn(message.role, message.content) }}{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}"""
)

QWEN3 = (
    _CHATML
    + r"""
{%- set first = messages[0].content if messages[0].role == 'system' -%}
{%- if tools -%}
    {%- set listed = namespace(text='# Tools\n<tools>') -%}
    {%- for tool in tools -%}{%- set listed.text = listed.text ~ '\n' ~ (tool | tojson) -%}{%- endfor -%}
    {{ turn('system', (first ~ '\n\n' if first is string else '') ~ listed.text ~ '\n</tools>') }}
{%- elif first is string -%}
    {{ turn('system', first) }}
{%- endif -%}
{#- Thinking stays behind the last thing that a user, and no tool, has said. -#}
{%- set asked = namespace(at=messages | length - 1) -%}
{%- for message in messages -%}
    {%- set text = message.content -%}
    {%- set tool = text.startswith('<tool_response>') and text.endswith('</tool_response>') -%}
    {%- if message.role == 'user' and not tool -%}{%- set asked.at = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
        {{ turn(message.role, message.content) }}
    {%- elif message.role == 'assistant' -%}
        {%- set parts = message.content.split('</think>') -%}
        {%- set thought = parts[0].rstrip('\n').split('<think>')[-1].strip('\n') if parts | length > 1 else '' -%}
        {%- set answer = parts[-1].lstrip('\n') if parts | length > 1 else message.content -%}
        {%- if loop.index0 > asked.at and (loop.last or thought) -%}
            {%- set answer = '<think>\n' ~ thought ~ '\n</think>\n\n' ~ answer.lstrip('\n') -%}
        {%- endif -%}
        {{ turn('assistant', answer) }}
    {%- elif message.role == 'tool' -%}
        {{ '<|im_start|>user' if loop.previtem is not defined or loop.previtem.role != 'tool' }}
        {{- '\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.nextitem is not defined or loop.nextitem.role != 'tool' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\n' }}
    {{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false }}
{%- endif -%}"""
)

LLAMA3 = r"""{% macro turn(role, text) %}
{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' ~ text ~ '<|eot_id|>' }}
{%- endmacro %}
{%- set date = date_string if date_string is defined else strftime_now('%d %b %Y') -%}
{%- set own = messages[0].role == 'system' -%}
{{ bos_token }}
{{- turn('system', ('Environment: ipython\n' if tools else '') ~ 'Cutting Knowledge Date: December 2023\nToday Date: '
        ~ date ~ '\n\n' ~ (messages[0].content | trim if own else '')) }}
{%- for message in (messages[1:] if own else messages) -%}
    {%- if message.role in ('tool', 'ipython') -%}
        {{ turn('ipython', message.content | tojson) }}
    {%- elif tools and loop.first -%}
        {{ turn('user', 'Functions:\n\n' ~ (tools | map('tojson', indent=4) | join('\n\n')) ~ '\n\n'
                ~ message.content | trim) }}
    {%- else -%}
        {{ turn(message.role, message.content | trim) }}
    {%- endif -%}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"""

GEMMA = r"""{{ bos_token }}
{%- set own = messages[0].role == 'system' -%}
{%- for message in (messages[1:] if own else messages) -%}
    {%- if (message.role == 'user') == (loop.index0 % 2 == 1) -%}
        {{ raise_exception('user and assistant must take turns') }}
    {%- endif -%}
    {{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\n' }}
    {{- messages[0].content ~ '\n\n' if own and loop.first }}
    {{- message.content | trim ~ '<end_of_turn>\n' }}
{%- endfor -%}
{{ '<start_of_turn>model\n' if add_generation_prompt }}"""


@dataclass(frozen=True)
class Family:
    template: str
    ends: tuple[str, ...]
    """The token that the template closes a turn with, and the model's other end tokens."""
    begin: str | None = None
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Tokens of their own that are not special."""

    def tokenizer(self) -> Any:
        """Bytes, merged as often as these templates and a few words teach it."""
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator([QWEN3, LLAMA3, GEMMA, "abab", "higher or lower\n\n the answer is"], trainer)
        made.add_special_tokens([*self.ends, *filter(None, [self.begin]), *self.special])
        made.add_tokens([AddedToken(name, normalized=False) for name in self.added])
        fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=self.begin, eos_token=self.ends[0])
        fast.chat_template = self.template
        return fast


FAMILIES = {
    "smollm2": Family(SMOLLM2, ("<|im_end|>", "<|endoftext|>"), special=("<|im_start|>",)),
    "qwen3": Family(
        QWEN3,
        ("<|im_end|>", "<|endoftext|>"),
        special=("<|im_start|>",),
        added=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    "llama3": Family(
        LLAMA3,
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        begin="<|begin_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "gemma": Family(GEMMA, ("<end_of_turn>", "<eos>"), begin="<bos>", special=("<start_of_turn>",)),
}
