"""One exchange: start, the order of events, abort, the end, and what the caller is told."""

import asyncio
from functools import partial
from typing import Any

import pytest
from protocol_kit import (
    Answers,
    EchoLine,
    Line,
    Silent,
    SlowLine,
    connected,
    dialled,
    lost,
    raw_server,
    served,
    turns,
    until,
)

from pulsar_client import (
    AbortEvent,
    AbortRequest,
    Connection,
    ConnectionClosed,
    Producer,
    ProtocolConsumer,
    ProtocolError,
)
from pulsar_client.testing import Link, memory_pair


async def test_the_order_of_events_of_a_client_request() -> None:
    """The order is the one that is printed."""
    order: list[str] = []

    class Noted(Line):
        def connection_made(self, connection: Any) -> None:
            order.append("consumer connection_made()")

        def start_request(self) -> None:
            order.append("start_request()")
            super().start_request()

        def data_received(self, data: bytes) -> bytes:
            order.append("consumer data_received()")
            return super().data_received(data)

    producer = Producer()
    connection = Connection(Noted, producer=producer)

    def note(text: str) -> Any:
        return lambda sender, exc=None, data=None: order.append(text)

    connection.bind_event("connection_made", note("connection connection_made"))
    connection.bind_event("data_received", note("connection data_received"))
    connection.bind_event("data_processed", note("connection data_processed"))
    server = Connection(EchoLine, producer=Answers())
    memory_pair(connection, server)
    await turns(1)
    consumer = connection.current_consumer()
    for name in ("pre_request", "post_request", "data_processed"):
        consumer.bind_event(name, note(name))
    consumer.bind_event("data_received", note("consumer data_received"))
    consumer.start(b"hello")
    assert await consumer.on_finished == b"hello"
    await turns()
    assert order == [
        "connection connection_made",
        "consumer connection_made()",
        "pre_request",
        "start_request()",
        "connection data_received",
        "consumer data_received",
        "consumer data_received()",
        "post_request",
        "data_processed",
        "connection data_processed",
    ]
    await lost(connection, server)


async def test_start_is_synchronous_and_counts_and_gives_the_consumer() -> None:
    near, far = await connected()
    consumer = near.current_consumer()
    assert consumer.request is None
    assert near.requests_processed == 0
    started = consumer.start(b"hello")
    assert near.requests_processed == 1
    assert consumer.request == b"hello"
    assert near.transport.outgoing.pending == len(b"hello\n")
    assert await started is consumer
    assert await consumer.on_finished == b"hello"
    assert consumer.done()
    assert far.requests_processed == 1
    await lost(near, far)


async def test_starting_twice_or_without_a_connection_is_an_error() -> None:
    near, far = await connected()
    consumer = near.current_consumer()
    consumer.start(b"a")
    with pytest.raises(RuntimeError, match="started before"):
        consumer.start(b"b")
    await consumer.on_finished
    with pytest.raises(RuntimeError, match="started before"):
        consumer.start(b"b")
    with pytest.raises(RuntimeError, match="no connection"):
        Line().start(b"a")
    with pytest.raises(RuntimeError, match="no connection"):
        Line().write(b"a")
    with pytest.raises(RuntimeError, match="no transport"):
        Connection(Line).current_consumer().start(b"a")
    assert near.requests_processed == 1
    await lost(near, far)


async def test_the_members_of_a_consumer() -> None:
    near, far = await connected(client_kw={"producer": (producer := Producer())})
    consumer = near.current_consumer()
    assert consumer.connection is near
    assert consumer.producer is producer
    assert consumer.address == near.address
    assert consumer.transport is near.transport
    assert not consumer.done()
    loose = Line()
    assert loose.connection is None
    assert loose.producer is None
    assert loose.transport is None
    assert loose.address is None
    await lost(near, far)


async def test_on_the_server_only_pre_request_is_fired_and_before_post_request() -> None:
    """A8: ``start_request`` is not called, and pre_request does not come last."""
    order: list[str] = []

    class Server(EchoLine):
        def start_request(self) -> None:
            order.append("start_request")

    producer = Answers()
    producer.bind_event("pre_request", lambda sender, exc=None: order.append("pre"))
    producer.bind_event("post_request", lambda sender, exc=None: order.append("post"))
    near, far = await connected(server=Server, server_kw={"producer": producer})
    assert await near.request(b"x") == b"x"
    assert await near.request(b"y") == b"y"
    assert order == ["pre", "post", "pre", "post"]
    assert producer.requests_processed == 2
    await lost(near, far)


async def test_finishing_twice_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    near, far = await connected(Silent)
    consumer = near.current_consumer()
    consumer.start()
    consumer.finished("first")
    consumer.finished("second")
    consumer.finished(exc=ValueError())
    assert await consumer.on_finished == "first"
    assert not caplog.records
    await lost(near, far)


async def test_the_result_is_the_consumer_unless_another_is_given() -> None:
    near, far = await connected(Silent)
    consumer = near.current_consumer()
    consumer.start()
    consumer.finished()
    assert await consumer.on_finished is consumer
    consumer = near.current_consumer()
    consumer.start()
    consumer.finished(None)
    assert await consumer.on_finished is None
    await lost(near, far)


async def test_a_consumer_whose_events_nobody_uses_has_none() -> None:
    """Laziness: through connect, one request and close nothing is created."""
    consumers: list[ProtocolConsumer] = []
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Quiet(Line):
        def __init__(self) -> None:
            super().__init__()
            consumers.append(self)

        def finished(self, result: Any = None, exc: BaseException | None = None) -> None:
            answer.set_result(result)
            super().finished(result, exc)

    class QuietServer(EchoLine):
        def __init__(self) -> None:
            super().__init__()
            consumers.append(self)

    class QuietConnection(Connection):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            ended.set_result(None)

    async with served(QuietServer) as server, dialled(server.address, Quiet) as near:
        # create_connection asks for connection_made; the server's side asks for nothing.
        (far,) = server._protocols
        assert far._one_time is None
        near.current_consumer().start(b"x")
        assert await answer == b"x"
        assert far._one_time is None
        assert far._many_times is None
        near.abort()
        await until(lambda: far.closed and not server._protocols)
        assert far._one_time is None
    assert len(consumers) == 2
    for consumer in consumers:
        assert consumer._one_time is None
        assert consumer._many_times is None
    near, far = await connected(Quiet, client_kw={})
    assert near._one_time is None
    near.abort()
    await turns()
    assert near._one_time is None
    assert far._one_time is None
    assert far.closed
    ended.cancel()


async def test_events_asked_for_afterwards_are_done() -> None:
    """Late binding to events that did not exist when they fired."""
    near, far = await connected()
    consumer = near.current_consumer()
    answers: list[Any] = []
    consumer.start(b"x")
    await until(consumer.done)
    assert consumer._one_time is None
    consumer.bind_event("post_request", lambda sender, exc=None: answers.append((sender, exc)))
    consumer.bind_event("pre_request", lambda sender, exc=None: answers.append((sender, exc)))
    assert answers == [(consumer, None), (consumer, None)]
    assert await consumer.on_finished == b"x"
    await lost(near, far)
    near.bind_event("connection_made", lambda sender, exc=None: answers.append(sender))
    near.bind_event("connection_lost", lambda sender, exc=None: answers.append(sender))
    assert answers[2:] == [near, near]


# -- abort -----------------------------------------------------------------------------------


async def test_abort_request_in_a_pre_request_callback() -> None:
    near, far = await connected()
    consumer = near.current_consumer()

    def abort(sender: Any, exc: object = None) -> None:
        sender.abort_request()

    consumer.bind_event("pre_request", abort)
    assert await consumer.start(b"x") is consumer
    with pytest.raises(AbortRequest):
        await consumer.on_finished
    assert near.transport.outgoing.pending == 0
    assert near.transport.outgoing.delivered == 0
    # Nothing was written: the connection is as good as before.
    assert near.is_reusable
    assert await near.request(b"y") == b"y"
    await lost(near, far)


async def test_abort_request_in_a_coroutine_callback() -> None:
    near, far = await connected()
    consumer = near.current_consumer()
    gate = asyncio.Event()

    async def abort(sender: Any, exc: object = None) -> None:
        await gate.wait()
        sender.abort_request()

    consumer.bind_event("pre_request", abort)
    started = asyncio.ensure_future(consumer.start(b"x"))
    await turns()
    assert not started.done()
    assert not near.is_reusable
    gate.set()
    assert await started is consumer
    with pytest.raises(AbortRequest):
        await consumer.on_finished
    assert near.transport.outgoing.delivered == 0
    assert near.is_reusable
    await lost(near, far)


async def test_an_abort_that_the_callback_swallows_still_holds() -> None:
    near, far = await connected()
    consumer = near.current_consumer()

    def abort(sender: Any, exc: object = None) -> None:
        with pytest.raises(AbortRequest):
            sender.abort_request()

    consumer.bind_event("pre_request", abort)
    consumer.start(b"x")
    with pytest.raises(AbortRequest):
        await consumer.on_finished
    await lost(near, far)


async def test_any_abort_event_ends_the_request() -> None:
    class Mine(AbortEvent):
        pass

    near, far = await connected()
    consumer = near.current_consumer()

    def abort(sender: Any, exc: object = None) -> None:
        raise Mine("no")

    consumer.bind_event("pre_request", abort)
    consumer.start(b"x")
    with pytest.raises(Mine):
        await consumer.on_finished
    assert near.transport.outgoing.delivered == 0
    await lost(near, far)


async def test_aborting_later_is_an_error() -> None:
    near, far = await connected()
    consumer = near.current_consumer()
    consumer.start(b"x")
    with pytest.raises(RuntimeError, match="too late"):
        consumer.abort_request()
    assert await consumer.on_finished == b"x"
    with pytest.raises(RuntimeError, match="too late"):
        consumer.abort_request()
    await lost(near, far)


async def test_coroutine_callbacks_of_pre_request_hold_the_request_back() -> None:
    near, far = await connected()
    consumer = near.current_consumer()
    gate = asyncio.Event()
    order: list[str] = []

    async def slow(sender: Any, exc: object = None) -> None:
        await gate.wait()
        order.append("slow")

    consumer.bind_event("pre_request", slow)
    consumer.bind_event("pre_request", lambda sender, exc=None: order.append("behind"))
    started = consumer.start(b"x")  # needs not be awaited
    await turns()
    assert near.transport.outgoing.delivered == 0
    gate.set()
    assert await consumer.on_finished == b"x"
    assert order == ["slow", "behind"]
    assert await started is consumer
    await lost(near, far)


async def test_a_connection_lost_during_pre_request_is_no_cancellation() -> None:
    """A3, A11: the caller was not cancelled, and learns that nothing was sent."""
    near, far = await connected()

    async def slow(sender: Any, exc: object = None) -> None:
        await gate.wait()

    gate = asyncio.Event()
    near.current_consumer().bind_event("pre_request", slow)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    far.abort()
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.sent is False
    gate.set()
    await turns()
    await lost(near, far)


async def test_cancelling_start_abandons_the_request_before_it_is_written() -> None:
    near, far = await connected()

    async def slow(sender: Any, exc: object = None) -> None:
        await gate.wait()

    gate = asyncio.Event()
    consumer = near.current_consumer()
    consumer.bind_event("pre_request", slow)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    with pytest.raises(AbortRequest):
        await consumer.on_finished
    await turns()
    assert near.transport.outgoing.delivered == 0
    assert near.is_reusable
    await lost(near, far)


async def test_bytes_that_come_before_the_request_is_written_are_not_its_reply() -> None:
    """I16: a coroutine callback of pre_request still runs."""
    near, far = await connected()

    async def slow(sender: Any, exc: object = None) -> None:
        await gate.wait()

    gate = asyncio.Event()
    near.current_consumer().bind_event("pre_request", slow)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    far.transport.write(b"stale\n")
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.sent is False
    gate.set()
    await turns()
    await lost(near, far)


async def test_a_server_request_waits_for_coroutine_callbacks_of_pre_request() -> None:
    """A8: the data comes after pre_request, all of it, in order."""
    order: list[str] = []
    gate = asyncio.Event()

    class Server(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            order.append(f"data {data!r}")
            return super().data_received(data)

    async def slow(sender: Any, exc: object = None) -> None:
        await gate.wait()
        order.append("pre_request")

    producer = Answers()
    producer.bind_event("pre_request", slow)
    near, far = await connected(server=Server, server_kw={"producer": producer})
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    assert order == []
    assert not far.is_reusable
    gate.set()
    assert await task == b"x"
    assert order == ["pre_request", "data b'x\\n'"]
    assert await near.request(b"y") == b"y"
    await lost(near, far)


@pytest.mark.parametrize("coroutine", [False, True])
async def test_a_request_that_a_server_aborts_closes_its_connection(
    coroutine: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def abort(sender: Any, exc: object = None) -> None:
        sender.abort_request()

    async def abort_later(sender: Any, exc: object = None) -> None:
        await asyncio.sleep(0)
        sender.abort_request()

    class Server(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            raise AssertionError("it was aborted")

    producer = Answers()
    producer.bind_event("pre_request", abort_later if coroutine else abort)
    producer.bind_event("post_request", lambda sender, exc=None: seen.append(type(exc)))
    near, far = await connected(server=Server, server_kw={"producer": producer})
    with pytest.raises(ConnectionClosed):
        await near.request(b"x")
    assert seen == [AbortRequest]
    assert far.closed
    assert not caplog.records
    await lost(near, far)


# -- the end, and who is told (A3) -----------------------------------------------------------


@pytest.mark.parametrize("where", ["nothing", "written", "answered in part"])
async def test_connection_closed_says_whether_anything_was_sent(where: str) -> None:
    """A3: ``sent``."""

    class Lazy(Line):
        def start_request(self) -> None:
            if where != "nothing":
                super().start_request()

    near, far = await connected(Lazy, Silent)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    if where == "answered in part":
        far.write(b"half")
        await turns()
    far.abort()
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.sent is (where != "nothing")
    await lost(near, far)


async def test_whoever_takes_the_transport_counts_as_having_sent() -> None:
    class Direct(Line):
        def start_request(self) -> None:
            self.transport.write(self.request)

    near, far = await connected(Direct, Silent)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    far.abort()
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.sent is True
    await lost(near, far)


async def test_a_request_on_a_closed_connection_was_not_sent() -> None:
    near, far = await connected()
    await lost(near, far)
    with pytest.raises(ConnectionClosed) as caught:
        await near.request(b"x")
    assert caught.value.sent is False


async def test_the_second_write_to_a_lost_connection_says_sent() -> None:
    near, far = await connected(Silent, Silent)
    consumer = near.current_consumer()
    consumer.start(b"x")
    near.abort()
    with pytest.raises(ConnectionClosed) as caught:
        consumer.write(b"more")
    assert caught.value.sent is True
    with pytest.raises(ConnectionClosed):
        await consumer.on_finished
    await lost(near, far)


async def test_the_cause_of_the_loss_is_attached() -> None:
    near, far = await connected(server=Silent)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    near.transport.outgoing.cut(exc=(reset := ConnectionResetError("reset")))
    with pytest.raises(ConnectionClosed) as caught:
        await task
    assert caught.value.__cause__ is reset
    await lost(near, far)


async def test_start_request_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A3: the caller gets it, once, and the connection is gone."""

    class Broken(Line):
        def start_request(self) -> None:
            raise LookupError("oops")

    near, far = await connected(Broken)
    with pytest.raises(LookupError, match="oops"):
        await near.request(b"x")
    assert near.closed
    assert not near.is_reusable
    assert not caplog.records
    await lost(near, far)


async def test_data_received_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A3."""

    class Broken(Line):
        def data_received(self, data: bytes) -> bytes:
            raise LookupError("oops")

    near, far = await connected(Broken)
    told: list[bool] = []
    consumer = near.current_consumer()
    consumer.bind_event("post_request", lambda sender, exc=None: told.append(near.is_reusable))
    with pytest.raises(LookupError, match="oops"):
        await near.request(b"x")
    assert told == [False]  # already when the caller is told
    assert near.closed
    assert not caplog.records
    await lost(near, far)


async def test_data_received_raises_after_the_request_was_finished(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Line):
        def data_received(self, data: bytes) -> bytes:
            super().data_received(data)
            raise LookupError("oops")

    near, far = await connected(Broken)
    assert await near.request(b"x") == b"x"
    assert near.closed
    (record,) = caplog.records
    assert record.exc_info is not None
    await lost(near, far)


@pytest.mark.parametrize("rest", [5, "text", ["x"]])
async def test_what_data_received_returns_is_checked(rest: Any) -> None:
    class Broken(Line):
        def data_received(self, data: bytes) -> bytes:
            return rest  # type: ignore[no-any-return]

    near, far = await connected(Broken)
    with pytest.raises(TypeError, match=r"returned .*expected the unused bytes or None"):
        await near.request(b"x")
    await lost(near, far)


async def test_a_client_that_implements_nothing_is_told() -> None:
    near, far = await connected(ProtocolConsumer)
    with pytest.raises(NotImplementedError, match="start_request"):
        await near.request(b"x")
    await lost(near, far)


async def test_garbage_of_the_server_is_the_callers_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Strict(Line):
        def data_received(self, data: bytes) -> bytes:
            raise ProtocolError(f"garbage: {data!r}")

    near, far = await connected(Strict)
    with pytest.raises(ProtocolError, match="garbage"):
        await near.request(b"x")
    assert near.closed
    assert not caplog.records
    await lost(near, far)


async def test_a_server_that_closes_early_on_real_sockets() -> None:
    """A3: every way in which a server can go."""
    async with raw_server() as (address, accept):
        for reply, reset in ((b"", False), (b"half", False), (b"half", True)):
            async with dialled(address) as connection:
                task = asyncio.create_task(connection.request(b"x"))
                peer = await accept()
                assert await peer.receive() == b"x\n"
                if reply:
                    await peer.send(reply)
                if reset:
                    peer.reset()
                else:
                    peer.sock.close()
                with pytest.raises(ConnectionClosed) as caught:
                    await task
                assert caught.value.sent is True
                assert not connection.is_reusable


async def test_a_server_that_never_answers_can_be_abandoned() -> None:
    """I17: the connection is not reusable after the caller gave up."""
    async with served(Silent) as server, dialled(server.address) as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.request(b"x")
        assert not connection.closed
        assert not connection.is_reusable
        with pytest.raises(RuntimeError, match="started before"):
            await connection.request(b"y")


@pytest.mark.parametrize("apart", [False, True])
async def test_a_server_that_answers_twice_is_cut_off(apart: bool) -> None:
    """I18: the second answer is never given to the next request."""

    class Twice(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            if apart:
                asyncio.get_running_loop().call_later(0.01, self.connection.write, data)
            else:
                self.write(data)
            return super().data_received(data)

    async with served(Twice) as server, dialled(server.address) as connection:
        assert await connection.request(b"x") == b"x"
        if not apart:
            assert connection.closed
        await until(lambda: connection.closed)
        assert not connection.is_reusable


async def test_left_over_bytes_are_not_the_reply_of_a_request_made_in_a_callback() -> None:
    """I16: a callback of post_request makes the next request before the bytes are looked at."""

    class Twice(EchoLine):
        def data_received(self, data: bytes) -> bytes:
            self.write(b"forged\n")
            return super().data_received(data)

    near, far = await connected(server=Twice, to_client=Link())
    second: list[ProtocolConsumer] = []

    def again(sender: Any, exc: object = None) -> None:
        second.append(near.current_consumer())
        second[0].start(b"second")

    consumer = near.current_consumer()
    consumer.bind_event("post_request", again)
    consumer.start(b"first")
    assert await consumer.on_finished == b"forged"
    with pytest.raises(ConnectionClosed):
        await second[0].on_finished
    await lost(near, far)


async def test_left_over_bytes_of_a_request_that_is_finished_elsewhere() -> None:
    """I16: kept bytes are never fed to the next request."""

    class Hoards(Line):
        def data_received(self, data: bytes) -> bytes:
            return data

    near, far = await connected(Hoards, Silent)
    consumer = near.current_consumer()
    consumer.start(b"x")
    await turns()
    far.write(b"left\n")
    await turns()
    second: list[ProtocolConsumer] = []

    def again(sender: Any, exc: object = None) -> None:
        second.append(near.current_consumer())
        second[0].start(b"second")

    consumer.bind_event("post_request", again)
    consumer.finished("first")
    with pytest.raises(ConnectionClosed):
        await second[0].on_finished
    await lost(near, far)


async def test_a_failing_hook_hangs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """A2, A3: ``connection_lost`` of the user's raises."""

    class Broken(Line):
        def connection_lost(self, exc: BaseException | None) -> None:
            raise LookupError("oops")

    near, far = await connected(Broken, Silent)
    task = asyncio.create_task(near.request(b"x"))
    await turns()
    far.abort()
    with pytest.raises(ConnectionClosed):
        await task
    assert "oops" in caplog.text
    await lost(near, far)


async def test_connection_lost_can_be_overridden_to_finish_with_a_result() -> None:
    class UntilTheEnd(Silent):
        def connection_lost(self, exc: BaseException | None) -> None:
            self.finished(self.received)

    near, far = await connected(UntilTheEnd, SlowLine)
    task = asyncio.create_task(near.request(b"x\n"))
    await turns()
    far.write(b"all of it")
    far.close()
    assert await task == b"all of it"
    await lost(near, far)


async def test_a_server_request_in_flight_is_finished_when_the_client_goes() -> None:
    seen: list[Any] = []
    producer = Answers()
    producer.bind_event("post_request", lambda sender, exc=None: seen.append(exc))
    near, _ = await connected(server=SlowLine, server_kw={"producer": producer})
    consumer = near.current_consumer()
    consumer.start(b"x")
    await turns()
    near.transport.outgoing.cut(exc=ConnectionResetError())
    await turns()
    (exc,) = seen
    assert isinstance(exc, ConnectionClosed)
    with pytest.raises(ConnectionClosed):
        await consumer.on_finished


async def test_keywords_of_a_partial_reach_the_constructor() -> None:
    near, far = await connected(partial(Line, None, ["ready"], ["tick"]))
    consumer = near.current_consumer()
    assert consumer.event("ready") is not None
    assert consumer.event("tick") is not None
    assert consumer.event("post_request") is not None
    await lost(near, far)
