"""The engine: every rule of the contract, once. Load what an operation needs, decide, store what it changed."""
