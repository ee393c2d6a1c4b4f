"""Prompts of chat templates: published kinds, odd ones, and those that are refused."""

import copy

import pytest

from gistjax.data.prompts import make_prompt
from gistjax.errors import WeightsError

LLAMA_LIKE = (
    "{{ bos_token }}<|im_start|>system\nToday: "
    "{% if date_string is defined %}{{ date_string }}{% else %}{{ strftime_now('%d %b %Y') }}"
    "{% endif %}\n"
    "{{ messages[0]['content'] }}<|im_end|>{% for message in messages[1:] %}"
    "<|im_start|>{{ message['role'] }}\n\n{{ message['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def test_dates_are_pinned_and_bos_is_the_templates(tokenizer):
    prompt = make_prompt(with_template(tokenizer, LLAMA_LIKE))
    text = tokenizer.decode(prompt.prefix_ids)
    assert "Today: 26 Jul 2024" in text
    assert list(prompt.prefix_ids).count(tokenizer.bos_token_id) == 3  # bos, system turn, user turn
    assert tokenizer.decode(prompt.question_close_ids).endswith("assistant\n\n")
    assert prompt.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_template_without_a_system_turn_and_with_a_space_before_answers(tokenizer):
    prompt = make_prompt(with_template(tokenizer, NO_SYSTEM))
    assert tokenizer.decode(prompt.prefix_ids).startswith("[INST] Answer the question")
    assert tokenizer.decode(prompt.encode_question("Who?")).endswith("Question: Who? [/INST]")
    assert tokenizer.decode(prompt.encode_answer("cat")) == " cat<|endoftext|>"


def test_a_tokenizer_without_a_template(tokenizer):
    prompt = make_prompt(with_template(tokenizer, None))
    assert tokenizer.decode(prompt.encode_question("Who?")) == "\n\nQuestion: Who?\nAnswer:"
    assert tokenizer.decode(prompt.encode_answer("cat")) == " cat<|endoftext|>"


def test_a_template_that_loses_the_message_is_refused(tokenizer):
    with pytest.raises(WeightsError, match="chat template"):
        make_prompt(with_template(tokenizer, "hello{% if add_generation_prompt %}:{% endif %}"))


def test_a_template_file_may_have_a_mark_and_other_line_ends(tokenizer, prompt):
    marked = "\ufeff" + tokenizer.chat_template.replace("\n", "\r\n")
    assert make_prompt(with_template(tokenizer, marked)).sha256 == prompt.sha256


def test_a_template_that_asks_for_today_gets_the_same_day(tokenizer):
    template = LLAMA_LIKE.replace(
        "{% if date_string is defined %}{{ date_string }}{% else %}", "{% if true %}"
    ).replace("'%d %b %Y'", "'%A, %-d. %B %Y %H:%M'")
    text = tokenizer.decode(make_prompt(with_template(tokenizer, template)).prefix_ids)
    assert "Today: Friday, 26. July 2024 00:00" in text


SKIPS_SYSTEM = NO_SYSTEM.replace("{{ raise_exception('no system') }}", "").replace(
    "{% if message['role'] == 'user' %}",
    "{% if message['role'] == 'system' %}{% elif message['role'] == 'user' %}",
)


def test_an_instruction_that_a_template_skips_begins_the_users_turn(tokenizer):
    prompt = make_prompt(with_template(tokenizer, SKIPS_SYSTEM), "Answer briefly.")
    assert tokenizer.decode(prompt.prefix_ids) == "[INST] Answer briefly.\n\nContext:\n"


CHANGED = {
    "loses the instruction": "{{ 'Context:' + messages[-1]['content'].split('Context:')[-1] }}",
    "twice": "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
    "drops the user's message": "{{ messages[0]['content'] }}",
    "changes the user's words": (
        "{% for m in messages %}{{ m['content'] | replace('  ', ' ') }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("problem", CHANGED)
def test_a_template_that_loses_repeats_or_changes_a_turn_is_refused(tokenizer, problem):
    with pytest.raises(WeightsError, match=problem):
        make_prompt(with_template(tokenizer, CHANGED[problem]))


def test_a_template_that_trims_takes_no_turn_that_begins_with_the_context(tokenizer):
    trims = with_template(tokenizer, LLAMA_LIKE)
    assert "Context:" in tokenizer.decode(make_prompt(trims).prefix_ids)
    with pytest.raises(WeightsError, match="trims a turn that begins with the context"):
        make_prompt(trims, user="@CONTEXT@\n\n@QUESTION@")


def test_the_end_of_a_turn_is_found_where_a_generation_prompt_says_more(tokenizer):
    thinks = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    prompt = make_prompt(with_template(tokenizer, thinks))
    assert tokenizer.decode(prompt.question_close_ids).endswith("assistant\n<think>\n")
    assert prompt.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- message.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

THINKS_UNLESS_TOLD = (
    "{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}"
    "{%- set lead = '' if enable_thinking else '<think>\\n\\n</think>\\n' %}"
    "{{- '<|im_start|>system\\n## Metadata\\nToday: ' + strftime_now('%d %B %Y') + '\\n' }}"
    "{{- 'Reasoning Mode: ' + ('/think' if enable_thinking else '/no_think') + '\\n\\n' }}"
    "{%- for message in messages %}{%- if message.role == 'system' %}{{- message.content }}"
    "{%- else %}{{- '<|im_end|>\\n<|im_start|>' + message.role + '\\n' }}"
    "{{- (lead if message.role == 'assistant' else '') + message.content }}{%- endif %}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + lead }}{%- endif %}"
)
"""As SmolLM3's."""


@pytest.mark.parametrize(
    ("template", "close", "end"),
    [
        (MISTRAL, " [/INST]", "<|endoftext|>"),
        (THINKS_UNLESS_TOLD, "assistant\n<think>\n\n</think>\n", "<|im_end|>"),
        (THINKING, "assistant\n<think>\n\n</think>\n\n", "<|im_end|>"),
        ({"default": MISTRAL, "tool_use": "no"}, " [/INST]", "<|endoftext|>"),
    ],
)
def test_published_kinds_of_templates(tokenizer, template, close, end):
    prompt = make_prompt(with_template(tokenizer, template))
    assert "Answer the question" in tokenizer.decode(prompt.prefix_ids)
    assert tokenizer.decode(prompt.encode_question("Who?")).endswith(close)
    assert tokenizer.decode(prompt.encode_answer("cat")) == f"cat{end}"


def test_an_instruction_that_only_the_last_turn_has_goes_to_the_users(tokenizer):
    """As in Mistral v0.3, which writes a space before each answer."""
    template = (
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST] ' }}{% if loop.last %}{{ system }}{% endif %}"
        "{{ m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    prompt = make_prompt(with_template(tokenizer, template))
    assert "[INST] Answer the question" in tokenizer.decode(prompt.prefix_ids)
    assert tokenizer.decode(prompt.encode_answer("cat")) == " cat<|endoftext|>"


def test_a_template_for_lists_of_parts_is_refused(tokenizer):
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with pytest.raises(WeightsError, match="drops the user's message"):
        make_prompt(with_template(tokenizer, parts))
