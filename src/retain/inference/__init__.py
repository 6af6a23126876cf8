"""What a trained RNN does: reading, scoring, sampling."""
