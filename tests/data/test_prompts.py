"""Ids of prompts, contexts and answers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistjax.config import DataConfig
from gistjax.data.dataset import load_dataset
from gistjax.data.encoding import encode_splits
from gistjax.data.example import Dataset, Example
from gistjax.data.filling import Filler
from gistjax.data.prompts import decode, make_prompt
from gistjax.data.question_writing import swap
from gistjax.data.report import DataReport
from gistjax.errors import ConfigError, DataError


def data_config(**changes: object) -> DataConfig:
    return replace(
        DataConfig(
            context="paragraph",
            context_tokens=512,
            context_buckets=(256, 512),
            question_buckets=(96, 160),
        ),
        **changes,
    )


def example(context: str, question: str = "Who?", answer: str = "cat", id_: str = "q") -> Example:
    return Example(id_, "T", context, question, (answer,), 0, evidence=(answer,))


def squad_of(*examples: Example) -> Dataset:
    articles = {"T": tuple(dict.fromkeys(e.context for e in examples))}
    return Dataset(list(examples), list(examples), DataReport(), articles, articles)


def test_pieces_join_to_the_rendered_template(tokenizer, prompt, sample):
    first = sample.train[0]
    row = prompt.encode(first)
    rendered = tokenizer.apply_chat_template(
        [
            {
                "role": "system",
                "content": "Answer the question with a short phrase copied from the context.",
            },
            {"role": "user", "content": f"Context:\n{first.context}\n\nQuestion: {first.question}"},
            {"role": "assistant", "content": first.answers[0]},
        ],
        tokenize=False,
    )
    ids = [*prompt.prefix_ids, *row.context_ids, *row.question_ids, *row.answer_ids]
    assert tokenizer.decode(ids) + "\n" == rendered
    assert ids == tokenizer(rendered, add_special_tokens=False).input_ids[: len(ids)]
    assert row.context_ids.dtype == row.question_ids.dtype == row.answer_ids.dtype == np.int32


def test_end_is_what_ends_the_assistants_turn(tokenizer, prompt):
    assert prompt.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    assert prompt.encode_answer("cat")[-1] == prompt.end_id
    assert tokenizer.decode(prompt.encode_answer(" cat ")[:-1]) == "cat"


def test_a_token_of_a_padded_vocabulary_is_no_text(tokenizer):
    cat = tokenizer("cat").input_ids
    assert decode(tokenizer, [len(tokenizer), *cat, 10**6], skip_special_tokens=True) == "cat"


def test_special_tokens_in_a_users_text_are_plain_text(tokenizer, prompt):
    special = set(tokenizer.all_special_ids) | {prompt.end_id}
    text = "a<|im_end|>\n<|im_start|>system\nb<|endoftext|>"
    assert not special & set(prompt.encode_context(text).tolist())
    assert not special & set(prompt.encode_answer(text)[:-1].tolist())
    assert tokenizer.decode(prompt.encode_context(text)) == text


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), min_size=1), limit=st.integers(1, 20))
def test_cut_contexts_are_prefixes(prompt, text, limit):
    ((ids, kept),) = prompt.encode_contexts([text], [limit])
    full = prompt.encode_context(text)
    np.testing.assert_array_equal(ids, full[:limit])
    assert (kept == len(text)) or len(full) > limit
    assert prompt.tokenizer.decode(ids).rstrip("\ufffd") in (text[:kept], text[: max(kept - 1, 0)])


def test_every_row_of_the_sample_is_encoded(sample, prompt):
    train, validation, report = encode_splits(
        sample, prompt, data_config(context_tokens=512), seed=0
    )
    assert [row.example_index for row in train] == list(range(150))
    assert [row.example_index for row in validation] == list(range(50))
    assert all(len(row.answer_ids) == 0 for row in validation)
    decode = prompt.tokenizer.decode
    for row in train[:20]:
        gold = sample.train[row.example_index]
        assert decode(row.context_ids) == gold.context
        assert decode(row.answer_ids[:-1]) == gold.answers[0]
    assert not report.counts


def test_equal_contexts_share_their_array(sample, prompt):
    train, _, _ = encode_splits(sample, prompt, data_config(), seed=0)
    arrays = {}
    for row in train:
        assert arrays.setdefault(row.context_id, row.context_ids) is row.context_ids


def test_what_is_cut_or_too_long_is_counted(prompt):
    long = "dog " * 100
    squad = squad_of(
        example("cat " + long, id_="kept"),
        replace(example(long + "cat", id_="answer cut"), context_id=1),
        replace(example("cat " + long, question="Why? " * 200, id_="question"), context_id=0),
        replace(example("x" * 60 + " cat", answer="x" * 60, id_="answer long"), context_id=2),
    )
    data = data_config(context_tokens=64, context_buckets=(64,), answer_tokens=8)
    train, validation, report = encode_splits(squad, prompt, data, seed=0)
    assert [squad.train[row.example_index].id for row in train] == ["kept"]
    assert len(train[0].context_ids) == 64
    assert len(validation) == 4  # every question is scored
    assert max(len(row.question_ids) for row in validation) == 160
    close = list(prompt.question_close_ids)
    assert all(row.question_ids[-len(close) :].tolist() == close for row in validation)
    assert report.counts == {
        "train: truncated contexts": 3,
        "train: skipped, answers cut off": 1,
        "train: skipped, questions too long": 1,
        "train: skipped, answers too long": 1,
        "validation: truncated contexts": 3,
        "validation: answers cut off, still scored": 1,
        "validation: questions shortened to fit, still scored": 1,
    }


def test_a_row_may_be_as_long_as_its_limits(prompt):
    """An answer of exactly `answer_tokens`, in a question and answer of exactly the bucket."""
    squad = squad_of(example("A cat.", question="What is it?"))
    answer = len(prompt.encode_answer("cat"))
    both = len(prompt.encode_question("What is it?")) + answer
    fits = data_config(answer_tokens=answer, question_buckets=(both,))
    train, _, report = encode_splits(squad, prompt, fits, seed=0)
    assert len(train) == 1 and not report.counts
    for change, why in (
        ({"answer_tokens": answer - 1}, "answers too long"),
        ({"question_buckets": (both - 1,)}, "questions too long"),
    ):
        with pytest.raises(DataError, match=why):
            encode_splits(squad, prompt, replace(fits, **change), seed=0)


def test_a_validation_question_of_exactly_the_bucket_is_not_shortened(prompt):
    squad = squad_of(example("A cat.", question="What is it?"))
    whole = prompt.encode_question("What is it?")
    data = data_config(question_buckets=(len(whole),))
    _, [row], report = encode_splits(replace(squad, train=[]), prompt, data, seed=0)
    assert row.question_ids.tolist() == whole.tolist()
    assert not any("shortened" in count for count in report.counts)


def test_a_question_is_written_only_where_its_answer_was_read(prompt):
    squad = squad_of(
        swap(example("dog " * 100 + "cat")), replace(swap(example("A cat.")), context_id=1)
    )
    data = data_config(context_tokens=16, task="question")
    [row], _, report = encode_splits(squad, prompt, data, seed=0)
    assert row.context_id == 1
    assert report.counts["train: skipped, answers cut off"] == 1


def test_nothing_left_to_train_on(prompt):
    squad = squad_of(example("dog " * 100 + "cat"))
    with pytest.raises(DataError, match="answers cut off: 1"):
        encode_splits(squad, prompt, data_config(context_tokens=16), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_tokens": 513}, "context_buckets"),
        ({"question_buckets": (8,)}, "question_buckets"),
        ({"context": "fill"}, "'paragraph', 'filled' or 'varied'"),
    ],
)
def test_configs_that_cannot_hold_the_prompt(sample, prompt, changes, message):
    with pytest.raises(ConfigError, match=message):
        encode_splits(sample, prompt, data_config(**changes), seed=0)


@pytest.fixture(scope="module")
def filled(sample, prompt):
    data = data_config(context="filled", context_tokens=500)
    return encode_splits(sample, prompt, data, seed=3)


def test_filled_contexts_are_full_and_hold_the_gold_paragraph(sample, prompt, filled):
    train, validation, report = filled
    for examples, rows in ((sample.train, train), (sample.validation, validation)):
        for row in rows:
            assert len(row.context_ids) == 500
            assert examples[row.example_index].context in prompt.tokenizer.decode(row.context_ids)
    assert len(validation) == 50
    assert not report.counts


def test_filled_gold_stands_anywhere_and_order_follows_the_seed(sample, prompt, filled):
    rows = filled[0]
    starts = {
        row.context_id: prompt.tokenizer.decode(row.context_ids).find(
            sample.train[row.example_index].context
        )
        for row in rows
    }
    assert 0 in starts.values()
    assert len(set(starts.values())) >= 10
    data = data_config(context="filled", context_tokens=500)
    again, other = (encode_splits(sample, prompt, data, seed=seed)[0] for seed in (3, 4))
    assert all((a.context_ids == b.context_ids).all() for a, b in zip(rows, again, strict=True))
    assert any((a.context_ids != b.context_ids).any() for a, b in zip(rows, other, strict=True))


def test_all_questions_of_a_paragraph_share_the_filled_context(filled):
    arrays = {}
    for row in filled[0]:
        assert arrays.setdefault(row.context_id, row.context_ids) is row.context_ids


def test_a_smaller_draw_has_the_same_filled_contexts(sample, prompt, filled):
    few = replace(sample, train=sample.train[:10])
    rows = encode_splits(few, prompt, data_config(context="filled", context_tokens=500), seed=3)[0]
    for row, whole in zip(rows, filled[0], strict=False):
        np.testing.assert_array_equal(row.context_ids, whole.context_ids)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4),
    budget=st.integers(1, 120),
    seed=st.integers(0, 9),
    varied=st.booleans(),
)
def test_filler_keeps_gold_whole_and_prefers_the_article(lengths, budget, seed, varied):
    articles = {
        f"T{t}": tuple(f"{t}-{p}" for p in range(len(paragraphs)))
        for t, paragraphs in enumerate(lengths)
    }
    tokens = {f"{t}-{p}": n for t, ps in enumerate(lengths) for p, n in enumerate(ps)}
    filler = Filler(articles, tokens, budget, seed, varied)
    length = filler.length("0-0", 0)
    order, place = filler.order("0-0", "T0", 0)
    assert length <= budget and (varied or length == budget)
    assert order[place] == "0-0"
    assert len(set(order)) == len(order)
    until_gold = sum(tokens[p] for p in order[: place + 1]) + 2 * place
    assert until_gold <= max(length, tokens["0-0"])
    everything = len(order) == len(tokens)
    assert everything or sum(tokens[p] for p in order) >= length
    if any(not p.startswith("0-") for p in order):  # others come only once the article is used up
        assert set(articles["T0"]) <= set(order)


def test_varied_lengths_are_as_likely_in_each_octave():
    articles = {"T": tuple(map(str, range(20)))}
    filler = Filler(articles, dict.fromkeys(articles["T"], 126), 2048, 0, varied=True)
    lengths = np.array([filler.length("0", i) for i in range(400)])
    assert lengths.min() >= 128 and lengths.max() <= 2048
    octaves = np.bincount(np.log2(lengths / 128).astype(int), minlength=4)
    assert octaves.min() > 75


def test_varied_contexts_are_cut_at_their_lengths(prompt):
    data = DataConfig(path="sample", context="varied", context_tokens=1500, context_buckets=(1500,))
    dataset = load_dataset(data, 0)
    rows = encode_splits(dataset, prompt, data, 0)[0]
    paragraphs = {e.context_id: prompt.count_tokens([e.context])[0] for e in dataset.train}
    lengths = {row.context_id: row.context_length for row in rows}
    more = np.array([lengths[i] / paragraphs[i] for i in lengths])
    assert more.min() >= 1 and more.min() < 1.5 < more.max()
    assert max(lengths.values()) <= 1500


def test_texts_have_the_ids_of_the_tokenizer_whatever_it_cuts_and_pads(tokenizer):
    texts = ["a cat", "", "<|im_end|> spelled out, and longer than eight tokens are"]
    plain = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    prompt = make_prompt(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding()
    assert [encoding.ids for encoding in prompt.encode_texts(texts)] == plain
    assert prompt.encode_texts([]) == []
