import gzip
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistjax.config import TextConfig
from gistjax.data.report import DataReport
from gistjax.data.text import BEGINNING, cloze_questions, cut_chunks, load_articles, text_rows
from gistjax.errors import DataError

TEXT = TextConfig(
    path="text", min_tokens=20, target_tokens=30, reconstruction=2, continuation=1, cloze=3
)
LIMIT = 90


@pytest.fixture(scope="module")
def articles(sample):
    return ["\n\n".join(paragraphs) for paragraphs in sample.train_articles.values()]


@pytest.fixture(scope="module")
def rows(articles, prompt):
    return text_rows(articles, prompt, TEXT, 64, LIMIT, 0, 100, DataReport())


def write(folder, lines, name="a.jsonl"):
    text = "".join(line + "\n" for line in lines)
    if name.endswith(".gz"):
        (folder / name).write_bytes(gzip.compress(text.encode()))
    else:
        (folder / name).write_text(text, encoding="utf-8")


def test_articles_of_plain_and_compressed_files_in_order(tmp_path):
    write(tmp_path, [json.dumps({"title": "b", "paragraphs": ["three"]})], "b.jsonl.gz")
    write(tmp_path, [json.dumps({"title": "a", "paragraphs": ["one", " ", "two"]})])
    report = DataReport()
    assert list(load_articles(str(tmp_path), report)) == ["one\n\ntwo", "three"]
    assert not report.counts


BAD = {
    "not JSON": ["{", "[" * 10_000, "9" * 10_000],
    "not an article": [
        "3",
        "null",
        '"text"',
        "{}",
        '{"paragraphs": 3}',
        '{"paragraphs": [3]}',
        '{"paragraphs": "text"}',
        '{"paragraphs": {"text": 1}}',
    ],
    "not valid Unicode": [r'{"paragraphs": ["\ud800"]}'],
    "no text": ['{"paragraphs": []}', '{"paragraphs": [" "]}'],
}


@pytest.mark.parametrize(
    ("line", "reason"), [(line, reason) for reason, lines in BAD.items() for line in lines]
)
def test_a_line_that_is_no_article_is_counted_and_skipped(line, reason, tmp_path):
    write(
        tmp_path, [json.dumps({"paragraphs": ["one"]}), line, json.dumps({"paragraphs": ["two"]})]
    )
    report = DataReport()
    assert list(load_articles(str(tmp_path), report)) == ["one", "two"]
    assert report.ids == {f"text: skipped, {reason}": ["a.jsonl:2"]}


def test_bytes_that_are_no_text_are_one_bad_line(tmp_path):
    good = b'{"paragraphs": ["one"]}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b'{"paragraphs": ["\xff"]}\n' + good)
    report = DataReport()
    assert list(load_articles(str(tmp_path), report)) == ["one", "one"]
    assert report.counts == {"text: skipped, not valid Unicode": 1}


def test_too_many_bad_lines_stop_a_run(tmp_path):
    write(tmp_path, [json.dumps({"paragraphs": ["one"]})] * 3 + ["{"])
    assert len(list(load_articles(str(tmp_path), DataReport(), 0.25))) == 3
    with pytest.raises(DataError, match=r"1 of 4 rows of .*a.jsonl .*max_dropped=0.25"):
        list(load_articles(str(tmp_path), DataReport(), 0.2))
    write(tmp_path, ["{"] * 1500)
    with pytest.raises(DataError, match="1000 of 1000 rows"):
        list(load_articles(str(tmp_path), DataReport(), 0.2))


def test_a_line_without_end_is_not_read_into_memory(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(64):
            file.write(b" " * 2**20)
    tracemalloc.start()
    with pytest.raises(DataError, match="line 1 has more than 16777216 characters"):
        list(load_articles(str(tmp_path), DataReport()))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_folder_without_text_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder with \*.jsonl"):
        list(load_articles(str(tmp_path), DataReport()))
    write(tmp_path, [json.dumps({"paragraphs": ["one"]})] * 50, "a.jsonl.gz")
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="a.jsonl.gz cannot be read"):
        list(load_articles(str(tmp_path), DataReport()))


def test_chunks_are_the_article_cut_by_tokens(articles, prompt):
    chunks = list(cut_chunks(articles[:1], prompt, TEXT, 64, 0))
    ids = prompt.encode_context(articles[0])
    joined = np.concatenate([chunk.ids for chunk in chunks])
    np.testing.assert_array_equal(joined, ids[: len(joined)])
    assert len(ids) - len(joined) < TEXT.min_tokens
    start = 0
    for chunk in chunks:
        assert TEXT.min_tokens <= len(chunk.ids) <= 64
        start += len(chunk.ids)
        np.testing.assert_array_equal(chunk.following_ids, ids[start : start + 30])
        assert prompt.tokenizer.decode(chunk.ids) == chunk.text


def test_rows_fit_and_share_their_chunk(rows, prompt):
    contexts = {}
    for row in rows:
        assert contexts.setdefault(row.context_id, row.context_ids) is row.context_ids
        assert len(row.question_ids) + len(row.answer_ids) <= LIMIT
        assert len(row.answer_ids)
        assert (row.answer_ids[-1] == prompt.end_id) == (row.objective == "cloze")
    assert min(contexts) == 100 and len(contexts) == max(contexts) - 99
    assert {row.objective for row in rows} == {"reconstruction", "continuation", "cloze"}


def test_a_reconstruction_goes_on_where_its_beginning_ends(rows, prompt):
    close = len(prompt.question_close_ids)
    for row in (row for row in rows if row.objective == "reconstruction"):
        beginning = row.question_ids[-close - BEGINNING : -close]
        asked = np.concatenate([beginning, row.answer_ids])
        windows = np.lib.stride_tricks.sliding_window_view(row.context_ids, len(asked))
        assert (windows == asked).all(axis=1).any()


def test_a_cloze_names_what_its_sentence_has_in_the_place(articles):
    rng = np.random.default_rng(0)
    pairs = list(cloze_questions(articles[0], 40, rng))
    assert len(pairs) > 20
    words = " ".join(articles[0].split())
    for question, answer in pairs:
        assert question.endswith("?") and answer
        tried = [
            before + answer + end + after
            for before, after in _splits(question[:-1])
            for end in ("", ",", ".")
        ]
        assert any(" ".join(text.split()) in words for text in tried), (question, answer)


def _splits(question):
    parts = question.split("what")
    for i in range(1, len(parts)):
        yield "what".join(parts[:i]), "what".join(parts[i:])


@given(st.text(max_size=200), st.integers(0, 5))
def test_any_text_gives_at_most_as_many_cloze_questions(text, n):
    pairs = list(cloze_questions(text, n, np.random.default_rng(0)))
    assert len(pairs) <= n
    assert all(question.strip() and answer.strip() for question, answer in pairs)


def test_the_seed_decides(articles, prompt, rows):
    def made(seed):
        return text_rows(articles, prompt, TEXT, 64, LIMIT, seed, 100, DataReport())

    def ids(rows):
        return [(row.question_ids.tolist(), row.answer_ids.tolist()) for row in rows]

    assert ids(made(0)) == ids(rows) != ids(made(1))


def test_chunks_can_be_limited_and_none_is_an_error(articles, prompt):
    report = DataReport()
    few = text_rows(
        articles, prompt, TextConfig(path="x", chunks=3, min_tokens=20), 64, LIMIT, 0, 0, report
    )
    assert {row.context_id for row in few} == {0, 1, 2}
    assert "3 chunks" in str(report)
    with pytest.raises(DataError, match="min_tokens"):
        text_rows(["too short"], prompt, TEXT, 64, LIMIT, 0, 0, DataReport())
