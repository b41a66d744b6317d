"""Why a run ends. Each rule is a function of the settings and of what is in the run folder, so that
a run that is resumed stops where an uninterrupted one would have.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from zoobj.assemble import cost
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.lineage import inherited
from zoobj.objective import Objective
from zoobj.racing import looks
from zoobj.run import STOP, RunFolder
from zoobj.signal import loss

DEFAULT_STEPS = 200
ENDLESS = 10**9  # steps, where only time is limited

Rule = Callable[[ZOConfig, RunFolder, Objective, int], bool]


def budget(args: ZOConfig) -> tuple[int, str]:
    """Steps that the budget buys, and the name of what limits them.

    Where seconds are the only budget there is no end of steps, nor where steps differ in what they
    cost: then ``max_evals`` is a rule. Else 200 are the default.
    """
    (evaluations, batches), size = cost(args), args.per_device_train_batch_size
    limits, before = [], inherited(args)
    begun, paid = len(before), before[-1]["evals"] if before else 0
    if args.max_steps is not None:
        limits.append((args.max_steps, "max_steps"))
    turn = begun % len(batches)
    cycle = [*batches[turn:], *batches[:turn]]
    beside = args.fo_layers is not None  # a minibatch goes forward and backward as well
    costs = list(accumulate(size * (evaluations * count + beside) for count in cycle))
    if args.max_evals is not None:
        cycles, left = divmod(args.max_evals - paid, costs[-1])
        steps = cycles * len(costs) + bisect_right(costs, left)
        limits.append((ENDLESS if steps > 0 and uneven(args) else begun + steps, "max_evals"))
    usual = (DEFAULT_STEPS, "max_steps") if args.max_seconds is None else (ENDLESS, "max_seconds")
    steps, limit = min(limits, default=usual)
    if not steps and not begun:
        raise UserError(
            f"--max_evals {args.max_evals} buys no step: one scores {costs[0]} examples "
            f"({costs[0] // size} x per_device_train_batch_size {size})"
        )
    calls = _calls(args, evaluations) + 4
    if args.max_reward_calls is not None and args.max_reward_calls < calls:
        raise UserError(
            f"--max_reward_calls {args.max_reward_calls} buys no step: try-out, test, two "
            f"validations and a step are {calls} calls"
        )
    if steps <= begun:
        raise UserError(
            f"--branch_from {args.branch_from}: {limit} ends the run at step {steps}, "
            "counted from the base model: give more"
        )
    return steps, limit


def uneven(args: ZOConfig) -> bool:
    """Whether steps may differ in how many examples they score."""
    return args.race is not None or args.grow_batch > 1


def _calls(args: ZOConfig, offsets: int) -> int:
    """How often a step calls the objective at most."""
    size = args.per_device_train_batch_size * args.grow_batch
    return offsets * (1 if args.race is None else len(looks(size)))


def _max_evals(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """The next step might score more examples than are left; where steps cost the same they say."""
    if args.max_evals is None or not uneven(args):
        return False
    times = run.steps[-1].get("growth", {"times": 1})["times"] if run.steps else 1
    size, beside = args.per_device_train_batch_size, args.fo_layers is not None
    most = size * (times * offsets + beside)
    return run.evals + most > args.max_evals


def _max_seconds(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """Steps and evaluations took so long, earlier sessions included."""
    return args.max_seconds is not None and run.seconds >= args.max_seconds


def _max_reward_calls(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """The next step and a validation after it would be too many; the last test does not count."""
    limit = args.max_reward_calls
    return limit is not None and run.calls + _calls(args, offsets) + 1 > limit


def _target_value(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """The last validation is as good as was wished for."""
    losses = _validations(args, run, objective)
    target = args.target_value
    return target is not None and bool(losses) and losses[-1] <= loss(objective, target)


def _early_stopping(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """None of the last validations was better than the best before."""
    patience, losses = args.early_stopping_patience, _validations(args, run, objective)
    if patience is None:
        return False
    best, since = float("inf"), 0
    for value in losses:
        better = value < best - args.early_stopping_threshold
        best, since = (value, 0) if better else (best, since + 1)
    return since >= patience


def _stop_file(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> bool:
    """Somebody put a file STOP into the run folder; it is taken away."""
    there = (run.path / STOP).exists()
    (run.path / STOP).unlink(missing_ok=True)
    return there


RULES: dict[str, Rule] = {
    "target_value": _target_value,
    "early_stopping": _early_stopping,
    "max_evals": _max_evals,
    "max_reward_calls": _max_reward_calls,
    "max_seconds": _max_seconds,
    "stop_file": _stop_file,
}


def stop_reason(args: ZOConfig, run: RunFolder, objective: Objective, offsets: int) -> str | None:
    """The first rule that says stop before the next step, which scores so many offsets."""
    return next((n for n, rule in RULES.items() if rule(args, run, objective, offsets)), None)


def _validations(args: ZOConfig, run: RunFolder, objective: Objective) -> Sequence[float]:
    """Losses of the validations so far; those without a value are left out.

    So are those between the regular ones, since they depend on where a session ended.
    """
    lines = sorted(
        (e for e in run.evaluations if e["split"] == "validation"), key=lambda e: e["step"]
    )
    regular = (e for e in lines if e["step"] % args.eval_steps == 0 or e["step"] == run.start)
    return [loss(objective, e["value"]) for e in regular if e["value"] is not None]
