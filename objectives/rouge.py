"""ROUGE of generated texts, by Google's rouge-score."""

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Score
from zoobj.objectives.extras import NeedsExtra
from zoobj.objectives.references import answers

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(NeedsExtra):
    """F-measure of the words, word pairs or longest common subsequence shared with an answer.

    ROUGE (C.-Y. Lin 2004), best over the accepted answers, from 0 to 1. Words are runs of ASCII
    letters and digits in lower case: a text in another script has none and scores 0, whatever it
    says; take ``chrf`` or ``edit_similarity`` there.

    Args:
        kind: "rougeL" (longest common subsequence), "rouge1", "rouge2" (words, pairs of words), or
            "rougeLsum" (rougeL of summaries with a sentence a line).
        stemmer: words are compared without their endings (Porter's stemmer, English).

    Raises:
        UserError: another kind, or rouge-score is not installed.

    >>> batch = Batch(prompts=["?"], references=[["the old mill"]], completions=["an old mill"])
    >>> round(Rouge().score(batch)[0], 4), Rouge(kind="rouge2").score(batch)[0]
    (0.6667, 0.5)
    """

    name = "rouge"
    package, extra = "rouge_score", "text"

    def __init__(self, kind: str = "rougeL", stemmer: bool = False):
        super().__init__()
        if kind not in KINDS:
            raise UserError(f"rouge: unknown kind {kind!r}{did_you_mean(str(kind), KINDS)}")
        self.kind, self.stemmer = kind, stemmer

    def score(self, batch: Batch) -> list[Score]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.kind], use_stemmer=self.stemmer)
        return [
            float(scorer.score_multi(references, completion)[self.kind].fmeasure)
            for completion, references in answers(batch)
        ]
