"""A stub resolver: many queries over one UDP socket, and TCP for what does not fit."""

from examples.dns_client.resolver import Resolver, ResolverError

__all__ = ["Resolver", "ResolverError"]
