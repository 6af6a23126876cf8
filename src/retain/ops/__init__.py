"""Fast operations on tensors, each with a naive twin."""
