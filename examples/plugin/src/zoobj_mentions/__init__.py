"""An objective in a package of its own: how much of an accepted answer a completion mentions."""

from zoobj import Batch, Objective, UserError


class Mentions(Objective):
    """Share of the words of an accepted answer that occur in the completion; best over answers.

    Args:
        least: letters that a word must have to count.

    >>> batch = Batch(prompts=["?"], references=[["the old mill"]], completions=["a mill"])
    >>> Mentions(least=3).score(batch)
    [0.3333333333333333]
    """

    name = "mentions"

    def __init__(self, least: int = 1):
        if least < 1:
            raise UserError(f"mentions: least={least}: a word has at least 1 letter")
        self.least = least

    def score(self, batch: Batch) -> list[float | None]:
        pairs = zip(batch.completions or [], batch.references, strict=True)
        return [self._best(completion, answers) for completion, answers in pairs]

    def _best(self, completion: str, answers: list[str]) -> float | None:
        said = set(completion.lower().split())
        wanted = [[w for w in a.lower().split() if len(w) >= self.least] for a in answers]
        shares = [sum(w in said for w in words) / len(words) for words in wanted if words]
        return max(shares, default=None)  # None: there is nothing to mention
