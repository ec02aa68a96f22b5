"""Files that a run leaves, and why one has no result, from what it printed."""

LOG_FILE = "output.log"
#: Is there only if the run succeeded.
RESULT_FILE = "result.json"
TRACEBACK = "Traceback (most recent call last):"
#: Python's note on what happens while it ends, which is never why it ends.
IGNORED = "Exception ignored in"


def explain_failure(return_code: int, log: str) -> str:
    """Say why a run ended without a result: by its exit status, negative for a signal, and what it printed."""
    if return_code < 0:
        return f"ended by signal {-return_code}"
    lines = log.strip().splitlines() or ["nothing printed"]
    return f"exit status {return_code}: {last_exception(log) or lines[-1].strip()}"


def last_exception(log: str) -> str | None:
    """Find the first line of the last exception of a Python program, behind which warnings and more may stand."""
    lines = log.splitlines()
    starts = [
        index
        for index, line in enumerate(lines)
        if line == TRACEBACK and not (index > 0 and lines[index - 1].startswith(IGNORED))
    ]
    behind = lines[starts[-1] + 1 :] if starts else []
    return next((line for line in behind if line and not line.startswith(" ")), None)
