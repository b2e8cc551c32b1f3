"""The reference of the settings as a page of the documentation.

``python -m pulsar_client.app.settings_reference`` prints it.
"""

import sys

from pulsar_client.app.settings import GROUPS, registry

__all__ = ["reference"]

_HEAD = """\
# Settings

This page is made from the settings themselves by `python -m pulsar_client.app.settings_reference`.

A setting has one name in code and in config files (`keep_alive`), a flag (`--keep-alive`) and an
environment variable (`PULSAR_KEEP_ALIVE`). What comes later wins: defaults, parameters in code,
config file, environment, command line. The word `none` takes back an optional value. Several
values are separated by commas, or are a list in a config file. `--check-config` prints every
setting with its value and where it came from.

A reload (the signal HUP) reads all sources again. A setting marked *restart* keeps its value until
the server is started anew. One marked *connections* has no meaning for `UdpSocketServer`, which
refuses it.
"""


def reference() -> str:
    """Give the page, in Markdown."""
    parts = [_HEAD]
    for group in GROUPS:
        parts.append(f"\n## {group[0].upper()}{group[1:]}\n")
        for setting in registry():
            if setting.group != group:
                continue
            flags = (
                f"`{setting.short}`, `{setting.flag}`" if setting.short else f"`{setting.flag}`"
            )
            default = setting.default_text or f"`{setting.kind.show(setting.default)}`"
            marks = [
                mark
                for mark, holds in (
                    ("*restart*", not setting.live),
                    ("*connections*", not setting.datagram),
                )
                if holds
            ]
            parts.append(
                f"\n### {setting.name}\n\n{setting.help}\n\n"
                f"- flag: {flags} {setting.kind.metavar}, environment: `{setting.variable}`\n"
                f"- values: {setting.kind.expected}\n"
                f"- default: {default}\n"
            )
            if marks:
                parts.append(f"- {', '.join(marks)}\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(reference())
