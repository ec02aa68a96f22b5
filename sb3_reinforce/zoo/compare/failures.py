"""Why a run has no result, from what it printed."""

LOG_FILE = "output.log"
TRACEBACK = "Traceback (most recent call last):"
#: Python's note on what happens while it ends, which is never why it ends.
IGNORED = "Exception ignored in"


def explain_failure(return_code: int, log: str) -> str:
    """
    Say why a run ended without a result.

    :param return_code: Exit status of its process, negative if a signal ended it.
    :param log: What it printed.
    :return: A line.
    """
    if return_code < 0:
        return f"ended by signal {-return_code}"
    return f"exit status {return_code}: {last_exception(log) or last_line(log)}"


def last_exception(log: str) -> str | None:
    """
    Find the exception that ended a Python program. Warnings, and what libraries say at the end, may stand behind it.

    :param log: What the program printed.
    :return: The first line of the last exception, None if there is none.
    """
    lines = log.splitlines()
    starts = [
        index
        for index, line in enumerate(lines)
        if line == TRACEBACK and not (index > 0 and lines[index - 1].startswith(IGNORED))
    ]
    if not starts:
        return None
    return next((line for line in lines[starts[-1] + 1 :] if line and not line.startswith(" ")), None)


def last_line(log: str) -> str:
    """
    Find the end of what a program printed.

    :param log: What it printed.
    :return: The last line that is not empty.
    """
    lines = log.strip().splitlines()
    return lines[-1].strip() if lines else "nothing printed"
