"""The decoders: every one whole, byte by byte, split at each position and with trailing data."""

import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulsar_client.exceptions import MessageTooLarge, ProtocolError
from pulsar_client.protocols.decoders import (
    Decoder,
    DelimitedDecoder,
    FixedSizeDecoder,
    LengthPrefixedDecoder,
)

# A factory, two messages, and the bytes of each on the wire.
Case = tuple[Callable[[], Decoder], list[bytes], list[bytes]]

CASES: dict[str, Case] = {
    "line": (lambda: DelimitedDecoder(b"\n"), [b"one", b"two!"], [b"one\n", b"two!\n"]),
    "empty line": (lambda: DelimitedDecoder(b"\r\n"), [b"", b"x"], [b"\r\n", b"x\r\n"]),
    "long delimiter": (
        lambda: DelimitedDecoder(b"\r\n\r\n"),
        [b"a\r\nb\r\n\r", b"\r\r\n\r"],
        [b"a\r\nb\r\n\r\r\n\r\n", b"\r\r\n\r\r\n\r\n"],
    ),
    "kept delimiter": (
        lambda: DelimitedDecoder(b"--", keep_delimiter=True),
        [b"a-b--", b"--"],
        [b"a-b--", b"--"],
    ),
    "prefix 1": (lambda: LengthPrefixedDecoder(1), [b"abc", b""], [b"\x03abc", b"\x00"]),
    "prefix 2": (lambda: LengthPrefixedDecoder(2), [b"abc", b"d"], [b"\0\x03abc", b"\0\x01d"]),
    "prefix 4": (
        lambda: LengthPrefixedDecoder(),
        [b"abc", b""],
        [b"\0\0\0\x03abc", b"\0\0\0\0"],
    ),
    "prefix 8 little": (
        lambda: LengthPrefixedDecoder(8, byteorder="little"),
        [b"abc", b"\0"],
        [b"\x03\0\0\0\0\0\0\0abc", b"\x01\0\0\0\0\0\0\0\0"],
    ),
    "prefix counts itself": (
        lambda: LengthPrefixedDecoder(2, includes_prefix=True),
        [b"", b"abc"],
        [b"\0\x02", b"\0\x05abc"],
    ),
    "fixed": (lambda: FixedSizeDecoder(3), [b"abc", b"\0\n\xff"], [b"abc", b"\0\n\xff"]),
}

each_case = pytest.mark.parametrize(
    ("factory", "messages", "frames"), CASES.values(), ids=CASES.keys()
)


@each_case
def test_whole(factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]) -> None:
    decoder = factory()
    for message, frame in zip(messages, frames, strict=True):
        assert decoder.decode(frame) == (message, b"")
        assert decoder.pending == 0


@each_case
def test_whole_through_the_buffer(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    decoder = factory()
    for message, frame in zip(messages, frames, strict=True):
        decoder.feed(frame)
        assert decoder.pending == len(frame)
        taken = decoder.next_message()
        assert taken == message
        assert type(taken) is bytes
        assert decoder.next_message() is None
        assert decoder.pending == 0


@each_case
def test_byte_by_byte(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    decoder = factory()
    for message, frame in zip(messages, frames, strict=True):
        for count, value in enumerate(frame[:-1], 1):
            assert decoder.decode(bytes([value])) == (None, b"")
            assert decoder.pending == count
        assert decoder.decode(frame[-1:]) == (message, b"")


@each_case
@pytest.mark.parametrize("trailing", [b"\n", b"\0", b"\r\n\r\n--\x01\xff" * 3])
def test_trailing_data_is_given_back(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes], trailing: bytes
) -> None:
    decoder = factory()
    assert decoder.decode(frames[0] + trailing) == (messages[0], trailing)
    assert decoder.pending == 0
    # The same when a part of the message was buffered before.
    decoder.feed(frames[0][:1])
    assert decoder.decode(frames[0][1:] + trailing) == (messages[0], trailing)
    assert decoder.pending == 0


@each_case
def test_split_at_every_position(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    stream = b"".join(frames)
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            decoder = factory()
            got: list[bytes] = []
            for chunk in (stream[:first], stream[first:second], stream[second:]):
                decoder.feed(chunk)
                got.extend(decoder)
            assert got == messages
            assert decoder.pending == 0


@each_case
def test_decode_at_every_split(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    """The way of a consumer: one message, and the rest goes to the next consumer."""
    stream = b"".join(frames)
    for split in range(len(stream) + 1):
        decoder = factory()
        got: list[bytes] = []
        for chunk in (stream[:split], stream[split:]):
            rest = chunk
            while rest:
                message, rest = decoder.decode(rest)
                if message is not None:
                    assert decoder.pending == 0
                    got.append(message)
        assert got == messages


@each_case
@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_other_buffers(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes], kind: Any
) -> None:
    decoder = factory()
    message, rest = decoder.decode(kind(frames[0] + b"rest"))
    assert (message, rest) == (messages[0], b"rest")
    assert type(message) is bytes
    assert type(rest) is bytes


@each_case
def test_fed_data_is_copied(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    decoder = factory()
    data = bytearray(frames[0])
    decoder.feed(data)
    data[:] = b"?" * 100
    assert decoder.next_message() == messages[0]


@each_case
@pytest.mark.parametrize("bad", ["text", None, 5, [1]])
def test_data_of_a_wrong_type(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes], bad: Any
) -> None:
    decoder = factory()
    with pytest.raises(TypeError, match="bytes"):
        decoder.feed(bad)
    with pytest.raises(TypeError, match="bytes"):
        decoder.decode(bad)
    assert decoder.decode(frames[0]) == (messages[0], b"")


@each_case
def test_take_rest(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    decoder = factory()
    decoder.feed(frames[0] + frames[1][:1])
    assert decoder.next_message() == messages[0]
    decoder.next_message()
    if decoder.pending:
        assert decoder.take_rest() == frames[1][:1]
    assert decoder.take_rest() == b""
    assert decoder.decode(frames[0]) == (messages[0], b"")


@each_case
def test_empty_chunks_change_nothing(
    factory: Callable[[], Decoder], messages: list[bytes], frames: list[bytes]
) -> None:
    decoder = factory()
    assert decoder.decode(b"") == (None, b"")
    decoder.feed(b"")
    assert decoder.next_message() is None
    assert decoder.decode(frames[0]) == (messages[0], b"")


def test_iteration_includes_what_is_fed_meanwhile() -> None:
    decoder = DelimitedDecoder(b",")
    decoder.feed(b"1,2,")
    got = []
    for message in decoder:
        got.append(message)
        if message == b"2":
            decoder.feed(b"3,4")
    assert got == [b"1", b"2", b"3"]
    assert decoder.pending == 1


def test_delimiter_split_after_a_false_start() -> None:
    decoder = DelimitedDecoder(b"aab")
    got: list[bytes] = []
    for value in b"xaaaabaabaaab":
        decoder.feed(bytes([value]))
        got.extend(decoder)
    assert got == [b"xaa", b"", b"a"]


def test_take_rest_forgets_where_the_search_stopped() -> None:
    decoder = DelimitedDecoder(b"\n")
    decoder.feed(b"long unfinished line")
    assert decoder.next_message() is None
    assert decoder.take_rest() == b"long unfinished line"
    assert decoder.decode(b"a\n") == (b"a", b"")
    decoder.feed(b"b\n")
    assert decoder.next_message() == b"b"


def test_take_rest_forgets_a_prefix() -> None:
    decoder = LengthPrefixedDecoder(1)
    decoder.feed(b"\x05ab")
    assert decoder.next_message() is None
    assert decoder.take_rest() == b"\x05ab"
    decoder.feed(b"\x01x")
    assert decoder.next_message() == b"x"


# Limits


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"\r\n\r\n"])
@pytest.mark.parametrize("keep", [False, True])
def test_delimited_limit_is_exact(chunk: int, delimiter: bytes, keep: bool) -> None:
    decoder = DelimitedDecoder(delimiter, max_size=10, keep_delimiter=keep)
    wire = b"x" * 10 + delimiter
    got: list[bytes] = []
    for start in range(0, len(wire), chunk):
        decoder.feed(wire[start : start + chunk])
        got.extend(decoder)
    assert got == [wire if keep else b"x" * 10]

    wire = b"x" * 11 + delimiter
    refused = ""
    for start in range(0, len(wire), chunk):
        try:
            message, _ = decoder.decode(wire[start : start + chunk])
        except MessageTooLarge as error:
            refused = str(error)
            break
        assert message is None
    assert "max_size=10 " in refused


def test_delimited_limit_is_raised_with_the_first_byte_that_shows_it() -> None:
    decoder = DelimitedDecoder(b"\r\n", max_size=10)
    assert decoder.decode(b"x" * 10 + b"\r") == (None, b"")
    with pytest.raises(MessageTooLarge, match=r"12 bytes received .*max_size=10"):
        decoder.decode(b"\r")


@pytest.mark.parametrize("prefix", [1, 2, 4, 8])
@pytest.mark.parametrize("includes", [False, True])
def test_prefixed_limit_is_exact(prefix: int, includes: bool) -> None:
    decoder = LengthPrefixedDecoder(prefix, max_size=10, includes_prefix=includes)
    own = prefix if includes else 0
    message = b"y" * 10
    assert decoder.decode((10 + own).to_bytes(prefix, "big") + message) == (message, b"")
    with pytest.raises(MessageTooLarge, match=r"of 11 bytes .*max_size=10"):
        decoder.decode((11 + own).to_bytes(prefix, "big"))


def test_prefixed_limit_does_not_wait_for_the_message() -> None:
    decoder = LengthPrefixedDecoder(8)
    for _ in range(7):
        assert decoder.decode(b"\xff") == (None, b"")
    with pytest.raises(MessageTooLarge, match=str(2**64 - 1)):
        decoder.decode(b"\xff")


@pytest.mark.parametrize("announced", [0, 1, 2, 3])
def test_length_below_its_own_prefix(announced: int) -> None:
    decoder = LengthPrefixedDecoder(4, includes_prefix=True)
    with pytest.raises(ProtocolError, match=f"length {announced} .*4 bytes") as caught:
        decoder.decode(announced.to_bytes(4, "big") + b"data")
    assert not isinstance(caught.value, MessageTooLarge)


def test_messages_before_the_too_large_one_are_given_out() -> None:
    decoder = DelimitedDecoder(b"\n", max_size=4)
    decoder.feed(b"ab\ncd\n12345678")
    assert decoder.next_message() == b"ab"
    assert decoder.next_message() == b"cd"
    with pytest.raises(MessageTooLarge):
        decoder.next_message()


@pytest.mark.parametrize(
    ("decoder", "wire"),
    [
        (DelimitedDecoder(b"\n", max_size=4), b"12345\nab\n"),
        (LengthPrefixedDecoder(1, max_size=4), b"\x0512345\x01a"),
        (LengthPrefixedDecoder(2, includes_prefix=True), b"\0\0\0\x03a"),
    ],
)
def test_a_refused_message_stays_refused_and_nothing_more_is_kept(
    decoder: Decoder, wire: bytes
) -> None:
    with pytest.raises(ProtocolError) as first:
        decoder.decode(wire)
    pending = decoder.pending
    for again in (
        lambda: decoder.decode(b"\n"),
        lambda: decoder.feed(b"x" * 1000),
        decoder.next_message,
    ):
        with pytest.raises(type(first.value), match=str(first.value).replace("\\", ".")) as more:
            again()
        assert more.value is not first.value
        assert decoder.pending == pending
    # take_rest() is the way out for who knows how to go on.
    assert decoder.take_rest() == wire
    assert decoder.next_message() is None


# Linear cost


class CountingBuffer(bytearray):
    """Counts the bytes that searches look at."""

    looked_at = 0

    def find(self, *args: Any) -> int:
        _, start, stop = args
        self.looked_at += max(0, min(stop, len(self)) - start)
        return super().find(*args)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_search_work_is_linear(chunk: int) -> None:
    size = 50_000
    delimiter = b"\r\n\r\n"
    decoder = DelimitedDecoder(delimiter, max_size=size)
    decoder._buffer = buffer = CountingBuffer()
    wire = b"\r" * size + delimiter
    got: list[bytes] = []
    for start in range(0, len(wire), chunk):
        decoder.feed(wire[start : start + chunk])
        got.extend(decoder)
    assert got == [wire[:size]]
    # Each feed looks at its own bytes and at those that may begin a delimiter before them.
    feeds = -(-len(wire) // chunk)
    assert len(wire) <= buffer.looked_at <= len(wire) + feeds * len(delimiter)


def test_search_is_bounded_by_the_limit() -> None:
    decoder = DelimitedDecoder(b"\n", max_size=100)
    decoder._buffer = buffer = CountingBuffer()
    decoder.feed(b"x" * 1_000_000 + b"\n")
    with pytest.raises(MessageTooLarge):
        decoder.next_message()
    assert buffer.looked_at == 101


def test_memory_follows_what_is_pending() -> None:
    decoder = LengthPrefixedDecoder(4, max_size=1 << 20)
    frame = (1 << 20).to_bytes(4, "big") + bytes(1 << 20)
    tracemalloc.start()
    try:
        for _ in range(20):
            for start in range(0, len(frame), 50_000):
                decoder.feed(frame[start : start + 50_000])
            assert decoder.next_message() is not None
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 100_000
    assert peak < 4 << 20


# Any split


def splits(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    def cut(positions: list[int]) -> list[bytes]:
        edges = [0, *sorted(positions), len(stream)]
        return [stream[a:b] for a, b in pairwise(edges)]

    return st.lists(st.integers(0, len(stream)), max_size=20).map(cut)


def round_trip(decoder: Decoder, chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    got: list[bytes] = []
    for chunk in chunks:
        decoder.feed(chunk)
        got.extend(decoder)
    return got, decoder.take_rest()


@given(data=st.data())
def test_delimited_round_trip(data: st.DataObject) -> None:
    alphabet = st.sampled_from([b"\r", b"\n", b"a", b"-"])
    word = st.lists(alphabet, max_size=12).map(b"".join)
    delimiter = data.draw(word.filter(bool))
    stream = data.draw(st.lists(word, max_size=8).map(delimiter.join))
    *expected, rest = stream.split(delimiter)
    chunks = data.draw(splits(stream))
    assert round_trip(DelimitedDecoder(delimiter), chunks) == (expected, rest)
    kept = [message + delimiter for message in expected]
    decoder = DelimitedDecoder(delimiter, keep_delimiter=True)
    assert round_trip(decoder, chunks) == (kept, rest)


@given(data=st.data())
def test_prefixed_round_trip(data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.binary(max_size=20), max_size=8))
    prefix = data.draw(st.sampled_from([1, 2, 4, 8]))
    byteorder: Literal["big", "little"] = data.draw(st.sampled_from(["big", "little"]))
    includes = data.draw(st.booleans())
    own = prefix if includes else 0
    stream = b"".join((len(m) + own).to_bytes(prefix, byteorder) + m for m in messages)
    rest = data.draw(st.binary(max_size=prefix - 1))
    decoder = LengthPrefixedDecoder(prefix, byteorder=byteorder, includes_prefix=includes)
    assert round_trip(decoder, data.draw(splits(stream + rest))) == (messages, rest)


@given(data=st.data())
def test_fixed_round_trip(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    stream = data.draw(st.binary(max_size=60))
    whole = len(stream) // size * size
    expected = [stream[i : i + size] for i in range(0, whole, size)]
    got = round_trip(FixedSizeDecoder(size), data.draw(splits(stream)))
    assert got == (expected, stream[whole:])


# Arguments


@pytest.mark.parametrize(
    ("build", "error", "named"),
    [
        (lambda: DelimitedDecoder("\n"), TypeError, r"'\\n'"),  # type: ignore[arg-type]
        (lambda: DelimitedDecoder(None), TypeError, "None"),  # type: ignore[arg-type]
        (lambda: DelimitedDecoder(b""), ValueError, "b''"),
        (lambda: DelimitedDecoder(b"\n", max_size=0), ValueError, "max_size .*0"),
        (lambda: DelimitedDecoder(b"\n", max_size=-1), ValueError, "max_size .*-1"),
        (lambda: DelimitedDecoder(b"\n", max_size=True), TypeError, "max_size .*True"),
        (lambda: DelimitedDecoder(b"\n", max_size=1.5), TypeError, "1.5"),  # type: ignore[arg-type]
        (lambda: LengthPrefixedDecoder(3), ValueError, "prefix .*3"),
        (lambda: LengthPrefixedDecoder(True), TypeError, "prefix .*True"),
        (lambda: LengthPrefixedDecoder("4"), TypeError, "'4'"),  # type: ignore[arg-type]
        (lambda: LengthPrefixedDecoder(byteorder="net"), ValueError, "'net'"),  # type: ignore[arg-type]
        (lambda: LengthPrefixedDecoder(max_size=0), ValueError, "max_size .*0"),
        (lambda: FixedSizeDecoder(0), ValueError, "size .*0"),
        (lambda: FixedSizeDecoder("8"), TypeError, "size .*'8'"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(build: Callable[[], Decoder], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        build()


def test_properties_and_repr() -> None:
    delimited = DelimitedDecoder(b"\r\n", max_size=7)
    delimited.feed(b"abc")
    assert delimited.max_size == 7
    assert repr(delimited) == r"<DelimitedDecoder b'\r\n': 3 bytes pending>"
    assert LengthPrefixedDecoder(2, max_size=9).max_size == 9
    assert (
        repr(LengthPrefixedDecoder(2))
        == "<LengthPrefixedDecoder prefix of 2 bytes: 0 bytes pending>"
    )
    assert FixedSizeDecoder(5).size == 5
    assert repr(FixedSizeDecoder(5)) == "<FixedSizeDecoder size 5: 0 bytes pending>"
