"""The matcher of replies: no socket, no clock."""

import random

import pytest

from pulsar_client.protocols.reply_matcher import ReplyMatcher

A = ("192.0.2.1", 53)
B = ("192.0.2.2", 53)


def matcher(**kw: int) -> ReplyMatcher[str]:
    return ReplyMatcher(**kw)


def test_a_reply_is_matched_on_key_and_address_u1_u2() -> None:
    """U1, U2: many pending, each found by its key, and by the address it was sent to."""
    book = matcher()
    for address in (A, B):
        for key in range(100):
            book.add(address, key, f"{address[0]} {key}")
    assert len(book) == 200
    for key in reversed(range(100)):
        assert book.find(A, key) == f"192.0.2.1 {key}"
        assert book.find(B, key) == f"192.0.2.2 {key}"
    assert book.find(("192.0.2.3", 53), 1) is None
    assert book.find(("192.0.2.1", 54), 1) is None
    assert book.find(A, 100) is None
    assert (book.foreign, book.late, book.duplicates) == (3, 0, 0)
    assert len(book.pending(A)) == 100
    assert len(book.pending()) == 200


def test_late_and_duplicate_replies_are_told_apart_and_counted_u2() -> None:
    """U2: neither is an error, and neither is taken."""
    book = matcher()
    book.add(A, 1, "answered")
    book.add(A, 2, "timed out")
    book.remove(A, 1, answered=True, until=10.0, now=0.0)
    book.remove(A, 2, answered=False, until=10.0, now=0.0)
    assert book.find(A, 1) is None
    assert book.find(A, 2) is None
    assert book.find(B, 2) is None
    assert (book.duplicates, book.late, book.foreign) == (1, 1, 1)
    assert len(book) == 0
    assert book.has_ended(A, 2)
    assert not book.has_ended(A, 3)


def test_removing_twice_is_nothing() -> None:
    book = matcher()
    book.add(A, 1, "x")
    for _ in range(2):
        book.remove(A, 1, answered=True, until=1.0, now=0.0)
    book.remove(B, 1, answered=True, until=1.0, now=0.0)
    assert len(book) == 0


def test_a_key_is_not_used_again_while_its_reply_may_come_u2_i36() -> None:
    """U2, I36: a late datagram never matches a newer request."""
    book = matcher()
    book.check(A, 1, now=0.0)
    book.add(A, 1, "first")
    with pytest.raises(ValueError, match="key 1 is in use"):
        book.check(A, 1, now=0.0)
    book.check(B, 1, now=0.0)
    book.remove(A, 1, answered=False, until=5.0, now=1.0)
    with pytest.raises(ValueError, match=r"key 1 had no reply .* for 3\.000 s"):
        book.check(A, 1, now=2.0)
    book.check(A, 1, now=5.0)
    # One that was answered may be asked again by who chooses keys himself …
    book.add(A, 1, "second")
    book.remove(A, 1, answered=True, until=10.0, now=6.0)
    book.check(A, 1, now=6.0)


def test_fresh_keys_are_random_and_spare_those_in_use_u2() -> None:
    """U2: … but a key that is chosen here is not even one that was answered."""
    book = matcher()
    source = random.Random(1)
    keys = []
    for number in range(250):
        key = book.fresh_key(A, 0.0, lambda: source.randrange(256))
        assert key not in keys
        keys.append(key)
        book.add(A, key, "x")
        if number % 2:
            book.remove(A, key, answered=number % 3 == 0, until=10.0, now=0.0)
    assert keys != sorted(keys)
    assert book.fresh_key(B, 0.0, lambda: keys[0]) == keys[0]
    # when the time is over, they can be used again
    assert book.fresh_key(A, 10.0, lambda: keys[1]) == keys[1]
    with pytest.raises(RuntimeError, match="no free key"):
        book.fresh_key(A, 10.0, lambda: keys[0])
    sizes = {len(book.fresh_key(A, 0.0, size=size)) for size in (2, 8)}
    assert sizes == {2, 8}


def test_what_is_remembered_is_bounded() -> None:
    book = matcher(remember=10)
    for key in range(1000):
        book.add(A, key, "x")
        book.remove(A, key, answered=False, until=1e9, now=0.0)
    assert sum(book.has_ended(A, key) for key in range(1000)) == 10
    # and given up in time, a little with each request
    for key in range(1000, 1010):
        book.add(A, key, "x")
        book.remove(A, key, answered=False, until=1e10, now=2e9)
    assert sum(book.has_ended(A, key) for key in range(1010)) == 10
    assert "0 pending" in repr(book)
