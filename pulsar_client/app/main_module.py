"""How a worker's interpreter finds what the main program of the arbiter defines.

Workers are fresh interpreters: they import the code as it is now, which makes a reload of code
possible.  A class that a script defines belongs to the module ``__main__``, which here is another
one; so the script is run once more, under another name, as multiprocessing does.
"""

import os
import pickle
import sys
import types
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pulsar_client.exceptions import ConfigError

__all__ = ["MainModule", "StartReached", "is_running_again", "pickled"]

#: What ``__name__`` is in a main program that is run again.
ALIAS = "__mp_main__"

# The main program that is run again at the moment, if any.
_running_again: list["MainModule"] = []


def is_running_again() -> bool:
    """Tell whether this is a worker that looks for what its main program defines."""
    return bool(_running_again)


class StartReached(BaseException):
    """A main program that is run again has come to the point where it would serve."""


@dataclass(frozen=True)
class MainModule:
    """Where the main program's code is: the name of a module, or a file, or text."""

    module: str | None = None
    path: str | None = None
    text: str | None = None

    @classmethod
    def present(cls) -> "MainModule | None":
        """Describe the main program of this process; None if it can't be run again."""
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None and spec.name != "__main__":
            return cls(module=spec.name)
        path = getattr(main, "__file__", None)
        if path is not None and os.path.isfile(path):
            return cls(path=os.path.abspath(path))
        command = sys.orig_argv
        if "-c" in command[:-1] and sys.argv[:1] == ["-c"]:
            return cls(text=command[command.index("-c") + 1])
        return None

    def run(self) -> None:
        """Run it as `ALIAS`, up to where it would serve, and let it stand for ``__main__``.

        Raises:
            Exception: whatever it raises.
            ImportError: it is gone.
        """
        code, details = self._code()
        module = types.ModuleType(ALIAS)
        module.__dict__.update(details)
        sys.modules["__main__"] = sys.modules[ALIAS] = module
        _running_again.append(self)
        try:
            exec(code, module.__dict__)
        except StartReached:
            # There is no `if __name__ == "__main__"` in it: what follows is not for workers.
            pass
        finally:
            _running_again.clear()

    def _code(self) -> tuple[types.CodeType, dict[str, Any]]:
        if self.module is not None:
            spec = find_spec(self.module)
            if spec is None or spec.loader is None:
                raise ImportError(f"there is no module {self.module} any more")
            code = spec.loader.get_code(self.module)  # type: ignore[attr-defined]
            return code, {
                "__spec__": spec,
                "__file__": spec.origin,
                "__loader__": spec.loader,
                "__package__": spec.parent,
            }
        if self.path is not None:
            with open(self.path, "rb") as file:
                source = file.read()
            return compile(source, self.path, "exec"), {"__file__": self.path}
        assert self.text is not None
        return compile(self.text, "<string>", "exec"), {}


def pickled(application: Any) -> tuple[bytes, MainModule | None]:
    """Write down the application for a fresh interpreter.

    Raises:
        ConfigError: it can't be.
    """
    advice = "define it at the top level of a module, or use --concurrency thread"
    try:
        pickled = pickle.dumps(application)
    except Exception as error:
        raise ConfigError(
            f"workers are fresh interpreters, and {application.callable!r} can't be found by one "
            f"({type(error).__name__}: {error}): {advice}"
        ) from error
    if b"__main__" not in pickled and b"__mp_main__" not in pickled:
        return pickled, None
    main = MainModule.present()
    if main is None:
        raise ConfigError(
            f"{application.callable!r} is defined in a program that can't be run again: {advice}"
        )
    return pickled, main
