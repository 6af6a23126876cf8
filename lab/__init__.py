"""Scripts that make this repository's own tables, figures and site."""
