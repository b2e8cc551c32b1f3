"""The table that people read."""

from benchmarks.pairing import Result

__all__ = ["LINE", "line", "notes"]

_FORM = "{:<4}{:<8}{:<38}{:<28}{:>8} {:<15}{:<8}{:<18}{:>18}{:>16}"
LINE = _FORM.format(
    "goal",
    "loop",
    "work",
    "ratio to",
    "ratio",
    "(min to max)",
    "wanted",
    "",
    "CPU us ours/other",
    "client's own",
)


def line(result: Result) -> str:
    """One line of the table."""
    client = ""
    if result.ours_client_us is not None and result.other_client_us is not None:
        client = f"{result.ours_client_us:.1f}/{result.other_client_us:.1f}"
    return _FORM.format(
        result.goal,
        result.loop,
        result.name,
        result.other,
        f"{result.ratio:.3f}",
        f"({result.ratio_min:.2f} to {result.ratio_max:.2f})",
        result.wanted or "-",
        _verdict(result),
        f"{result.ours_us:.2f}/{result.other_us:.2f}",
        client,
    ).rstrip()


def notes(results: list[Result]) -> list[str]:
    """What has to be said beside the figures, each once."""
    return list(dict.fromkeys(note for result in results for note in result.notes))


def _verdict(result: Result) -> str:
    if result.met is None or result.wanted is None:
        return ""
    if result.met:
        return "met"
    limit = float(result.wanted.split()[1].rstrip(","))
    if "+" in result.wanted:
        return f"MISSED, +{result.ours_us - result.other_us:.0f}"
    return f"MISSED by {abs(result.ratio / limit - 1):.1%}"
