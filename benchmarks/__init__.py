"""The measuring instrument: what the store costs over the wire and in process, beside the store that users have today.

``python -m benchmarks SUITE`` runs a suite; ``docs/performance.md`` tells the method and how to read its results. One
set of workloads, written against ``LightningStore``, drives every side: our client and server, Agent Lightning's HTTP
client and server, and both stores in process.
"""
