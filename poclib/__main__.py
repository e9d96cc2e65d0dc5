"""Where `poc` and `python -m poclib` begin: Ctrl-C is heeded while the libraries still load."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command and run it; an interruption before that is one sentence, too."""
    try:
        from . import cli
    except KeyboardInterrupt:
        print("poc: interrupted before anything was measured.", file=sys.stderr)
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
