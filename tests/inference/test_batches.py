"""Things of one size taken together."""

from gistjax.inference.batches import in_batches


def batches(things, rows=lambda size: 8):
    """Sizes and how many of each are taken together, and what of the things is taken by then."""
    taken = []

    def taking():
        for thing in things:
            taken.append(thing)
            yield thing

    return [(size, own, len(taken)) for size, own in in_batches(taking(), len, rows)]


def test_a_batch_is_given_when_it_is_full_and_what_is_left_in_quarters():
    short, long = [f"{n:02}" for n in range(21)], [f"{n:03}" for n in range(3)]
    found = batches([*short[:3], long[0], *short[3:], *long[1:]])
    assert [(size, len(own), taken) for size, own, taken in found] == [
        (2, 8, 9),
        (2, 8, 17),
        (3, 2, 24),
        (3, 1, 24),
        (2, 2, 24),
        (2, 2, 24),
        (2, 1, 24),
    ]
    assert [thing for size, own, _ in found if size == 2 for thing in own] == short


def test_rows_may_be_any_number_and_one_is_one_by_one():
    assert [len(own) for _, own, _ in batches("abcdefg", lambda _: 3)] == [3, 3, 1]
    assert [taken for *_, taken in batches("abc", lambda _: 1)] == [1, 2, 3]
    assert batches([]) == []
