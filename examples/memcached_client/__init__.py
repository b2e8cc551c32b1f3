"""A memcached client: the text protocol, on the decoders of the library."""

from examples.memcached_client.client import Memcached
from examples.memcached_client.protocol import MemcachedError

__all__ = ["Memcached", "MemcachedError"]
