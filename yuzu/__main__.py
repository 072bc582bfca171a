"""``python -m yuzu``: the command line."""

from yuzu.command_line import main

if __name__ == "__main__":
    raise SystemExit(main())
