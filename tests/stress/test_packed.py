"""The short form of `python -m tests.stress --only packed`."""

from . import packed


def test_no_flipped_bit_and_no_cut_in_a_packed_document_goes_unseen(tmp_path):
    found = packed.trials(list(range(630)), tmp_path)
    assert not found["failures"] and found["seen"].total() == 630
    assert {name.split(": ")[0] for name in found["seen"]} >= {
        f"flip, {form} in {bits} bits" for form in packed.FORMS for bits in packed.BITS
    }
    assert sum(n for name, n in found["seen"].items() if name.startswith("cut")) == 30
