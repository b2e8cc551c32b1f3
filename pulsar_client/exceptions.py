"""Every error that this library raises.

::

    PulsarClientError
    ├── ProtocolError (ConnectionError)        the peer broke the protocol
    │   └── MessageTooLarge
    ├── ConnectionClosed (ConnectionError)     .sent: was any byte of the request written?
    ├── RequestTimeout (TimeoutError)
    ├── AbortEvent (RuntimeError)              raised by a callback: becomes the event's exception
    │   └── AbortRequest
    ├── PoolError
    │   ├── PoolTimeout (TimeoutError)
    │   ├── PoolUnavailable (ConnectionError)  the target can't be reached; the cause is attached
    │   ├── PoolClosed
    │   ├── PoolOverloaded
    │   └── LeaseReleased (RuntimeError)
    └── ConfigError (ValueError)

Each class that is raised also derives from the builtin that fits, so that code which catches
``ConnectionError`` or ``TimeoutError`` keeps working.  This module imports nothing of the library.
"""

__all__ = [
    "AbortEvent",
    "AbortRequest",
    "ConfigError",
    "ConnectionClosed",
    "LeaseReleased",
    "MessageTooLarge",
    "PoolClosed",
    "PoolError",
    "PoolOverloaded",
    "PoolTimeout",
    "PoolUnavailable",
    "ProtocolError",
    "PulsarClientError",
    "RequestTimeout",
]


class PulsarClientError(Exception):
    """Base of every error of this library."""


class ProtocolError(PulsarClientError, ConnectionError):
    """The peer sent bytes that the protocol does not allow.

    The connection can't be trusted any more and is closed.
    """


class MessageTooLarge(ProtocolError):
    """A message of the peer exceeds the decoder's ``max_size`` (bytes)."""


class ConnectionClosed(PulsarClientError, ConnectionError):
    """The connection was lost, or closed, before the request had its reply.

    Attributes:
        sent: False only if it is certain that no byte of the request was handed to the transport;
            a request that was not sent can be repeated on another connection without harm.
    """

    sent: bool

    def __init__(self, message: str = "connection closed", *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class RequestTimeout(PulsarClientError, TimeoutError):
    """A reply did not arrive within the time the request was given."""


class AbortEvent(PulsarClientError, RuntimeError):
    """Raised by a callback of a one-time event: it becomes the exception of the event.

    Any other exception of a callback is logged and changes nothing.
    """


class AbortRequest(AbortEvent):
    """The request was aborted in its ``pre_request`` stage; nothing of it was written."""


class PoolError(PulsarClientError):
    """Base of what a pool raises; the message names the pool and its counts."""


class PoolTimeout(PoolError, TimeoutError):
    """No connection could be leased before the caller's deadline."""


class PoolUnavailable(PoolError, ConnectionError):
    """A connection could not be opened; ``__cause__`` is what the dial raised."""


class PoolClosed(PoolError):
    """The pool is closed: it gives no more leases."""


class PoolOverloaded(PoolError):
    """The pool refuses to let another caller wait."""


class LeaseReleased(PoolError, RuntimeError):
    """A lease was used after it had been released, detached or closed."""


class ConfigError(PulsarClientError, ValueError):
    """A setting has a value that is not allowed; the message names both."""
