import jax.numpy as jnp
import numpy as np
import pytest

from gistjax.compress.decoding import before_end
from tests.helpers.tiny import PREFIX, Compiled, tiny_inputs, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [("gist", "soft_tokens"), ("gist", "key_values")])
def test_an_answer_and_its_probability_depend_on_neither_batch_nor_padding(name, form, rng):
    model = Compiled(tiny_model(name, slot_form=form))
    ids, length, tokens, tokens_length = tiny_inputs(rng)
    memory = model.compress(PREFIX, ids, length)
    end = int(model.greedy(memory, tokens, tokens_length, 5, -1)[0, 2])
    together = model.written(memory, tokens, tokens_length, 5, end)
    sums = np.asarray(together.log_probability_B)
    assert len(set(sums.tolist())) == 3 and (sums < 0).all()
    for b in range(3):
        row, padded = slice(b, b + 1), jnp.pad(tokens[b : b + 1], ((0, 0), (0, 4)))
        memory = model.compress(PREFIX, ids[row], length[row])
        for questions in (tokens[row], padded):
            alone = model.written(memory, questions, tokens_length[row], 5, end)
            np.testing.assert_array_equal(together.ids_BxA[row], alone.ids_BxA)
            np.testing.assert_allclose(sums[row], alone.log_probability_B, rtol=1e-5)


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
