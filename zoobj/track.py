"""The weights of a run at any of its steps: moves made and taken back, checkpoints, resume.

A move can be taken back, but neither weight decay nor what a gradient did. Runs with those keep
the weights of two steps on disk, ``snapshot-N``: where they began, and the best on validation. To
go back is to load the last ones before and to go on from there, steps by gradients done once more.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoobj import checkpoint
from zoobj.config import ZOConfig
from zoobj.environment import checksum
from zoobj.errors import UserError
from zoobj.files import remove_folder
from zoobj.interrupts import deferred
from zoobj.log import Line
from zoobj.objective import Batch
from zoobj.overlay import Overlay
from zoobj.replay import move_of, verify, walk_after
from zoobj.run import RunFolder
from zoobj.scoring import Scorer
from zoobj.scoring.batching import left_pad
from zoobj.task import Example
from zoobj.walk import Offset, Walk

if TYPE_CHECKING:
    from zoobj.gradient import GradientStep

logger = logging.getLogger(__name__)

_SNAPSHOT = "snapshot"
_CALIBRATION = 32  # prompts that the units of an overlay are measured on


class Track:
    """Stands at one step of a run, and can go to any other, exactly.

    Args:
        tuned, tokenizer: a model, whose weights are changed in place, or an overlay on one.
        base: the model.

    Attributes:
        base_checksum: of the weights before anything moved them.
        walk: over the model, once the run has begun.
        at: the step where the weights stand: so many logged steps they have made. None: halfway in
            one, from where there is no way but to load others.
        gradient: what makes the steps, or a part of them, that are no moves.
        lossy: whether there are steps that can't be taken back.
    """

    walk: Walk
    at: int | None

    def __init__(self, tuned: Any, tokenizer: Any, base: Any):
        self.tuned, self.tokenizer = tuned, tokenizer
        self.base_checksum = checksum(base.named_parameters())
        self.at = 0
        self.gradient: GradientStep | None = None
        self.lossy = False

    def begin(self, steps: Sequence[Line], args: ZOConfig) -> None:
        """Put the base where a run begins: at itself, or after the steps of its parent."""
        self.walk = walk_after(self.tuned, steps, args)
        self.lossy = self.gradient is not None or args.weight_decay > 0
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
    def advance(self, line: Line) -> Iterator[None]:
        """Make the move of a line; it is taken back where the block, which logs it, fails."""
        move, decay = move_of(line)
        self.walk.commit(move, decay)
        try:
            yield
        except BaseException:
            if self.lossy:
                self.at = None
            else:
                self.walk.commit([(seed, -coefficient) for seed, coefficient in move])
            raise
        self.at = line["step"] + 1

    def to(self, step: int, run: RunFolder) -> None:
        """Make or take back logged steps, so that the weights are those before this step."""
        if self.at is None or (self.lossy and step < self.at):
            self._load_before(step, run)
        assert self.at is not None
        for number in range(self.at, step):
            self._repeat(run.steps[number])
        while self.at > step:
            move, _ = move_of(run.steps[self.at - 1])
            with deferred():  # an interrupt finds the weights at a step, and knows which
                self.walk.commit([(seed, -coefficient) for seed, coefficient in move])
                self.at -= 1
        self.walk.goto({})

    def _repeat(self, line: Line) -> None:
        """Make a logged step."""
        told = line.get("gradient")
        if told is not None:
            assert self.gradient is not None
            self.walk.goto({})
            self.gradient.repeat(line["step"], told)
        with deferred():
            self.walk.commit(*move_of(line))
            self.at = line["step"] + 1

    def _load_before(self, step: int, run: RunFolder) -> None:
        """Load the last weights on disk that are of this step or an earlier one."""
        saved = (*checkpoint.checkpoints(run.path), *checkpoint.checkpoints(run.path, _SNAPSHOT))
        for there, folder in sorted(saved, reverse=True):
            if there <= step:
                with deferred():
                    if self._load(folder, run.log.hash_at(there)):
                        self.at = there
                        return
        raise UserError(
            f"the weights at step {step} are lost: {run.path} has no sound snapshot of it or of an "
            "earlier one; --resume_from_checkpoint in a new process works them out again"
        )

    def keep(self, run: RunFolder, state: Any, best: int | None) -> None:
        """Keep the weights on disk that a run with lossy steps may have to go back to.

        Args:
            run, state: as for ``save``.
            best: the step that did best on validation so far.
        """
        wanted = {run.start, best}
        if not self.lossy or self.at not in wanted:
            return
        folder = run.path / f"{_SNAPSHOT}-{self.at}"
        if not folder.is_dir():
            self._save(folder, run, state)
        for step, old in checkpoint.checkpoints(run.path, _SNAPSHOT):
            if step not in wanted:
                remove_folder(old)

    def resume(self, run: RunFolder, asked: bool | str) -> None:
        """Go to the end of the log: from the last sound checkpoint, or by all its moves.

        Args:
            run: what an earlier session left.
            asked: ``resume_from_checkpoint``; the path of a checkpoint chooses that one.

        Raises:
            UserError: the weights are not those that were logged.
        """
        name = Path(asked).name if isinstance(asked, str) else ""
        assert self.at is not None
        saved = (*checkpoint.checkpoints(run.path), *checkpoint.checkpoints(run.path, _SNAPSHOT))
        for step, folder in sorted(saved, reverse=True):
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
        first = None if self.gradient is None else self.gradient.method
        return checkpoint.load(folder, self.tuned, self.walk, log_hash, first)

    def _save(self, folder: Path, run: RunFolder, state: Any) -> None:
        memory = None if self.gradient is None else self.gradient.method.state_dict()
        log_hash = run.log.hash_at(self.at or 0)
        checkpoint.save(folder, self.tuned, self.tokenizer, self.walk, log_hash, state, memory)

    def save(self, run: RunFolder, state: Any, keep: int | None, best: int | None) -> None:
        """Write a checkpoint of the weights as they are.

        Args:
            run: its folder.
            state: transformers' TrainerState.
            keep: how many checkpoints stay, None for all.
            best: a step whose checkpoint stays among them.
        """
        self._save(run.path / f"checkpoint-{self.at}", run, state)
        if keep is not None:
            checkpoint.thin_out(run.path, keep, best)
