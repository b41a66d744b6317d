"""The weights of a run at any of its steps: moves made and taken back, checkpoints, resume."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoobj import checkpoint
from zoobj.config import ZOConfig
from zoobj.environment import checksum
from zoobj.interrupts import deferred
from zoobj.log import Line
from zoobj.objective import Batch
from zoobj.overlay import Overlay
from zoobj.replay import verify, walk_after
from zoobj.run import RunFolder
from zoobj.scoring import Scorer
from zoobj.scoring.batching import left_pad
from zoobj.task import Example
from zoobj.walk import Move, Offset, Walk

logger = logging.getLogger(__name__)

_CALIBRATION = 32  # prompts that the units of an overlay are measured on


class Track:
    """Stands at one step of a run, and can go to any other: all moves are exact.

    Args:
        tuned, tokenizer: a model, whose weights are changed in place, or an overlay on one.
        base: the model.

    Attributes:
        base_checksum: of the weights before anything moved them.
        walk: over the model, once the run has begun.
        at: the step where the weights stand: so many logged moves they have made.
    """

    walk: Walk

    def __init__(self, tuned: Any, tokenizer: Any, base: Any):
        self.tuned, self.tokenizer = tuned, tokenizer
        self.base_checksum = checksum(base.named_parameters())
        self.at = 0

    def begin(self, steps: Sequence[Line], args: ZOConfig) -> None:
        """Put the base where a run begins: at itself, or after the steps of its parent."""
        self.walk = walk_after(self.tuned, steps, args)
        self.at = len(steps)

    def set_units(self, earlier: Line | None, scorer: Scorer, examples: Sequence[Example]) -> None:
        """Give an overlay its units: those of an earlier run, or measured on prompts."""
        if not isinstance(self.tuned, Overlay):
            return
        if earlier is not None:
            self.tuned.set_units(earlier["units"])
            return
        prompts = [scorer.encode(example.prompt) for example in examples[:_CALIBRATION]]
        device = self.tuned.model.device
        self.tuned.measure(*left_pad(prompts, self.tokenizer.pad_token_id, device))

    def scored(
        self,
        offsets: Sequence[Offset],
        scorer: Scorer,
        examples: Sequence[Example],
        needs: Collection[str],
        seed: int,
    ) -> Iterator[Batch]:
        """The examples as scored at each offset: in the weights one after another, or all at once.

        Args:
            offsets: from where the weights stand.
            scorer, examples, needs, seed: see ``Scorer``.
        """
        if not isinstance(self.tuned, Overlay):
            for offset in offsets:
                self.walk.goto(offset)
                yield scorer(examples, needs, seed)
        elif offsets:
            members = []
            for offset in offsets:
                self.walk.goto(offset)
                members.append(self.tuned.snapshot())
            self.walk.goto({})
            yield from scorer.population(members, examples, needs, seed)

    @contextmanager
    def advance(self, move: Move) -> Iterator[None]:
        """Make a move; it is taken back where the block, which logs it, fails."""
        self.walk.commit(move)
        try:
            yield
        except BaseException:
            self.walk.commit([(seed, -coefficient) for seed, coefficient in move])
            raise
        self.at += 1

    def to(self, step: int, run: RunFolder) -> None:
        """Make or take back logged moves, so that the weights are those before this step."""
        while self.at != step:
            sign = 1 if self.at < step else -1
            line = run.steps[self.at if sign > 0 else self.at - 1]
            with deferred():  # an interrupt finds the weights at a step, and knows which
                self.walk.commit([(seed, sign * coefficient) for seed, coefficient in line["move"]])
                self.at += sign
        self.walk.goto({})

    def resume(self, run: RunFolder, asked: bool | str) -> None:
        """Go to the end of the log: from the last sound checkpoint, or by all its moves.

        Args:
            run: what an earlier session left.
            asked: ``resume_from_checkpoint``; the path of a checkpoint chooses that one.

        Raises:
            UserError: the weights are not those that were logged.
        """
        name = Path(asked).name if isinstance(asked, str) else ""
        for step, folder in reversed(checkpoint.checkpoints(run.path)):
            wanted = folder.name == name or not name.startswith("checkpoint-")
            within = self.at < step <= len(run.steps)
            if wanted and within:
                with deferred():  # as many weights as were loaded, or none
                    if self._load(folder, run.log.hash_at(step)):
                        self.at = step
                        break
        known = [line for line in run.steps[self.at :] if line["checksum"]]
        if known:
            self.to(known[-1]["step"], run)
            verify(self.tuned, self.walk, known[-1])
        self.to(len(run.steps), run)

    def _load(self, folder: Path, log_hash: str) -> bool:
        return checkpoint.load(folder, self.tuned, self.walk, log_hash)

    def save(self, run: RunFolder, state: Any, keep: int | None, best: int | None) -> None:
        """Write a checkpoint of the weights as they are.

        Args:
            run: its folder.
            state: transformers' TrainerState.
            keep: how many checkpoints stay, None for all.
            best: a step whose checkpoint stays among them.
        """
        folder = run.path / f"checkpoint-{self.at}"
        checkpoint.save(folder, self.tuned, self.tokenizer, self.walk, run.log.hash, state)
        if keep is not None:
            checkpoint.thin_out(run.path, keep, best)
