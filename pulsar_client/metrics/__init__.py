"""The numbers of pools for monitoring systems, each through its own client library.

Nothing is imported here: ``pulsar_client.metrics.opentelemetry`` needs the extra
``opentelemetry``, ``pulsar_client.metrics.prometheus`` the extra ``prometheus``.
"""
