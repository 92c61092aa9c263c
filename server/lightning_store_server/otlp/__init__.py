"""Spans from any OpenTelemetry exporter, over gRPC on the server's port and over HTTP on a port of its own."""
