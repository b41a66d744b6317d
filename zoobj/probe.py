"""A step's measurement: one batch scored at every offset a method asks for, round after round."""

from collections.abc import Sequence
from dataclasses import dataclass

from zoobj.accounting import counted
from zoobj.config import ZOConfig
from zoobj.data import minibatch
from zoobj.errors import UserError
from zoobj.estimators.base import Estimator
from zoobj.files import jsonable
from zoobj.flips import TARGET, WITH_TIES, FlipControl
from zoobj.labels import labels
from zoobj.log import Line
from zoobj.noise import derive
from zoobj.objective import Objective
from zoobj.outcome import Outcome
from zoobj.parts import rewards
from zoobj.racing import BatchGrowth, decided, followed, looks
from zoobj.run import RunFolder
from zoobj.scoring import Scorer
from zoobj.service import Service
from zoobj.signal import Group, Pair, compare, loss, together
from zoobj.task import Example
from zoobj.ties import TieBreaker
from zoobj.track import Track
from zoobj.walk import Offset

_DECAY = 2**32  # no direction has such a number


@dataclass(frozen=True)
class Probed:
    """What a step came to.

    Attributes:
        line: for the log; the move is in it, and waits to be made.
        groups: of offsets that were compared.
        pairs: of the first of each group with each of the others.
        outcomes: of all offsets in turn.
    """

    line: Line
    groups: list[Group]
    pairs: list[Pair]
    outcomes: list[Outcome]


class Probe:
    """Scores what a method asks for, and asks it what that says.

    Args:
        args: the settings.
        objective, method: what is measured, and for whom.
        track, scorer: what brings the model to an offset, and what runs it.
        service: what scores the outputs.
        examples: of the train split.
        ties: asked where pairs tie, if at all.

    Raises:
        UserError: the method's batches are larger than the split.
    """

    def __init__(
        self,
        args: ZOConfig,
        objective: Objective,
        method: Estimator,
        track: Track,
        scorer: Scorer,
        service: Service,
        examples: list[Example],
        ties: TieBreaker | None = None,
    ):
        self.args, self.objective, self.method = args, objective, method
        self.track, self.scorer, self.service, self.examples = track, scorer, service, examples
        self.ties, self.growth = ties, BatchGrowth(args.grow_batch)
        self.flips = self._control()
        self.needs = objective.needs if ties is None else objective.needs | ties.objective.needs
        size, most = args.per_device_train_batch_size, max(method.batches) * args.grow_batch
        if size * most > len(examples):
            raise UserError(
                f"method {args.method!r} scores {most} minibatches of {size} at once, more than "
                f"the {len(examples)} training examples: lower per_device_train_batch_size"
                + (" or anchor_batches" if "anchor_batches" in method.takes else "")
                + (" or grow_batch" if args.grow_batch > 1 else "")
            )

    def __call__(self, run: RunFolder, step: int, digest: str | None) -> Probed:
        """Measure a step of a run; its batch is a function of seed, step and the log.

        Args:
            run: keeps scores until the step is done, so that none is asked for twice.
            step: its number.
            digest: checksum of the weights it starts from, where one was taken.
        """
        method, examples = self.method, self._minibatch(step)
        if self.flips is not None:
            method.eps = self.flips.eps
        outcomes: list[Outcome] = []
        groups: list[Group] = []
        pairs: list[Pair] = []
        values: list[float] = []
        losses: list[float] = []
        calls, offsets = 0, method.offsets(step)
        while offsets:
            found, asked = self._round(run, step, offsets, examples)
            calls += asked
            told = self._compared(found)
            values += _in_order(told)
            losses = [loss(self.objective, value) for value in values]
            outcomes, groups = [*outcomes, *found], [*groups, *told.values()]
            pairs += self._pairs(found, told)
            offsets = method.more(losses)
        line: Line = {
            "step": step,
            "move": method.move(losses),
            "values": jsonable(values),
            "n": sum(group.n for group in groups),
            "failed": sum(group.failed for group in groups),
            "flips": sum(group.flips for group in groups),
            "tie": all(group.tie for group in groups),
            "eps": method.eps,
            "learning_rate": method.learning_rate,
            "evals": run.evals + sum(len(outcome.batch) for outcome in outcomes),
            "checksum": digest,
            "signal": counted(pairs),
            "state": method.state_dict(),
            **rewards(self.objective, outcomes),
            **labels([outcome.batch for outcome in outcomes]),
        }
        if self.ties is not None:
            heard = (outcomes, values, line["move"])
            move, line["tie_breaker"] = self.ties(run, step, examples, method, *heard)
            line["move"] += move
        if self.args.race is not None:
            line["calls"] = calls
        line |= decayed(self.args, step, method.learning_rate)
        line |= self._steered(pairs)
        return Probed(line, groups, pairs, outcomes)

    def resume(self, line: Line) -> None:
        """Take up where the step of this line left off."""
        self.method.load_state_dict(line["state"])
        if self.ties is not None:
            self.ties.method.load_state_dict(line["tie_breaker"]["state"])
        if self.flips is not None:
            self.flips.load_state_dict(line["flip_control"])
        if "growth" in line:
            self.growth.load_state_dict(line["growth"])

    def _minibatch(self, step: int) -> list[Example]:
        """The examples of a step."""
        times = self.method.batches[step % len(self.method.batches)] * self.growth.times
        size = self.args.per_device_train_batch_size * times
        return minibatch(self.examples, size, self.args.seed, step)

    def _steered(self, pairs: Sequence[Pair]) -> Line:
        """What follows from a step's pairs for the next, for the log."""
        told: Line = {}
        if self.flips is not None:
            self.flips.update(pairs)
            told["flip_control"] = self.flips.state_dict()
        if self.args.grow_batch > 1:
            self.growth.update(pairs)
            told["growth"] = self.growth.state_dict()
        return told

    def _control(self) -> FlipControl | None:
        """What steers eps, if it is left open and outputs can flip: log-probabilities always do."""
        if self.args.eps != "auto" or not {"completions", "predictions"} & {*self.objective.needs}:
            return None
        usual = TARGET if self.ties is None else WITH_TIES
        return FlipControl(self.method.eps, self.args.flip_target or usual)

    def _round(
        self, run: RunFolder, step: int, offsets: Sequence[Offset], examples: Sequence[Example]
    ) -> tuple[list[Outcome], int]:
        """The outcomes at each offset, and how often the objective was called on a batch.

        With ``race`` a group ends at the look at which all of its pairs are decided.
        """
        if self.args.race is None:
            return self._scored(run, step, offsets, examples), len(offsets)
        racing, calls = self.method.groups(len(offsets)), 0
        found: dict[int, Outcome] = {}
        for seen in looks(len(examples)):
            asked = [number for group in racing for number in group]
            before = [found[number] for number in asked] if found else []
            there = [offsets[number] for number in asked]
            outcomes = self._scored(run, step, there, examples[:seen], before)
            found |= dict(zip(asked, outcomes, strict=True))
            calls += len(asked)
            racing = [group for group in racing if not self._over(found, group)]
            if not racing:
                break
        return [found[number] for number in range(len(offsets))], calls

    def _over(self, found: dict[int, Outcome], group: Sequence[int]) -> bool:
        """Whether all pairs of a group are decided."""
        assert self.args.race is not None
        first, *others = (found[number] for number in group)
        pairs = (compare(self.objective, first, other, errors=True) for other in others)
        return all(decided(pair, self.args.race) for pair in pairs)

    def _scored(
        self,
        run: RunFolder,
        step: int,
        offsets: Sequence[Offset],
        examples: Sequence[Example],
        before: Sequence[Outcome] = (),
    ) -> list[Outcome]:
        """The scores of the examples at each offset, ``before`` of the first of them; once only."""
        known = len(before[0].batch) if before else 0
        keys = [f"{run.key(step)}/{sorted(x.items())}/{len(examples)}" for x in offsets]
        outcomes = [run.pending.get(key, examples) for key in keys]
        missing = [number for number, outcome in enumerate(outcomes) if outcome is None]
        asked = [offsets[number] for number in missing]
        seed = derive(self.args.seed, step)
        batches = self.track.scored(asked, self.scorer, examples[known:], self.needs, seed)
        whole = bool(before) and not self.objective.decomposable  # a set has no parts to add up
        if whole:
            firsts = (before[number].batch for number in missing)
            batches = (first.followed_by(b) for first, b in zip(firsts, batches, strict=True))
        for number, outcome in zip(missing, self.service.each(batches), strict=True):
            if before and not whole:
                batch = before[number].batch.followed_by(outcome.batch)
                outcome = followed(self.objective, before[number], batch, outcome)
            run.pending.put(keys[number], outcome)
            outcomes[number] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _compared(self, outcomes: Sequence[Outcome]) -> dict[tuple[int, ...], Group]:
        """The groups of a round, by the numbers of their offsets."""
        return {
            tuple(numbers): together(self.objective, [outcomes[number] for number in numbers])
            for numbers in self.method.groups(len(outcomes))
        }

    def _pairs(
        self, outcomes: Sequence[Outcome], groups: dict[tuple[int, ...], Group]
    ) -> list[Pair]:
        """The first of each group beside each of the others."""
        return [
            compare(self.objective, outcomes[first], outcomes[other], errors=True)
            for first, *others in groups
            for other in others
        ]


def decayed(args: ZOConfig, step: int, learning_rate: float) -> Line:
    """What a line says of weight decay, where there is any: its rate, and a seed for rounding."""
    if not args.weight_decay:
        return {}
    return {"decay": [args.weight_decay * learning_rate, derive(args.seed, step, _DECAY)]}


def _in_order(groups: dict[tuple[int, ...], Group]) -> list[float]:
    """The values of a round, one for each of its offsets."""
    places = {
        number: value
        for numbers, group in groups.items()
        for number, value in zip(numbers, group.values, strict=True)
    }
    return [places[number] for number in range(len(places))]
