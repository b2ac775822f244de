"""The client actor, placement, and the pool that dispatches, retries and waits."""
