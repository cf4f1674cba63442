"""Where `voicewire` begins. `set` is bound to keys and must be quick, so nothing that it does not need is imported for it."""

import sys


def main() -> int:
    try:
        if sys.argv[1:2] == ["set"]:
            from .live import set_command

            return set_command.main(sys.argv[2:])
        from . import cli

        return cli.main()
    except KeyboardInterrupt:  # while it was still importing
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
