"""Where the engine keeps its data."""
