"""The commands that are about one run; cli.py says which command is where."""
