"""What makes this repository's own tables and figures."""
