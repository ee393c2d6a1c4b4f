import numpy as np
import pytest

from gistjax.compress.decoding import before_end
from tests.helpers.tiny import PREFIX, Compiled, tiny_inputs, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("gist", "soft_tokens"), ("gist", "key_values")])
def test_an_answer_does_not_depend_on_its_batch(name, form, rng):
    model = Compiled(tiny_model(name, slot_form=form))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    together = model.greedy(model.compress(PREFIX, ids, length), tokens, tokens_length, 5, 7)
    for b in range(3):
        row = slice(b, b + 1)
        alone = model.greedy(
            model.compress(PREFIX, ids[row], length[row]), tokens[row], tokens_length[row], 5, 7
        )
        np.testing.assert_array_equal(together[row], alone)


def test_greedy_stops_at_the_end_token_and_fills_with_it(rng):
    model = Compiled(tiny_model("gist"))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    free = np.asarray(
        model.greedy(model.in_sequence(PREFIX, ids, length), tokens, tokens_length, 6, -1)
    )
    end = int(free[0, 2])
    stopped = np.asarray(
        model.greedy(model.in_sequence(PREFIX, ids, length), tokens, tokens_length, 6, end)
    )
    first = list(free[0]).index(end)
    np.testing.assert_array_equal(stopped[0, :first], free[0, :first])
    assert (stopped[0, first:] == end).all()


def test_each_of_several_end_tokens_ends_an_answer(rng):
    model = Compiled(tiny_model("gist"))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    memory = model.in_sequence(PREFIX, ids, length)
    free = np.asarray(model.greedy(memory, tokens, tokens_length, 6, -1))
    ends = (int(free[0, 3]), int(free[1, 2]))
    stopped = np.asarray(model.greedy(memory, tokens, tokens_length, 6, ends))
    for b in range(3):
        kept = before_end(free[b].tolist(), ends)
        np.testing.assert_array_equal(stopped[b, : len(kept) + 1], free[b, : len(kept) + 1])
        assert set(stopped[b, len(kept) + 1 :].tolist()) <= {ends[0]}
        assert before_end(stopped[b].tolist(), ends) == kept
    assert len(before_end(free[1].tolist(), ends)) <= 2
