"""The journal's index: a dict of numbers in little memory."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from lora_prep.offsets import Offsets


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 2**40))))
def test_it_is_a_dict_of_numbers(pairs):
    offsets, wanted = Offsets(), {}
    for text, number in pairs:
        offsets[text] = wanted[text] = number
    assert list(offsets) == list(wanted.values())
    assert len(offsets) == len(wanted)
    assert all(offsets.get(text) == number for text, number in wanted.items())
    assert "longer" not in offsets


def test_it_grows_and_stays_small():
    offsets = Offsets()
    for i in range(50_000):
        offsets[f"faces/{i:08}.jpg"] = i * 500
    assert list(offsets) == [i * 500 for i in range(50_000)]
    assert all(offsets.get(f"faces/{i:08}.jpg") == i * 500 for i in range(0, 50_000, 97))
    held = sum(len(v) * v.itemsize for v in vars(offsets).values() if isinstance(v, array))
    assert held / 50_000 < 60
