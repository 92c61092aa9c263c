"""The page of the person who runs a training: what moves, what failed, what the agent did, whether it learns."""
