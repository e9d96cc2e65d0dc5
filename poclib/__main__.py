"""Where `poc` and `python -m poclib` begin: Ctrl-C is heeded while the libraries still load."""

import sys


def main() -> None:
    try:
        from . import cli
    except KeyboardInterrupt:
        print("poc: interrupted before anything was measured.", file=sys.stderr)
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
