"""The commands of the library: ``python -m pulsar_client COMMAND …``.

Each command is a module with ``main(arguments)`` that returns the exit code; it is imported when
it is asked for.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

#: Name, module, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "status": ("pulsar_client.app.status_command", "show how servers of this machine are"),
    "load": ("pulsar_client.load.cli", "put load on a server and report what it does to it"),
}

_USAGE = 2


def usage() -> str:
    """List the commands."""
    lines = "\n".join(f"  {name:<8} {about}" for name, (_, about) in COMMANDS.items())
    return f"usage: python -m pulsar_client COMMAND ...\n\ncommands:\n{lines}\n"


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit code, 2 if there is no such command."""
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if name not in COMMANDS:
        what = f"there is no command {name!r}" if name else "a command is missing"
        sys.stderr.write(f"{usage()}\nerror: {what}\n")
        return _USAGE
    code: int = import_module(COMMANDS[name][0]).main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
