"""Threads ahead of and behind the model keep the order and hold few items."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_prep.attempt import Finished
from lora_prep.executors.local import ahead
from lora_prep.journal import Entry
from lora_prep.stage import Item
from lora_prep.types import Status


def finished(key: str) -> Finished:
    return Finished(Item(key, (), ()), Entry(key, Status.FRESH, "", {}, {}), Status.FRESH)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 9), st.randoms())
def test_results_come_in_the_order_of_the_items(through, threads, depth, random):
    items = [finished(str(i)) if done else i for i, done in enumerate(through)]

    def step(number: int) -> int:
        time.sleep(random.random() / 1000)
        return -number

    with ThreadPoolExecutor(threads) as pool:
        results = list(ahead(pool, step, items, depth))
    assert results == [item if isinstance(item, Finished) else -item for item in items]


def test_no_more_than_depth_items_are_taken_before_the_first_is_given_back():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, lambda i: i, items(), 5)
        assert next(results) == 0
        assert len(taken) <= 5


def test_a_step_that_raises_surfaces_at_its_place():
    def step(number: int) -> int:
        return 10 // (3 - number)

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, step, range(6), 4)
        assert [next(results) for _ in range(3)] == [3, 5, 10]
        with pytest.raises(ZeroDivisionError):
            next(results)
