"""Random kills and reloads for a while: the arbiter does not grow.

A few seconds by default, ten minutes with PULSAR_CLIENT_LONG=1.
"""

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from app_kit import App, children, is_zombie, until

from pulsar_client.app.status import resident_bytes

LONG = os.environ.get("PULSAR_CLIENT_LONG") == "1"
SECONDS = 600 if LONG else 6


def counts(pid: int) -> tuple[int, int]:
    """Descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes in /proc")
@pytest.mark.time_limit(SECONDS + 120)
def test_kills_and_reloads_leave_nothing_behind() -> None:
    """Descriptors, threads, zombies and memory of the arbiter stay what they were."""
    rng = random.Random(12)
    pause = threading.Event()
    with App("-w", "2").ready() as app:
        reloads = 0

        def settle() -> None:
            until(lambda: len(app.workers()) == 2, what="two workers")
            app.ask("echo on")
            until(lambda: len(children(app.pid)) == 2, what="no child but two workers")

        def disturb() -> None:
            nonlocal reloads
            if rng.random() < 0.5:
                victims = sorted(app.workers())
                if victims:
                    # One that was to go may be gone by now.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(victims), signal.SIGKILL)
            else:
                reloads += 1
                app.kill(signal.SIGHUP)
                app.wait_line("reloaded|reload failed", count=reloads)
            pause.wait(0.5 if LONG else 0.05)

        for _ in range(4):
            disturb()
        settle()
        before, memory = counts(app.pid), resident_bytes(app.pid) or 0
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            disturb()
        settle()

        def not_more() -> bool:
            return all(now <= then for now, then in zip(counts(app.pid), before, strict=True))

        until(not_more, what=f"at most {before} descriptors and threads")
        assert (resident_bytes(app.pid) or 0) < memory + 4 * 2**20
        assert not [pid for pid in children(app.pid) if is_zombie(pid)]
        assert app.stop()[0] == 0
