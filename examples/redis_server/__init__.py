"""A small server that Redis clients can talk to: strings, transactions and channels."""

from examples.redis_server.server import RedisServer

__all__ = ["RedisServer"]
