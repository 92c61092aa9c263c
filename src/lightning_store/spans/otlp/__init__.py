"""OTLP at the edges of the store: export requests become span documents, and spans become export requests."""
