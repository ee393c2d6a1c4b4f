"""Chat templates: rendered once around markers, in a form that does not change from day to day.

A template is a program that comes with the model. What gistjax needs of one is that it writes the
instruction and, once and unchanged, what the user says; a template that does not is refused.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from gistjax.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTEXT, QUESTION, ANSWER = "@CONTEXT@", "@QUESTION@", "@ANSWER@"
TODAY = datetime.date(2024, 7, 26)
"""The date of templates that name today's, so that prompts never change; 26 Jul 2024 is the one
that Llama 3.x's template falls back to."""
PROBE = {CONTEXT: " \n<b>'Tis a Text, of  2 lines\n\nand MORE \n", QUESTION: "Who  is It & why?"}
"""Texts that a template must leave as they are."""

_CODES = (*"aAbBcdefHIjmMpSUwWxXyYzZ", *("-" + code for code in "dHIjmMSy"))
_STRFTIME = (
    "{% macro strftime_now(format='') %}{{ format"
    + "".join(f" | replace('%{code}', {TODAY.strftime('%' + code)!r})" for code in _CODES)
    + " }}{% endmacro %}\n"
)
"""Takes the place of the function that transformers gives to templates. Its line break is dropped
by Jinja, as any behind a block."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as text, with markers in place of context and question."""

    text: str
    answer_lead: str  # white space before an answer
    end: str  # what follows an answer


def render(tokenizer: PreTrainedTokenizerFast, instruction: str, user: str) -> Rendered:
    """Render the tokenizer's chat template, or a plain prompt where it has none.

    Args:
        instruction: the system turn. Where the template refuses one or leaves it out, the user's
            turn begins with it.
        user: the user's turn, with both markers in it.

    Raises:
        WeightsError: if the template fails, or loses, repeats or changes something.
    """
    if not tokenizer.chat_template:
        rendered = Rendered(f"{instruction}\n\n{user}\nAnswer:", " ", "")
    else:
        rendered = _render_chat(tokenizer, instruction, user)
    for marker in (CONTEXT, QUESTION):
        if (count := rendered.text.count(marker)) != 1:
            does = "writes the user's message twice" if count else "drops the user's message"
            raise _refused(f"{does}, so gistjax cannot tell where the context goes")
    if rendered.text.index(QUESTION) < rendered.text.index(CONTEXT):
        raise _refused("puts the question before the context")
    return rendered


def _render_chat(tokenizer: PreTrainedTokenizerFast, instruction: str, user: str) -> Rendered:
    turns = _turns(tokenizer, instruction, user)
    try:
        text = _apply(tokenizer, turns, add_generation_prompt=True)
        probed = _apply(tokenizer, _filled(turns), add_generation_prompt=True)
        answered = _apply(tokenizer, [*turns, _turn("assistant", ANSWER)])
    except Exception as error:  # a template is a program, and may raise anything
        raise WeightsError(
            f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} fails "
            f"({type(error).__name__}: {error}): give it another chat_template, or none."
        ) from error
    if CONTEXT in text and QUESTION in text and probed != fill(text):
        raise _refused(
            "changes the user's words, or trims a turn that begins with the context: let the "
            "task's turn begin with a word"
        )
    lead = ""
    if answered.startswith(text):
        lead = answered[len(text) :].partition(ANSWER)[0]
    if lead.strip():  # words before each answer, as of thoughts left out: the prompt says them
        said, lead = lead.rstrip(" "), lead[len(lead.rstrip(" ")) :]
        text += said
    return Rendered(text, lead, answered.partition(ANSWER)[2])


def _turns(tokenizer: PreTrainedTokenizerFast, instruction: str, user: str) -> list[dict[str, str]]:
    """Return system and user turn; the user's alone where the template writes no instruction.

    Raises:
        WeightsError: if it loses the instruction there too.
    """
    turns = [_turn("system", instruction), _turn("user", user)]
    try:
        asked = _apply(tokenizer, turns, add_generation_prompt=True)
        # Mistral's writes the instruction into the last turn alone: gone once that is answered
        answered = _apply(tokenizer, [*turns, _turn("assistant", ANSWER)])
        if instruction.strip() in asked and instruction.strip() in answered:
            return turns
    except Exception:  # raised on purpose, or for want of a user's turn in the first place
        pass
    turns = [_turn("user", f"{instruction}\n\n{user}")]
    try:
        text = _apply(tokenizer, turns, add_generation_prompt=True)
    except Exception:  # the caller renders again, and says so
        return turns
    if CONTEXT in text and instruction.strip() not in text:
        raise _refused("loses the instruction")
    return turns


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def fill(text: str) -> str:
    """Return a text with probes in place of its markers."""
    return text.replace(CONTEXT, PROBE[CONTEXT]).replace(QUESTION, PROBE[QUESTION])


def _filled(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**turn, "content": fill(turn["content"])} for turn in turns]


def _apply(
    tokenizer: PreTrainedTokenizerFast,
    turns: list[dict[str, str]],
    add_generation_prompt: bool = False,
) -> str:
    template = tokenizer.get_chat_template().removeprefix("\ufeff")  # a file may begin so
    if "strftime_now" in template:
        template = _STRFTIME + template
    text = tokenizer.apply_chat_template(
        turns,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        date_string=TODAY.strftime("%d %b %Y"),
        enable_thinking=False,  # else SmolLM3's asks for thoughts, and Qwen3's may
    )
    return cast(str, text)


def _refused(what: str) -> WeightsError:
    return WeightsError(
        f"the tokenizer's chat template {what}: give it another chat_template, or none."
    )
