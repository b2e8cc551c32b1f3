"""Many requests in flight on one client connection."""

import asyncio
import gc
import ssl
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from line_codec import LineCodec
from protocol_kit import (
    Answers,
    EchoLine,
    Line,
    Silent,
    SlowLine,
    connected,
    dialled,
    lost,
    served,
    turns,
)

from pulsar_client import (
    AbortRequest,
    AbstractClient,
    Connection,
    ConnectionClosed,
    DelimitedDecoder,
    ProtocolConsumer,
    ProtocolError,
    RequestTimeout,
)
from pulsar_client.testing import Link, VirtualClockLoop, memory_pair

virtual = pytest.mark.asyncio(loop_factories=["asyncio"])


class Scripted(asyncio.Protocol):
    """The other side: keeps what it gets, says what it is told."""

    transport: Any = None

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)

    @property
    def received(self) -> bytes:
        return b"".join(self.chunks)

    def say(self, data: bytes) -> None:
        self.transport.write(data)


Kind = dict[str, Any]
KINDS: dict[str, dict[str, Any]] = {
    "consumers": {"consumer_factory": Line},
    "codec": {"codec": LineCodec},
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Run a test with consumers of requests, and with a codec in their place."""
    found: Kind = KINDS[request.param]
    return found


async def scripted(
    pipeline: int | None = 100, consumer: Any = Line, **kw: Any
) -> tuple[Connection, Scripted]:
    if "codec" not in kw:
        kw.setdefault("consumer_factory", consumer)
    near, far = Connection(pipeline=pipeline, **kw), Scripted()
    memory_pair(near, far)
    await turns(1)
    return near, far


def begun(connection: Connection, *messages: Any, **kw: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(connection.request(message, **kw)) for message in messages]


async def ended(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


# -- construction ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, True, 1.5, "8"])
def test_a_wrong_limit_is_named(bad: Any) -> None:
    with pytest.raises(ValueError, match=f"pipeline is {bad!r}"):
        Connection(Line, pipeline=bad)


def test_without_a_pipeline_nothing_is_shared() -> None:
    assert not Connection(Line).is_shareable


# -- in order, together ----------------------------------------------------------------------


async def test_requests_of_one_turn_leave_in_one_write_and_are_answered_in_order(
    kind: dict[str, Any],
) -> None:
    near, far = await scripted(**kind)
    first = begun(near, b"0")
    await turns(3)
    tasks = first + begun(near, *(b"%d" % i for i in range(1, 10)))
    await turns(3)
    assert far.chunks == [b"0\n", b"1\n2\n3\n4\n5\n6\n7\n8\n9\n"]
    assert near.info()["connection"]["pipeline"]["in_flight"] == 10
    assert near.is_shareable
    assert not near.is_reusable
    far.say(b"".join(b"%d\n" % i for i in range(10)))
    assert await ended(*tasks) == [b"%d" % i for i in range(10)]
    assert near.is_reusable
    assert near.requests_processed == 10
    await lost(near)


async def test_on_real_sockets() -> None:
    async with served() as server:
        pipelined = partial(Connection, pipeline=50)
        async with dialled(server.address, connection=pipelined) as connection:

            async def task(number: int) -> None:
                for i in range(50):
                    message = b"%d %d" % (number, i)
                    assert await connection.request(message) == message

            await asyncio.gather(*(task(n) for n in range(100)))
            assert connection.is_reusable
            assert await connection.drained()


@pytest.mark.parametrize("size", range(1, 12))
async def test_replies_cut_anywhere(size: int, kind: Kind) -> None:
    near, far = Connection(pipeline=10, **kind), Connection(EchoLine, producer=Answers())
    memory_pair(near, far, to_client=Link(split=size), to_server=Link(split=size))
    await turns(1)
    messages = [b"x" * i for i in range(10)]
    assert await ended(*begun(near, *messages)) == messages
    assert near.is_reusable
    await lost(near, far)


async def test_beyond_the_limit_they_wait_in_order(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    tasks = begun(near, *(b"%d" % i for i in range(8)))
    await turns()
    assert far.received == b"0\n1\n2\n"
    assert near.info()["connection"]["pipeline"] == {
        "limit": 3,
        "in_flight": 3,
        "abandoned": 0,
        "waiting": 5,
    }
    far.say(b"0\n1\n")
    await turns()
    assert far.received == b"0\n1\n2\n3\n4\n"
    tasks[5].cancel()  # while it waits: its place goes to the next
    far.say(b"2\n3\n4\n")
    await turns()
    assert far.received == b"0\n1\n2\n3\n4\n6\n7\n"
    far.say(b"6\n7\n")
    results = await ended(*tasks)
    assert isinstance(results.pop(5), asyncio.CancelledError)
    assert results == [b"0", b"1", b"2", b"3", b"4", b"6", b"7"]
    assert near.is_reusable
    await lost(near)


async def test_while_writing_is_paused_they_wait_in_order(kind: Kind) -> None:
    near = Connection(pipeline=10, high_limit=10, low_limit=0, **kind)
    far = Connection(EchoLine, producer=Answers())
    memory_pair(near, far)
    await turns(1)
    near.transport.outgoing.pause()
    tasks = begun(near, b"a" * 20)
    await turns(3)
    assert near.writing_paused
    tasks += begun(near, b"b", b"c")
    await turns(3)
    assert near.info()["connection"]["pipeline"]["waiting"] == 2
    near.transport.outgoing.resume()
    assert await ended(*tasks) == [b"a" * 20, b"b", b"c"]
    await lost(near, far)


async def test_start_and_on_finished() -> None:
    near, far = await scripted(2)
    consumers = []
    for i in range(2):
        consumer = near.current_consumer()
        assert near.current_consumer() is not consumer
        assert await consumer.start(b"%d" % i) is consumer
        consumers.append(consumer)
    last = near.current_consumer()
    starting = asyncio.ensure_future(last.start(b"2"))
    await turns()
    assert not starting.done()
    far.say(b"0\n")
    assert await starting is last
    await turns()
    assert far.received == b"0\n1\n2\n"
    far.say(b"1\n2\n")
    assert [await c.on_finished for c in (*consumers, last)] == [b"0", b"1", b"2"]
    assert near.is_reusable
    await lost(near)


async def test_a_start_that_is_cancelled_while_it_waits_is_never_sent() -> None:
    near, far = await scripted(1)
    tasks = begun(near, b"0")
    consumer = near.current_consumer()
    await turns(1)
    starting = asyncio.ensure_future(consumer.start(b"1"))
    await turns()
    starting.cancel()
    await turns()
    with pytest.raises(AbortRequest):
        await consumer.on_finished
    far.say(b"0\n")
    assert await ended(*tasks) == [b"0"]
    await turns()
    assert far.received == b"0\n"
    assert near.is_reusable
    await lost(near)


# -- given up (I16) --------------------------------------------------------------------------


async def test_the_reply_of_a_cancelled_request_is_dropped_i16(kind: Kind) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    tasks[0].cancel()
    tasks[1].cancel()
    await turns()
    assert near.info()["connection"]["pipeline"]["abandoned"] == 2
    assert near.is_shareable
    tasks += begun(near, b"3")
    await turns()
    far.say(b"0\n1\n2\n3\n")
    results = await ended(*tasks)
    assert [type(r) for r in results[:2]] == [asyncio.CancelledError] * 2
    assert results[2:] == [b"2", b"3"]
    assert near.info()["connection"]["pipeline"]["abandoned"] == 0
    assert near.is_reusable
    await lost(near)


async def test_what_is_cancelled_before_it_is_sent_is_never_sent(kind: Kind) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0")
    await turns()
    tasks += begun(near, b"1", b"2", b"3")
    await turns(1)  # they have run, the batch has not left
    tasks[1].cancel()
    tasks[3].cancel()
    await turns()
    assert far.received == b"0\n2\n"
    far.say(b"0\n2\n")
    results = await ended(*tasks)
    assert results[::2] == [b"0", b"2"]
    assert near.is_reusable
    await lost(near)


# -- loss ------------------------------------------------------------------------------------


async def test_a_loss_fails_everything_and_says_what_was_sent(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    tasks = begun(near, b"0", b"1")
    await turns()
    tasks += begun(near, b"2", b"3", b"4")
    await turns(1)  # in the batch: 2; without room: 3 and 4
    far.transport.abort()
    near.abort()
    results = await ended(*tasks)
    assert all(isinstance(r, ConnectionClosed) for r in results)
    assert [r.sent for r in results] == [True, True, False, False, False]
    assert far.received == b"0\n1\n"
    assert not near.is_shareable
    with pytest.raises(ConnectionClosed) as info:
        await near.request(b"5")
    assert not info.value.sent
    await lost(near)


async def test_data_that_nobody_asked_for_closes(kind: Kind) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0")
    await turns()
    far.say(b"0\n1\n")
    assert await ended(*tasks) == [b"0"]
    await turns()
    assert near.closed
    await lost(near)


async def test_a_reply_too_many_does_not_answer_a_request_that_was_not_sent_i16(
    kind: dict[str, Any],
) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    far.say(b"0\n1\n2\n")
    await ended(*tasks)
    tasks = begun(near, b"3", b"4")
    await turns(1)  # both are in the batch
    near.data_received(b"stale\n")
    results = await ended(*tasks)
    assert [(type(r), r.sent) for r in results] == [(ConnectionClosed, False)] * 2
    assert far.received == b"0\n1\n2\n"
    await lost(near)


async def test_a_consumer_that_raises_fails_all_and_closes() -> None:
    class Fussy(Line):
        def data_received(self, data: bytes) -> bytes:
            if data.startswith(b"?"):
                raise ProtocolError("what?")
            return super().data_received(data)

    near, far = await scripted(consumer=Fussy)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    far.say(b"0\n?\n2\n")
    ok, failed, gone = await ended(*tasks)
    assert ok == b"0"
    assert str(failed) == "what?"
    assert isinstance(gone, ConnectionClosed)
    assert gone.sent
    assert gone.__cause__ is failed
    assert near.closed
    await lost(near)


async def test_a_request_that_cannot_be_written_fails_alone(kind: Kind) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0", "text", b"1")
    await turns()
    assert far.received == b"0\n1\n"
    far.say(b"0\n1\n")
    ok, failed, also = await ended(*tasks)
    assert (ok, also) == (b"0", b"1")
    assert isinstance(failed, TypeError)
    assert near.is_reusable
    await lost(near)


# -- drained ---------------------------------------------------------------------------------


async def test_drained_waits_for_abandoned_replies_too(kind: Kind) -> None:
    near, far = await scripted(**kind)
    assert await near.drained() is True
    tasks = begun(near, b"0", b"1")
    await turns()
    waits = [asyncio.ensure_future(near.drained()) for _ in range(3)]
    await turns()
    tasks[1].cancel()
    waits[1].cancel()
    far.say(b"0\n")
    await turns()
    assert not waits[0].done()
    far.say(b"1\n")
    assert await waits[0] is True
    assert await waits[2] is True
    await ended(*tasks, waits[1])
    assert near.is_reusable
    await lost(near)


async def test_drained_raises_when_the_connection_is_lost(kind: Kind) -> None:
    near, far = await scripted(**kind)
    tasks = begun(near, b"0")
    await turns()
    wait = asyncio.ensure_future(near.drained())
    await turns()
    far.transport.abort()
    with pytest.raises(ConnectionClosed):
        await wait
    await ended(*tasks)
    with pytest.raises(ConnectionClosed):
        await near.drained()
    await lost(near)


# -- time ------------------------------------------------------------------------------------


def on_virtual_clock(main: Any) -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main)


def test_a_time_out_abandons_the_request(kind: Kind) -> None:
    async def main() -> None:
        near, far = await scripted(**kind)
        loop = asyncio.get_running_loop()
        late, kept = begun(near, b"0", timeout=1.0) + begun(near, b"1", timeout=5.0)
        began = loop.time()
        with pytest.raises(RequestTimeout, match=r"1\.0 s"):
            await late
        assert loop.time() - began == pytest.approx(1.0, abs=0.01)
        assert not near.closed
        far.say(b"0\n1\n")
        assert await kept == b"1"
        assert near.is_reusable
        await lost(near)

    on_virtual_clock(main())


def test_replies_that_stop_close_the_connection(kind: Kind) -> None:
    async def main() -> None:
        near, far = await scripted(**kind)
        loop = asyncio.get_running_loop()
        began = loop.time()
        given_up, waits = begun(near, b"0", timeout=1.0) + begun(near, b"1")
        results = await ended(given_up, waits)
        assert loop.time() - began == pytest.approx(11.0, abs=0.1)
        assert isinstance(results[0], RequestTimeout)
        assert isinstance(results[1], ConnectionClosed)
        assert "given up" in str(results[1].__cause__)
        assert far.received == b"0\n1\n"
        await lost(near)

    on_virtual_clock(main())


def test_who_waits_for_the_first_reply_decides_how_long(kind: Kind) -> None:
    async def main() -> None:
        near, far = await scripted(**kind)
        patient, given_up = begun(near, b"0") + begun(near, b"1", timeout=1.0)
        await asyncio.sleep(100)
        assert not near.closed
        far.say(b"0\n")
        assert await patient == b"0"
        await asyncio.sleep(9)
        assert not near.closed  # the reply to 0 was one
        await asyncio.sleep(2)
        assert near.closed
        assert isinstance((await ended(given_up))[0], RequestTimeout)
        await lost(near)

    on_virtual_clock(main())


def test_requests_of_one_write_have_a_time_each(kind: Kind) -> None:
    async def main() -> None:
        near, far = await scripted(**kind)
        loop = asyncio.get_running_loop()
        began = loop.time()
        ends: dict[int, float] = {}

        async def ask(number: int, timeout: float | None) -> None:
            try:
                await near.request(b"%d" % number, timeout)
            except RequestTimeout as exc:
                assert f"within {timeout} s" in str(exc)  # noqa: PT017
                ends[number] = round(loop.time() - began, 3)

        times = (2.0, 1.0, 2.0, None, 2.0, 3.0, 0.0, 2.0)
        tasks = [asyncio.ensure_future(ask(*item)) for item in enumerate(times)]
        await turns(3)
        assert far.chunks == [b"0\n", b"1\n2\n3\n4\n5\n6\n7\n"]
        tasks[4].cancel()
        await asyncio.sleep(5.0)
        assert not tasks[3].done()
        assert ends == {0: 2.0, 1: 1.0, 2: 2.0, 5: 3.0, 6: 0.0, 7: 2.0}
        far.say(b"".join(b"%d\n" % number for number in range(len(times))))
        await ended(*tasks)
        assert near.is_reusable
        await lost(near)

    on_virtual_clock(main())


def test_a_transport_that_ends_slowly_keeps_nobody_beyond_its_time(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        near, _ = await scripted(**kind)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(near.transport, "is_closing", lambda: True)
        began = loop.time()
        results = await ended(*begun(near, b"0", b"1", timeout=1.0))
        assert all(isinstance(result, RequestTimeout) for result in results)
        assert loop.time() - began == pytest.approx(1.0, abs=0.01)
        monkeypatch.undo()
        near.abort()
        await lost(near)

    on_virtual_clock(main())


class _Reply:
    """One that can be watched, as bytes can't be."""


@pytest.mark.parametrize(
    ("pipeline", "codec"), [(None, False), (100, False), (100, True)], ids=["one", "line", "codec"]
)
async def test_no_reply_is_kept_until_its_time_has_passed(pipeline: Any, codec: bool) -> None:
    replies: list[weakref.ref[_Reply]] = []

    def watched(data: bytes) -> _Reply:
        reply = _Reply()
        assert data == b"x"
        replies.append(weakref.ref(reply))
        return reply

    class WatchedLine(Line):
        def finished(self, result: Any = None, exc: BaseException | None = None) -> None:
            super().finished(watched(result), exc)

    class WatchedCodec(LineCodec):
        def __iter__(self) -> Iterator[Any]:
            return map(watched, super().__iter__())

    kind: Kind = {"codec": WatchedCodec} if codec else {"consumer_factory": WatchedLine}
    near, far = await scripted(pipeline, **kind)
    for number in range(10):
        tasks = begun(near, *(b"x" for _ in range(5 if pipeline else 1)), timeout=3600.0)
        await turns(3)
        far.say(b"x\n" * len(tasks))
        assert [type(reply) for reply in await ended(*tasks)] == [_Reply] * len(tasks), number
        del tasks
    await turns(1)
    gc.collect()
    assert len(replies) == (50 if pipeline else 10)
    assert [ref() for ref in replies if ref() is not None] == []
    await lost(near)


async def test_a_time_out_without_a_pipeline() -> None:
    near, far = await connected(server=SlowLine)
    with pytest.raises(RequestTimeout):
        await near.request(b"x", timeout=0.01)
    assert not near.is_reusable
    with pytest.raises(ValueError, match="timeout is -1"):
        await near.request(b"x", timeout=-1)
    await lost(near, far)


# -- upgrade, close --------------------------------------------------------------------------


async def test_an_upgrade_ends_the_pipeline() -> None:
    class Upgrading(Line):
        def finished(self, *args: Any, **kw: Any) -> None:
            if self.request == b"up":
                self.connection.upgrade(Silent)
            super().finished(*args, **kw)

    near, far = await scripted(2, Upgrading)
    tasks = begun(near, b"0", b"up", b"late")
    await turns()
    far.say(b"0\nup\npushed")
    results = await ended(*tasks)
    assert results[:2] == [b"0", b"up"]
    assert isinstance(results[2], bytes | ConnectionClosed)
    await turns()
    consumer: Any = near.current_consumer()
    assert isinstance(consumer, Silent)
    assert not near.is_shareable
    await lost(near)


async def test_close_when_idle_lets_all_finish(kind: Kind) -> None:
    near, far = await scripted(1, **kind)
    tasks = begun(near, b"0", b"1")
    await turns()
    near.close_when_idle()
    assert not near.is_shareable
    far.say(b"0\n")
    await turns()
    far.say(b"1\n")
    assert await ended(*tasks) == [b"0", b"1"]
    await near.close()
    assert near.closed


class OneWay(ProtocolConsumer):
    def start_request(self) -> None:
        self.write(self.request)
        self.finished()

    def data_received(self, data: bytes) -> bytes:
        raise AssertionError(data)


async def test_a_request_that_wants_no_reply() -> None:
    near, far = await scripted(1, OneWay)
    await ended(*begun(near, b"a", b"b", b"c"))
    await turns()
    assert far.received == b"abc"
    assert near.is_reusable
    await lost(near)


async def test_room_given_back_unsent_is_for_the_next_and_its_reply_too_i16(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    tasks = begun(near, *(b"%d" % i for i in range(6)))
    await turns(1)  # 0 is sent, 1 and 2 are in the batch, the others wait
    tasks[1].cancel()
    await turns()
    assert far.received == b"0\n2\n3\n" if len(far.chunks) > 2 else b"0\n2\n"
    tasks[3].cancel()  # sent by now, or about to be
    await turns()
    far.say(far.received)
    await turns()
    far.say(b"4\n5\n")
    results = await ended(*tasks)
    assert [results[i] for i in (0, 2, 4, 5)] == [b"0", b"2", b"4", b"5"]
    assert far.received.endswith(b"4\n5\n")
    assert near.is_reusable
    await lost(near)


# -- codecs ----------------------------------------------------------------------------------


class Strict(LineCodec):
    """Lines that begin with ``-`` are errors, those with ``?`` are none."""

    def __iter__(self) -> Iterator[Any]:
        for line in super().__iter__():
            if line.startswith(b"?"):
                raise ValueError("what?")
            yield KeyError(line) if line.startswith(b"-") else line


@pytest.mark.parametrize(
    "wrong",
    [
        {"codec": Strict},
        {"codec": Strict, "pipeline": 2, "consumer_factory": Line},
        {"codec": "text", "pipeline": 2},
        {"codec": DelimitedDecoder, "pipeline": 2},
        {"codec": lambda: DelimitedDecoder(b"x"), "pipeline": 2},
        {"codec": Strict, "pipeline": 2, "producer": Answers()},
    ],
)
def test_a_wrong_codec_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"codec|delimiter"):
        Connection(**wrong)


async def test_an_error_reply_is_raised_and_the_connection_goes_on() -> None:
    near, far = await scripted(codec=Strict)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    far.say(b"0\n-no\n2\n")
    ok, failed, also = await ended(*tasks)
    assert (ok, also) == (b"0", b"2")
    assert repr(failed) == "KeyError(b'-no')"
    assert near.is_reusable
    await lost(near)


@pytest.mark.parametrize("junk", [b"?\n", b"x" * 2000])
async def test_a_reply_that_cannot_be_parsed_fails_all_and_closes(junk: bytes) -> None:
    near, far = await scripted(codec=Strict)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    tasks += begun(near, b"3")
    far.say(b"0\n" + junk)
    results = await ended(*tasks)
    assert results[0] == b"0"
    assert isinstance(results[1], ProtocolError)
    assert isinstance(results[2], ConnectionClosed)
    assert results[2].sent
    assert isinstance(results[2].__cause__, ProtocolError)
    assert near.closed
    await lost(near)


async def test_a_part_of_a_reply_that_nobody_asked_for_closes() -> None:
    near, far = await scripted(codec=Strict)
    tasks = begun(near, b"0")
    await turns()
    far.say(b"0\n1")
    assert await ended(*tasks) == [b"0"]
    await turns()
    assert near.closed
    assert "nobody asked for" in str(near._pipeline.failure)
    await lost(near)


async def test_events_of_requests_with_a_codec(kind: Kind) -> None:
    log: list[str] = []
    near, far = await scripted(2, **kind)

    async def sending(consumer: Any, **kw: Any) -> None:
        log.append(f"sending {consumer.request}")
        await asyncio.sleep(0)
        if consumer.request == b"no":
            consumer.abort_request()

    def done(consumer: Any, exc: BaseException | None = None, **kw: Any) -> None:
        log.append(f"done {consumer.request} {type(exc).__name__}")

    consumers = []
    for message in (b"0", b"no", b"1", b"2"):
        consumer = near.current_consumer()
        consumer.bind_event("pre_request", sending)
        consumer.bind_event("post_request", done)
        consumers.append(consumer)
        await consumer.start(message) if message != b"2" else consumer.start(message)
    await turns()
    assert far.received == b"0\n1\n"
    far.say(b"0\n")
    await turns()
    far.say(b"1\n2\n")
    assert [await consumers[i].on_finished for i in (0, 2, 3)] == [b"0", b"1", b"2"]
    with pytest.raises(AbortRequest):
        await consumers[1].on_finished
    assert log[:2] == ["sending b'0'", "sending b'no'"]
    assert "done b'no' AbortRequest" in log
    assert near.is_reusable
    await lost(near)


async def test_a_listener_of_the_client_sees_every_request(kind: Kind) -> None:
    log: list[Any] = []
    client = AbstractClient(protocol_factory=partial(Connection, pipeline=3, **kind))
    client.bind_event(
        "post_request", lambda consumer, exc=None, **kw: log.append(consumer.request)
    )
    near, far = client.create_protocol(), Scripted()
    memory_pair(near, far)
    await turns(1)
    tasks = begun(near, b"0", b"1", b"2", b"3", timeout=30.0)
    await turns()
    tasks[1].cancel()
    far.say(b"0\n1\n2\n")
    await turns()
    far.say(b"3\n")
    results = await ended(*tasks)
    assert results[::2] == [b"0", b"2"]
    assert results[3] == b"3"
    assert log[0] == b"0"
    assert log[-1] == b"3"
    assert near.is_reusable
    await lost(near)


async def test_a_listener_is_told_of_every_end_of_what_nobody_waits_for(kind: Kind) -> None:
    """A span or a counter that begins with pre_request ends with post_request, however it ends."""
    begins, ends = [], []
    client = AbstractClient(protocol_factory=partial(Connection, pipeline=2, **kind))
    client.bind_event("pre_request", lambda consumer, **kw: begins.append(consumer.request))
    client.bind_event(
        "post_request",
        lambda consumer, exc=None, **kw: ends.append((consumer.request, type(exc).__name__)),
    )
    near, far = client.create_protocol(), Scripted()
    memory_pair(near, far)
    await turns(1)
    tasks = begun(near, b"0", b"1", b"2", timeout=30.0)
    await turns()
    for task in tasks:
        task.cancel()
    await ended(*tasks)
    far.say(b"0\n")  # the reply is read all the same
    await turns()
    unsent = begun(near, b"3", b"4")
    await turns(1)
    for task in unsent:
        task.cancel()
    await ended(*unsent)
    await turns()
    near.abort()  # with the reply to b"1" still to come
    await turns()
    assert begins == [b"0", b"1", b"2", b"3", b"4"]
    assert sorted(ends) == [
        (b"0", "NoneType"),
        (b"1", "ConnectionClosed"),
        (b"2", "AbortRequest"),
        (b"3", "AbortRequest"),
        (b"4", "AbortRequest"),
    ]


@pytest.mark.parametrize("what", ["close", "upgrade", "bad"])
async def test_one_that_cannot_be_made_after_all_holds_nothing_up(kind: Kind, what: str) -> None:
    """Callbacks of its pre_request were waited for, and nothing else is in flight."""
    near, _ = await scripted(**kind)
    gate = asyncio.Event()

    async def sending(consumer: Any, **kw: Any) -> None:
        await gate.wait()

    consumer = near.current_consumer()
    consumer.bind_event("pre_request", sending)
    consumer.start(b"0" if what != "bad" else None)
    drained = asyncio.ensure_future(near.drained())
    await turns()
    if what == "close":
        near.close_when_idle()
    elif what == "upgrade":
        near.upgrade(Silent)
    gate.set()
    with pytest.raises(TypeError if what == "bad" else ConnectionClosed):
        await consumer.on_finished
    await turns(6)
    assert drained.done()
    assert near.closed == (what == "close")
    if what == "upgrade":
        assert isinstance(near.current_consumer(), Silent)
    await asyncio.gather(drained, return_exceptions=True)
    await lost(near)


async def test_an_upgrade_of_a_connection_with_a_codec() -> None:
    near, far = await scripted(2, codec=Strict)
    tasks = begun(near, b"0", b"1", b"2")
    await turns()
    near.upgrade(Silent)
    far.say(b"0\n1\npushed")
    results = await ended(*tasks)
    assert results[:2] == [b"0", b"1"]
    assert isinstance(results[2], ConnectionClosed)
    assert not results[2].sent
    await turns()
    consumer: Any = near.current_consumer()
    assert isinstance(consumer, Silent)
    assert consumer.received == b"pushed"
    assert not near.is_shareable
    await lost(near)


@pytest.mark.parametrize("early", [True, False])
def test_what_an_upgrade_leaves_behind_costs_nobody_his_time_out(kind: Kind, early: bool) -> None:
    """A request whose pre_request takes long can't be made any more, and is told so at once."""

    async def main() -> None:
        near, far = await scripted(**kind)
        gate = asyncio.Event()

        async def sending(consumer: Any, **kw: Any) -> None:
            await gate.wait()

        def started() -> Any:
            consumer = near.current_consumer()
            consumer.bind_event("pre_request", sending)
            consumer.start(b"late")
            return consumer

        tasks = begun(near, b"0")
        await turns()
        left = started() if early else None
        near.upgrade(Line)
        left = left or started()
        drained = asyncio.ensure_future(near.drained())
        far.say(b"0\n")
        assert await ended(*tasks) == [b"0"]
        with pytest.raises(ConnectionClosed, match="takes no more requests"):
            await left.on_finished
        assert await drained
        asked = asyncio.ensure_future(near.request(b"1", timeout=1.0))
        await turns()
        gate.set()
        with pytest.raises(RequestTimeout):
            await asyncio.wait_for(asked, 10.0)
        await lost(near)

    on_virtual_clock(main())


async def test_an_upgrade_as_soon_as_a_request_is_done(kind: Kind) -> None:
    """STARTTLS and its like: what arrived behind the reply is the next protocol's."""
    near, far = await scripted(**kind)
    consumer = near.current_consumer()
    consumer.bind_event("post_request", lambda sender, **kw: near.upgrade(Silent))
    consumer.start(b"0")
    await turns()
    far.say(b"0\npushed")
    await turns()
    upgraded: Any = near.current_consumer()
    assert isinstance(upgraded, Silent)
    assert upgraded.received == b"pushed"
    assert not near.closed
    await lost(near)


# -- bounds ----------------------------------------------------------------------------------


async def test_given_up_requests_cost_no_memory_i9(kind: Kind) -> None:
    near, _ = await scripted(5, **kind)
    before = len(gc.get_objects())
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(50):
        tasks = begun(near, *(b"x" * 1000 for _ in range(100)))
        await turns(1)
        for task in tasks:
            task.cancel()
        await ended(*tasks)
    del tasks
    gc.collect()
    assert len(gc.get_objects()) - before < 3000  # of 5000 requests
    assert near.info()["connection"]["pipeline"]["waiting"] == 0
    near.abort()
    await lost(near)


@pytest.mark.parametrize("after", range(16))
async def test_killed_at_every_step(after: int, kind: Kind) -> None:
    near, far = Connection(pipeline=3, **kind), Connection(EchoLine, producer=Answers())
    memory_pair(near, far, to_client=Link(split=1))
    await turns(1)
    tasks = begun(near, *(b"%d" % i for i in range(6)), timeout=30.0)
    near.transport.incoming.cut(after=after, exc=ConnectionResetError("planted"))
    results = await ended(*tasks)
    answered = after // 2
    assert results[:answered] == [b"%d" % i for i in range(min(answered, 6))]
    for result in results[answered:]:
        assert isinstance(result, ConnectionClosed)
    if after and answered < 6:
        assert results[answered].sent
    await lost(near, far)


async def test_over_tls(
    server_ssl: ssl.SSLContext, client_ssl: ssl.SSLContext, kind: Kind
) -> None:
    async with served(sslcontext=server_ssl) as server:
        client = AbstractClient(protocol_factory=partial(Connection, pipeline=20, **kind))
        async with client:
            connection = await client.create_connection(
                server.address, ssl=client_ssl, server_hostname="localhost"
            )
            messages = [b"%d" % i * 100 for i in range(200)]
            tasks = begun(connection, *messages, timeout=30.0)
            await turns(2)
            tasks[3].cancel()
            results = await ended(*tasks)
            assert results[:3] + results[4:] == messages[:3] + messages[4:]
            assert await connection.drained()
            assert connection.is_reusable


async def test_close_sends_the_batch_and_fails_what_is_in_flight(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    tasks = begun(near, *(b"%d" % i for i in range(6)))
    await turns(1)
    near.close()
    results = await ended(*tasks)
    assert far.received == b"0\n1\n2\n"
    assert [result.sent for result in results] == [True] * 3 + [False] * 3
    await lost(near)


async def test_a_connection_with_requests_in_flight_is_not_idle_a9(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    tasks = begun(near, b"0")
    await turns()
    near.timeout = 0.02
    await asyncio.sleep(0.1)  # five times what an idle one has
    assert not near.closed
    far.say(b"0\n")
    assert await ended(*tasks) == [b"0"]
    await near.close()


async def test_a_coroutine_that_is_closed_gives_its_request_up_i16(kind: Kind) -> None:
    near, far = await scripted(3, **kind)
    await asyncio.gather(*begun(near, b"0"), asyncio.create_task(_answer(far)))
    coroutine = near.request(b"1")
    coroutine.send(None)
    coroutine.close()
    tasks = begun(near, b"2", b"3")
    await turns()
    far.say(far.received.removeprefix(b"0\n"))
    assert await ended(*tasks) == [b"2", b"3"]
    assert near.is_reusable
    await lost(near)


async def _answer(far: Scripted) -> None:
    await turns(3)
    far.say(far.received)
