"""What goes wrong in ways a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one clear line that names the thing, the value and the remedy.

    The command line prints it on stderr and exits with code 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def closest(name: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for an option that is close to the name, else nothing."""
    close = get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """The closest option, else all of them.

    >>> did_you_mean("token_f2", ["accuracy", "token_f1"])
    "; did you mean 'token_f1'?"
    >>> did_you_mean("zzz", ["accuracy", "token_f1"])
    '; choose from: accuracy, token_f1'
    """
    options = sorted(options)
    others = f"; choose from: {', '.join(options)}" if options else ""
    return closest(name, options) or others
