"""What is measured, a module for each kind: what the client process does, and what the harness asks of it.

In each module the tasks of the client process come first (they take a ``Session``), then the cells (``Bench``).
"""
