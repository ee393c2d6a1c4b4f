"""The pieces of a prompt against the whole prompt, for tokenizers of every kind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from gistjax.data.chat_template import CONTEXT, QUESTION
from gistjax.data.prompts import INSTRUCTION, USER, make_prompt
from gistjax.errors import WeightsError
from tests.helpers.small_tokenizers import CHATML, KINDS, LLAMA_2, TEMPLATES, small_tokenizer

MILL = "The mill was built in 1783 by Anneke Dursel."
WHO = "Who built the mill?"
CUT = {"stripping", "space before each digit"}
"""Kinds that change a text where it is cut."""


def rendered(tokenizer, context, question, answer=None):
    user = USER.replace(CONTEXT, context).replace(QUESTION, question)
    if tokenizer.chat_template is None:
        return f"{INSTRUCTION}\n\n{user}\nAnswer:" + (f" {answer}</s>" if answer else "")
    turns = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": user}]
    turns += [{"role": "assistant", "content": answer}] if answer else []
    return tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=answer is None
    )


def whole_ids(tokenizer, text):
    own = tokenizer(text, add_special_tokens=False).input_ids
    return own if tokenizer.chat_template else [tokenizer.bos_token_id, *own]


def pieces(prompt, context, question):
    return [
        list(prompt.prefix_ids),
        prompt.encode_context(context).tolist(),
        prompt.encode_question(question).tolist(),
    ]


def joined(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - CUT - {"merges over spaces"}))
def test_pieces_are_the_whole_prompt(kind, template):
    tokenizer = small_tokenizer(kind, TEMPLATES[template])
    prompt = make_prompt(tokenizer)
    ids = sum(pieces(prompt, MILL, WHO), [])
    assert ids == whole_ids(tokenizer, rendered(tokenizer, MILL, WHO))
    answered = [*ids, *prompt.encode_answer("Anneke Dursel")]
    whole = whole_ids(tokenizer, rendered(tokenizer, MILL, WHO, "Anneke Dursel"))
    if template == "llama 2":  # a space stands before its end token; an answer has none
        end = whole.index(prompt.end_id)
        whole = [*whole[: end - 1], whole[end]] if whole[end - 1] not in answered[-2:] else whole
    assert answered == whole[: len(answered)]


def test_a_lone_space_piece_stands_nowhere():
    prompt = make_prompt(small_tokenizer("prepend", LLAMA_2))
    parts = [*pieces(prompt, MILL, WHO)[1:], prompt.encode_answer("Anneke Dursel").tolist()]
    context, question, answer = (prompt.tokenizer.convert_ids_to_tokens(part) for part in parts)
    assert context[0].startswith("T")
    assert question[:3] == ["<0x0A>", "<0x0A>", "Question"]
    assert "▁" not in question and answer[0].startswith("▁A")


text = st.text("abT 17.?\n\t'é東<>[/INST]|_end", max_size=25)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - CUT))
@settings(max_examples=25)
@given(context=text, question=text.map(str.strip).filter(bool))
def test_where_a_token_reaches_over_a_cut_the_pieces_still_spell_the_whole(kind, context, question):
    tokenizer = small_tokenizer(kind, LLAMA_2)
    parts = pieces(make_prompt(tokenizer), context, question)
    whole = whole_ids(tokenizer, rendered(tokenizer, context, question))
    spelt = joined(tokenizer, whole)
    if "<unk>" not in spelt:  # one may stand for several characters
        assert joined(tokenizer, sum(parts, [])) == spelt
    cuts = {len(joined(tokenizer, sum(parts[:n], []))) for n in (1, 2)}
    ends = {len(joined(tokenizer, whole[:n])) for n in range(len(whole))}
    if cuts <= ends and "<unk>" not in spelt:  # no token reaches over one
        assert sum(parts, []) == whole


@pytest.mark.parametrize("kind", sorted(CUT))
def test_a_tokenizer_that_changes_what_it_is_cut_from_is_refused(kind):
    with pytest.raises(WeightsError, match="changes a text where it is cut"):
        make_prompt(small_tokenizer(kind))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["prepend", "metaspace first", "byte level"])
def test_begin_and_end_tokens_stand_once_whoever_writes_them(kind, template):
    prompt = make_prompt(small_tokenizer(kind, TEMPLATES[template], begins=True, ends=True))
    begin, end = prompt.tokenizer.bos_token_id, prompt.tokenizer.eos_token_id
    parts = [*pieces(prompt, MILL, WHO), prompt.encode_answer("Anneke").tolist()]
    assert [part.count(begin) for part in parts] == [1, 0, 0, 0]
    own_end = template != "chatml"
    assert [part.count(end) for part in parts] == [0, 0, 0, int(own_end)]
    assert parts[0][0] == begin


def test_a_tokenizer_that_adds_no_begin_token_gets_none():
    prompt = make_prompt(small_tokenizer("prepend", None, begins=False))
    assert prompt.tokenizer.bos_token_id not in prompt.prefix_ids


def test_an_answer_right_behind_a_special_token_begins_a_section():
    template = (
        CHATML.replace("assistant\\n", "assistant<s>")
        .replace("{{ message['role'] }}\n", "{{ message['role'] }}{{ '<s>' }}")
        .replace("assistant\n", "assistant<s>")
    )
    tokenizer = small_tokenizer("prepend", template)
    prompt = make_prompt(tokenizer)
    ids = sum(pieces(prompt, MILL, WHO), []) + prompt.encode_answer("Anneke").tolist()
    assert ids == whole_ids(tokenizer, rendered(tokenizer, MILL, WHO, "Anneke"))[: len(ids)]


def test_words_that_were_added_split_a_users_text_as_they_split_the_whole():
    tokenizer = small_tokenizer("prepend", LLAMA_2)
    tokenizer.add_tokens([AddedToken("Dursel", normalized=False)])
    context = "a Dursel b Dursel."
    ids = sum(pieces(make_prompt(tokenizer), context, "Who is Dursel ?"), [])
    assert ids == whole_ids(tokenizer, rendered(tokenizer, context, "Who is Dursel ?"))
    [encoding] = make_prompt(tokenizer).encode_texts([context])
    added = tokenizer.convert_tokens_to_ids("Dursel")
    places = [encoding.token_to_chars(i) for i, token in enumerate(encoding.ids) if token == added]
    assert places == [(2, 8), (11, 17)]


def test_a_tokenizer_that_draws_its_merges_draws_no_more():
    tokenizer = small_tokenizer("prepend", LLAMA_2)
    expected = make_prompt(tokenizer).encode_context(MILL).tolist()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    prompt = make_prompt(tokenizer)
    assert all(prompt.encode_context(MILL).tolist() == expected for _ in range(5))
    assert sum(pieces(prompt, MILL, WHO), []) == whole_ids(
        tokenizer, rendered(tokenizer, MILL, WHO)
    )


@pytest.mark.parametrize("kind", ["byte level", "prepend"])
def test_tokens_that_swallow_the_white_space_behind_them(kind):
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = small_tokenizer(kind, template)
    names = ("system", "user", "assistant", "end")
    tokenizer.backend_tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", special=True, rstrip=True, normalized=False) for name in names]
    )
    prompt = make_prompt(tokenizer)
    ids = sum(pieces(prompt, MILL, WHO), []) + prompt.encode_answer("Anneke").tolist()
    assert ids == whole_ids(tokenizer, rendered(tokenizer, MILL, WHO, "Anneke"))[: len(ids)]


@pytest.mark.parametrize("kind", ["byte level", "prepend", "unigram"])
def test_answers_are_decoded_as_they_were_written(kind):
    tokenizer = small_tokenizer(kind, LLAMA_2)
    tokenizer.clean_up_tokenization_spaces = True
    prompt = make_prompt(tokenizer)
    ids = prompt.encode_answer("the mill , the river .").tolist()
    beyond = len(tokenizer) + 5  # an embedding may have more rows than there are tokens
    assert prompt.decode([*ids, beyond]) == "the mill , the river ."
