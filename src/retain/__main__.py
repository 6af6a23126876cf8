"""Where the `retain` command starts. It imports nothing before Ctrl-C is one line."""


def main() -> None:
    """Run the command line."""
    try:
        from retain.cli import main

        main()
    except KeyboardInterrupt:
        import os

        try:
            os.write(2, b"retain: interrupted\n")
        finally:
            os._exit(130)  # a second Ctrl-C would find nothing to stop


if __name__ == "__main__":
    main()
