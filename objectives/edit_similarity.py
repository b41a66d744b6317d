"""How alike two texts are, letter by letter, by rapidfuzz."""

from zoobj.objective import Batch, Score
from zoobj.objectives.extras import NeedsExtra
from zoobj.objectives.references import best_over_references


class EditSimilarity(NeedsExtra):
    """1 minus the Levenshtein distance over the length of the longer text: 1 is the same text.

    Best over the accepted answers. Characters are code points, case counts, and two empty texts
    are the same.

    Raises:
        UserError: rapidfuzz is not installed.

    >>> batch = Batch(prompts=["?"], references=[["mill", "tower"]], completions=["mile"])
    >>> EditSimilarity().score(batch)
    [0.75]
    """

    name = "edit_similarity"
    package, extra = "rapidfuzz", "text"

    def score(self, batch: Batch) -> list[Score]:
        from rapidfuzz.distance.Levenshtein import normalized_similarity

        return list(best_over_references(batch, normalized_similarity))
