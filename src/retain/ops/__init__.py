"""Fast operations on tensors, each beside its slow twin."""
