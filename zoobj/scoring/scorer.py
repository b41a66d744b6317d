"""Scorer: runs the model over examples and fills the columns of a Batch that are needed."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from zoobj.environment import out_of_memory
from zoobj.errors import UserError
from zoobj.models import context_length
from zoobj.objective import Batch
from zoobj.overlay import Member, overlay_of
from zoobj.scoring.choices import loglikelihood
from zoobj.scoring.generation import Sampling, generate
from zoobj.scoring.population import Population
from zoobj.task import Example, Task

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CACHED_TEXTS = 50_000


@dataclass
class Scorer:
    """Scores examples of one task with one model.

    The result for an example doesn't depend, beyond floating-point tolerance, on which others it
    is batched with: prompts are padded on the left under an attention mask, and sampling draws
    from noise keyed by (seed, example, position).

    Args:
        model: a causal language model, prepared by ``models.prepare``.
        tokenizer: its tokenizer.
        task: says what is asked for and where completions stop.
        batch_size: most sequences in one forward pass; halved where memory runs out.
        max_prompt_length: tokens of a prompt that are kept, its last ones; by default what the
            model's context leaves beside the answer.
        sampling: None is greedy decoding.
        between: called between forward passes, for progress and interrupts.

    Attributes:
        typical_length: of a prompt in tokens, where it is known: batches of longer ones have fewer
            rows; see ``batching.buckets``.
    """

    model: Any
    tokenizer: Any
    task: Task
    batch_size: int = 32
    max_prompt_length: int | None = None
    sampling: Sampling | None = None
    between: Callable[[int], None] = lambda examples: None

    def __post_init__(self) -> None:
        self._cache: OrderedDict[str, list[int]] = OrderedDict()
        self.typical_length: float | None = None
        self.overlay = overlay_of(self.model)
        context = self._context()
        room = None if context is None else context - self.task.max_new_tokens
        if room is not None and room < 1:
            raise UserError(
                f"max_new_tokens {self.task.max_new_tokens} leaves no room for a prompt in the "
                f"model's context of {context} tokens: lower it"
            )
        limits = [limit for limit in (room, self.max_prompt_length) if limit is not None]
        self.prompt_limit = min(limits) if limits else None

    def population(
        self,
        members: Sequence[Member],
        examples: Sequence[Example],
        needs: Collection[str],
        seed: int = 0,
    ) -> list[Batch]:
        """Score examples under each of several members of the overlay, all in the same batches.

        Args:
            members: snapshots of the overlay.
            examples, needs, seed: as below, for every member; sampling noise is the same for all.

        Returns:
            A batch for each member.
        """
        copies = [example for example in examples for _ in members]  # those of one are neighbours
        whole = self(copies, needs, seed, members)
        n, m = len(copies), len(members)
        return [whole.select(range(number, n, m)) for number in range(m)]

    def __call__(
        self,
        examples: Sequence[Example],
        needs: Collection[str],
        seed: int = 0,
        members: Sequence[Member] = (),
    ) -> Batch:
        """Score examples.

        Args:
            examples: any number of them; batched here.
            needs: columns of ``Batch`` to fill, as an objective declares them.
            seed: for sampled decoding; the same seed draws the same noise.
            members: of the overlay; examples are scored under each in turn.

        Raises:
            UserError: the task doesn't produce a needed column.
        """
        filled: dict[str, Any] = {}
        choices = self.task.output == "choices"
        check_needs(self.task, needs)
        texts = {"completions", "completion_ids"} & set(needs)
        if choices and (texts or {"label_scores", "predictions"} & set(needs)):
            filled["label_scores"] = self._label_scores(examples, members)
            filled["predictions"] = [_argmax(scores) for scores in filled["label_scores"]]
            chosen = zip(examples, filled["predictions"], strict=True)
            filled["completions"] = [(e.choices or [])[label] for e, label in chosen]
        elif texts:
            filled["completions"] = self._completions(examples, seed, members)
        if "completion_ids" in needs:
            encode = partial(self.tokenizer, add_special_tokens=False)  # of a list: not of no texts
            filled["completion_ids"] = [encode(text)["input_ids"] for text in filled["completions"]]
        if "reference_logprob" in needs:
            filled["reference_logprob"] = self._reference_logprob(examples, filled, members)
        return as_batch(examples, **filled)

    def truncated(self, examples: Sequence[Example]) -> int:
        """How many prompts are longer than the limit; only their last tokens are read."""
        if self.prompt_limit is None:
            return 0
        return sum(len(self._tokens(e.prompt)) > self.prompt_limit for e in examples)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, its last ``prompt_limit`` at most; never none at all."""
        ids = self._tokens(prompt)
        if not ids:
            raise UserError(f"prompt {prompt!r} has no tokens: mend task {self.task.name}")
        return self._prefix + (ids if self.prompt_limit is None else ids[-self.prompt_limit :])

    def _tokens(self, prompt: str) -> list[int]:
        if prompt not in self._cache:
            self._cache[prompt] = self.tokenizer(prompt)["input_ids"]
            if len(self._cache) > _CACHED_TEXTS:
                self._cache.popitem(last=False)
        return self._cache[prompt]

    def _answer(self, prompt: str, answer: str) -> list[int]:
        """Token ids that ``" " + answer`` adds after the prompt.

        The two are encoded together, as the model would see them, since some tokenizers merge
        across the border or mark the start of a text.
        """
        whole = self.tokenizer(f"{prompt} {answer}")["input_ids"]
        prefix = self._tokens(prompt)
        if whole[: len(prefix)] == prefix and len(whole) > len(prefix):
            return whole[len(prefix) :]
        return self.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]

    def _before(self, prompt: str, answer: Sequence[int]) -> list[int]:
        """The prompt's tokens, as many as the context leaves beside this answer."""
        ids, context = self.encode(prompt), self._context()
        if context is None:
            return ids
        if len(answer) >= context:
            raise UserError(
                f"task {self.task.name}: an answer of {len(answer)} tokens leaves no room for a "
                f"prompt in the model's context of {context} tokens: drop the row"
            )
        return self._prefix + ids[len(self._prefix) :][-(context - len(answer)) :]

    @property
    def _prefix(self) -> list[int]:
        """Tokens of the overlay that stand before every prompt."""
        return self.overlay.placeholders if self.overlay else []

    def _context(self) -> int | None:
        """Most tokens of prompt and answer together."""
        context = context_length(self.model)
        return None if context is None else context - len(self._prefix)

    def _among(self, members: Sequence[Member], places: Iterable[int]) -> Population | None:
        """Who is scored where: the copies of an example are under the members in turn.

        Args:
            members: of the overlay, if several are scored.
            places: of what is run, the number of its example.
        """
        if not members or self.overlay is None:
            return None
        return Population(self.overlay, members, [place % len(members) for place in places])

    def _completions(
        self, examples: Sequence[Example], seed: int, members: Sequence[Member]
    ) -> list[str]:
        run = partial(
            generate,
            self.model,
            self.tokenizer,
            [self.encode(e.prompt) for e in examples],
            max_new_tokens=self.task.max_new_tokens,
            stop=self.task.stop,
            sampling=self.sampling,
            keys=[e.index for e in examples],
            seed=seed,
            population=self._among(members, range(len(examples))),
            typical=self.typical_length,
            between=self.between,
        )
        return self.fitting(lambda: run(batch_size=self.batch_size))

    def _label_scores(
        self, examples: Sequence[Example], members: Sequence[Member]
    ) -> list[list[float]]:
        asked = [(e.prompt, choice) for e in examples for choice in e.choices or []]
        places = [i for i, e in enumerate(examples) for _ in e.choices or []]
        logprobs = self._loglikelihood(asked, self._among(members, places))
        if self.task.length_normalized:
            lengths = [len(self._answer(prompt, choice)) for prompt, choice in asked]
            logprobs = [x / n for x, n in zip(logprobs, lengths, strict=True)]
        ahead = iter(logprobs)
        return [[next(ahead) for _ in e.choices or []] for e in examples]

    def _reference_logprob(
        self, examples: Sequence[Example], filled: dict[str, Any], members: Sequence[Member]
    ) -> list[float]:
        if "label_scores" in filled and not self.task.length_normalized:
            pairs = zip(filled["label_scores"], examples, strict=True)
            return [scores[e.reference] for scores, e in pairs]
        return self._loglikelihood(gold(examples), self._among(members, range(len(examples))))

    def tokens(self, asked: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of prompts and answers, as their likelihood is measured."""
        answers = [self._answer(prompt, answer) for prompt, answer in asked]
        pairs = zip(asked, answers, strict=True)
        return [self._before(prompt, answer) for (prompt, _), answer in pairs], answers

    def _loglikelihood(
        self, asked: Sequence[tuple[str, str]], population: Population | None
    ) -> list[float]:
        run = partial(
            loglikelihood,
            self.model,
            *self.tokens(asked),
            pad=self.tokenizer.pad_token_id,
            population=population,
            typical=self.typical_length,
            between=self.between,
        )
        return self.fitting(lambda: run(batch_size=self.batch_size))

    def fitting(self, run: Callable[[], T]) -> T:
        """Run with ``batch_size`` sequences at once; again with half of them where memory runs out.

        The longest are run first, so that little is done twice; what fitted is kept for later.
        """
        while True:
            try:
                return run()
            except (RuntimeError, MemoryError) as error:
                if self.batch_size == 1 or not out_of_memory(error):
                    raise
            # Not in the handler: the error holds on to the tensors of the pass that failed.
            self.batch_size //= 2
            torch.cuda.empty_cache()
            logger.warning(
                "out of memory: from here on %d sequences in a forward pass", self.batch_size
            )


def as_batch(examples: Sequence[Example], **filled: Any) -> Batch:
    """The examples as columns, beside those that scoring filled."""
    columns = examples[0].row if examples else {}
    return Batch(
        prompts=[e.prompt for e in examples],
        references=[e.reference for e in examples],
        rows={name: [e.row.get(name) for e in examples] for name in columns},
        **filled,
    )


def gold(examples: Sequence[Example]) -> list[tuple[str, str]]:
    """Prompts, each with its gold answer: of choices the right one, of several the first."""
    texts = [e.choices[e.reference] if e.choices else e.reference[0] for e in examples]
    return [(e.prompt, text) for e, text in zip(examples, texts, strict=True)]


def check_needs(task: Task, needs: Collection[str]) -> None:
    """Raise a UserError where the task doesn't produce what an objective needs."""
    unmet = {"label_scores", "predictions"} & set(needs)
    if unmet and task.output != "choices":
        raise UserError(
            f"the objective needs {', '.join(sorted(unmet))} of choices, but task {task.name} "
            "generates text: choose an objective on completions, such as exact_match"
        )


def _argmax(scores: Sequence[float]) -> int:
    """The first of the largest: a tie never depends on the order of evaluation."""
    return max(range(len(scores)), key=lambda i: scores[i])
