"""The size of a request that is not complete yet, counted on a server.

Decoders have limits of their own, on the messages they know; this one holds for every consumer.
"""

from typing import Any

from pulsar_client.exceptions import MessageTooLarge

__all__ = ["count_message"]


def count_message(connection: Any, consumer: Any, given: int, left: int) -> None:
    """Count what a consumer that has not finished was given, and fail its request above the limit.

    A consumer that answers already, that works in a task, or that has set its ``request`` knows
    what it takes: it is not counted.

    Args:
        connection: a server's connection, whose producer has the limit.
        consumer: of the request in flight.
        given: how many bytes it was given just now.
        left: how many of them it has left, to be given them again.
    """
    limit = connection.producer.max_message
    if (
        limit is None
        or not consumer._started
        or consumer._sent
        or consumer._tasks
        or consumer.request is not None
    ):
        return
    number, taken = connection._taken or (0, 0)
    if number != connection._requests_processed:
        taken = 0
    if taken + given > limit:
        text = f"a request is incomplete after {limit} bytes, which is max_message"
        connection.request_failed(consumer, MessageTooLarge(text))
    else:
        connection._taken = (connection._requests_processed, taken + given - left)
