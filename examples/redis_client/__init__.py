"""A Redis client: pooled, pipelined by itself, RESP 2 and 3 through hiredis."""

from examples.redis_client.client import Redis
from examples.redis_client.exclusive import Exclusive
from examples.redis_client.protocol import RedisError
from examples.redis_client.subscription import Message
from examples.redis_client.transaction import Transaction, WatchError

__all__ = ["Exclusive", "Message", "Redis", "RedisError", "Transaction", "WatchError"]
