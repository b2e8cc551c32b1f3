"""A file with the id of the process that runs, for tools that ask for one."""

import contextlib
import os

__all__ = ["PidFile"]


class PidFile:
    """Written when it is made, removed when it is closed.

    Args:
        path: of the file.

    Raises:
        OSError: it can't be written, or names another process that runs.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        other = _process_in(self.path)
        if other is not None:
            raise OSError(f"pidfile {path!r} names process {other}, which runs")
        text = f"{os.getpid()}\n"
        temporary = f"{self.path}.{os.getpid()}"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text)
        # Whoever reads it finds the whole number or none.
        os.replace(temporary, self.path)

    def close(self) -> None:
        """Remove the file, if it is still this process's."""
        with contextlib.suppress(OSError, ValueError):
            with open(self.path, encoding="ascii") as file:
                own = int(file.read()) == os.getpid()
            if own:
                os.unlink(self.path)


def _process_in(path: str) -> int | None:
    """The other process that a file names, if it runs."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read(32))
    except (FileNotFoundError, ValueError):
        return None
    if pid <= 0 or pid == os.getpid():
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return pid  # it runs, as somebody else
    except OSError:
        return None
    return pid
