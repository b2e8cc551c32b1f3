"""Which request a reply belongs to: by the address it comes from and the key in it.

No socket, no loop and no clock: times are given by the caller.  Three rules keep exchanges pure:

1. A reply is taken only with the key of a pending request, and from the address it went to.
2. A key is not used again before so much time has passed that its reply can't be on its way.
3. Whatever else arrives is counted, and is no error: anybody can send it.
"""

import os
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["ReplyMatcher"]

T = TypeVar("T")

#: Candidates that are tried before it is said that there is no free key.
_ATTEMPTS = 256


class ReplyMatcher(Generic[T]):
    """The requests that wait for a reply, and the keys of those that did.

    Args:
        remember: how many keys of ended requests are kept at most.

    Attributes:
        late: replies to requests that had ended without one.
        duplicates: further replies to requests that had one.
        foreign: what came from another address, or with a key that nobody uses.
    """

    def __init__(self, *, remember: int = 65536) -> None:
        self.late = self.duplicates = self.foreign = 0
        self._remember = remember
        self._pending: dict[Any, dict[Any, T]] = {}
        self._size = 0
        # Address and key of ended requests, in the order of their ends; until when, and whether
        # there was a reply.
        self._ended: dict[tuple[Any, Any], tuple[float, bool]] = {}

    def __len__(self) -> int:
        """How many requests wait for a reply."""
        return self._size

    def __repr__(self) -> str:
        return (
            f"<ReplyMatcher: {self._size} pending, {self.late} late, "
            f"{self.duplicates} duplicates, {self.foreign} foreign>"
        )

    def check(self, address: Hashable, key: Hashable, now: float) -> None:
        """Refuse a key whose reply could be taken for another's.

        Raises:
            ValueError: a request with this key waits for a reply of this address, or one has ended
                without a reply, which may still come.
        """
        if key in self._pending.get(address, ()):
            raise ValueError(f"key {key!r} is in use for {address}: a request waits for its reply")
        ended = self._ended.get((address, key))
        if ended is not None and not ended[1] and ended[0] > now:
            raise ValueError(
                f"key {key!r} had no reply from {address} yet, and may still get one for "
                f"{ended[0] - now:.3f} s: use another"
            )

    def add(self, address: Hashable, key: Hashable, request: T) -> None:
        """A request was sent; `check` the key before."""
        pending = self._pending.get(address)
        if pending is None:
            pending = self._pending[address] = {}
        pending[key] = request
        self._size += 1

    def find(self, address: Hashable, key: Hashable) -> T | None:
        """The request that a reply is for; it stays pending.

        Returns:
            None for a late, duplicate or foreign datagram, which is counted.
        """
        pending = self._pending.get(address)
        if pending is not None:
            request = pending.get(key)
            if request is not None:
                return request
        ended = self._ended.get((address, key))
        if ended is None:
            self.foreign += 1
        elif ended[1]:
            self.duplicates += 1
        else:
            self.late += 1
        return None

    def remove(
        self, address: Hashable, key: Hashable, *, answered: bool, until: float, now: float
    ) -> None:
        """A request has ended.

        Args:
            address: where it was sent to.
            key: its key.
            answered: it had its reply.
            until: when nothing that belongs to it can arrive any more.
            now: the time.
        """
        pending = self._pending.get(address)
        if pending is None or pending.pop(key, None) is None:
            return
        self._size -= 1
        if not pending:
            del self._pending[address]
        ended = self._ended
        ended.pop((address, key), None)  # to the end of the order
        ended[address, key] = (until, answered)
        self._forget(now)

    def pending(self, address: Hashable = None) -> list[T]:
        """The requests that wait for a reply of an address, or of any."""
        if address is not None:
            return list(self._pending.get(address, {}).values())
        return [request for pending in self._pending.values() for request in pending.values()]

    def has_ended(self, address: Hashable, key: Hashable) -> bool:
        """True for the key of a request that is over, and of none that is pending."""
        return key not in self._pending.get(address, ()) and (address, key) in self._ended

    def fresh_key(
        self,
        address: Hashable,
        now: float,
        make: Callable[[], Any] | None = None,
        *,
        size: int = 2,
    ) -> Any:
        """A random key that no request to this address uses, or used a short while ago.

        Args:
            address: where the request will go.
            now: the time.
            make: gives a random candidate; ``size`` random bytes by default.
            size: bytes of a key.

        Raises:
            RuntimeError: nearly all keys are in use; ``size`` is too small for so many requests.
        """
        pending = self._pending.get(address, ())
        ended = self._ended
        for _ in range(_ATTEMPTS):
            key = os.urandom(size) if make is None else make()
            if key not in pending:
                known = ended.get((address, key))
                if known is None or known[0] <= now:
                    return key
        raise RuntimeError(
            f"no free key for {address}: {len(pending)} are in use and {len(ended)} were "
            "a short while ago; take longer keys, or fewer requests a second"
        )

    def _forget(self, now: float) -> None:
        """Drop what can't arrive any more: a few at a time, so that no call takes long."""
        ended = self._ended
        for _ in range(2):
            if not ended:
                return
            oldest = next(iter(ended))
            if ended[oldest][0] > now and len(ended) <= self._remember:
                return
            del ended[oldest]
