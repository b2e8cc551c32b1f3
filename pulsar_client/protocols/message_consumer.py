"""Requests with a consumer, where there is a codec: somebody listens to their events."""

from pulsar_client.protocols.protocol_consumer import ProtocolConsumer

__all__ = ["ListenedRequest", "MessageConsumer"]


class MessageConsumer(ProtocolConsumer):
    """The exchange of one message, where its events or ``start`` are wanted."""


class ListenedRequest:
    """Stands in the line for a request with a consumer, with what is used of a future.

    It is ``done`` when nobody waits for it; its consumer still has to be told how it ended.
    """

    __slots__ = ("consumer",)

    def __init__(self, consumer: ProtocolConsumer) -> None:
        self.consumer = consumer

    def done(self) -> bool:
        """True if nobody waits for it."""
        waiter = self.consumer._waiter
        return self.consumer._done or (waiter is not None and waiter.done())

    def set_result(self, reply: object) -> None:
        """End it with its reply."""
        self.consumer.finished(reply)

    def set_exception(self, exc: BaseException) -> None:
        """End it with an error."""
        self.consumer.finished(exc=exc)

    def exception(self) -> None:
        """Nothing: a consumer sees its error."""
