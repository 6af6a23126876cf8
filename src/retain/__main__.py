"""Entry point of the `retain` command. It imports nothing before Ctrl-C is handled."""


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
            os._exit(130)  # exit at once, so that a second Ctrl-C cannot interrupt the exit


if __name__ == "__main__":
    main()
