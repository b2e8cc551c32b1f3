"""The connection pool."""

from pulsar_client.pool.pool import Pool
from pulsar_client.pool.pool_connection import PoolConnection
from pulsar_client.pool.stats import PoolStats

__all__ = ["Pool", "PoolConnection", "PoolStats"]
