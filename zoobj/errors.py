"""What goes wrong in ways a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one clear line that names the thing, the value and the remedy.

    The command line prints it on stderr and exits with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest option, else the list of options.

    >>> did_you_mean("token_f2", ["accuracy", "token_f1"])
    "; did you mean 'token_f1'?"
    >>> did_you_mean("zzz", ["accuracy", "token_f1"])
    '; choose from: accuracy, token_f1'
    """
    options = sorted(options)
    close = get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose from: {', '.join(options)}" if options else ""
