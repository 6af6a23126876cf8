"""Uses of a trained RNN: reading, scoring, sampling."""
