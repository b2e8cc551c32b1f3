"""Examples of clients and servers written with pulsar_client."""
