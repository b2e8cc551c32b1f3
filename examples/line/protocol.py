r"""The line protocol: what client and server have to agree on.

A line is UTF-8 and ends in ``\n``.  Each line of the client gets one line in reply::

    SET key value    OK
    GET key          VALUE value, or NONE
    QUIT             BYE, and the server closes

or ``ERROR text``.  A key has no white space in it; a value goes to the end of its line.
"""

NEWLINE = b"\n"
#: Bytes of a line, either way, without its end.
MAX_LINE = 1024
#: Bytes of a key; what remains of the longest line is for the value.
MAX_KEY = 64
MAX_VALUE = MAX_LINE - len(b"SET ") - MAX_KEY - len(b" ")


def key_fault(key: str) -> str | None:
    """What is wrong with a key, or None."""
    if not key or not key.isprintable() or " " in key:
        return "a key has at least one character, all printable, and no space"
    if len(key.encode()) > MAX_KEY:
        return f"a key has at most {MAX_KEY} bytes in UTF-8"
    return None


def value_fault(value: str) -> str | None:
    """What is wrong with a value, or None."""
    if not value.isprintable():
        return "a value has only printable characters, and no line break"
    if len(value.encode()) > MAX_VALUE:
        return f"a value has at most {MAX_VALUE} bytes in UTF-8"
    return None
