"""Spans outside of Python: the JSON document in which they are stored and sent, and OTLP."""
