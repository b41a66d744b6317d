"""How SQuAD compares answers: case, punctuation, articles and white space don't count.

Rules of the official evaluations of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv 1606.05250, section
6.1) and 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822); the code is ours.
"""

import re
import string

from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, Score
from zoobj.objectives.references import answers

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces.

    >>> normalize("The  Old Mill, by the river.")
    'old mill by river'
    """
    text = ARTICLES.sub(" ", text.lower().translate(PUNCTUATION))
    return " ".join(text.split())


class SquadObjective(Objective):
    """Base of what SQuAD reports: the best ``compare`` over the accepted answers.

    Args:
        version: 1.1, or 2.0, where a question may have no answer: its accepted answers are none,
            or texts without a word, and only a completion without a word is right.
        no_answer: a text that says so too, such as "unanswerable", in completions and references.

    Raises:
        UserError: another version, or ``no_answer`` where every question has one.
    """

    def __init__(self, version: float | str = "1.1", no_answer: str = ""):
        if str(version) not in ("1.1", "2.0"):
            raise UserError(f"{self.name}:{version}: unknown version {version!r}; take 1.1 or 2.0")
        self.optional = str(version) == "2.0"
        if not isinstance(no_answer, str):
            raise UserError(f"{self.name}: no_answer {no_answer!r} is not a text: put it in quotes")
        if no_answer and not self.optional:
            raise UserError(f"{self.name}: no_answer is for questions without one: add version=2.0")
        self.no_answer = no_answer

    def score(self, batch: Batch) -> list[Score]:
        return [
            max(self.compare(self._said(completion), text) for text in self._accepted(references))
            for completion, references in answers(batch, may_be_none=self.optional)
        ]

    def compare(self, completion: str, reference: str) -> float:
        """How well a completion agrees with one accepted answer, from 0 to 1."""
        raise NotImplementedError

    def _said(self, text: str) -> str:
        """The text, empty where it says that there is no answer."""
        return "" if normalize(text) in ("", normalize(self.no_answer)) else text

    def _accepted(self, references: list[str]) -> list[str]:
        if not self.optional:
            return references
        return [text for text in references if self._said(text)] or [""]
