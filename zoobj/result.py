"""What a run comes to: result.json, and which step's weights are kept."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from zoobj.accounting import signal
from zoobj.config import ZOConfig
from zoobj.labels import labels
from zoobj.objective import Objective
from zoobj.outcome import Outcome
from zoobj.run import RunFolder
from zoobj.signal import Verdict, compare, loss, paired_bootstrap, verdict


@dataclass(frozen=True)
class Result:
    """What a run comes to. ``before`` and ``after`` are measured on ``n`` held-out examples.

    ``before`` is of the weights that the run began with: the base, or where it branched off.
    ``best_step`` is the step whose weights were kept and gave ``after``. ``evals`` counts scored
    training examples, both sides of a pair; ``ci95`` is a paired bootstrap of the difference;
    tie_rate, flip_rate, snr and wasted say how much the pairs said (``zoobj.accounting``);
    ``labels`` are figures of the predicted ones in ``after`` (``zoobj.labels``), None for texts;
    ``seconds`` are those of steps and evaluations, earlier sessions of a resumed run included;
    memory is bytes. ``stop_reason`` is a budget or rule (max_steps, max_evals, ``stopping.RULES``),
    "callback", or for a run that was cut off before ``after`` could be measured, and has NaN there,
    "SIGINT", "SIGTERM" or "error".
    """

    objective: str
    split: str
    n: int
    before: float
    after: float
    difference: float
    ci95: tuple[float, float]
    verdict: Verdict
    method: str
    steps: int
    evals: int
    seconds: float
    seconds_in_walk: float
    tie_rate: float
    flip_rate: float
    snr: float
    wasted: float
    labels: dict[str, Any] | None
    peak_memory_bytes: int
    inference_peak_memory_bytes: int
    best_step: int
    stop_reason: str

    def __str__(self) -> str:
        low, high = self.ci95
        return (
            f"{self.objective} on {self.n} {self.split} examples: {self.before:.4f} -> "
            f"{self.after:.4f}, difference {self.difference:+.4f} [{low:+.4f}, {high:+.4f}]: "
            f"{self.verdict} (best at step {self.best_step} of {self.steps}; ended by "
            f"{self.stop_reason})"
        )


def summarise(
    args: ZOConfig,
    objective: Objective,
    run: RunFolder,
    before: Outcome,
    after: Outcome | None,
    **measured: int | str,
) -> Result:
    """The result of a run.

    Args:
        args, objective, run: the run's.
        before, after: on test; after is None for a run that was cut off.
        measured: the fields that only the trainer knows: memory, best step, why it ended.
    """
    none = float("nan")
    if after is None:
        n, low, high, interval = len(before.batch) - before.failed, before.value, none, (none, none)
    else:
        both = compare(objective, after, before)
        n, low, high = both.n, both.minus, both.plus
        interval = paired_bootstrap(objective, before, after)
    return Result(
        objective=objective.name,
        split="test",
        n=n,
        before=low,
        after=high,
        difference=high - low,
        ci95=interval,
        verdict=verdict(objective, interval),
        method=args.method,
        steps=len(run.steps),
        evals=run.evals,
        seconds=round(run.seconds, 3),
        seconds_in_walk=round(run.seconds_in_walk, 3),
        **asdict(signal(run.steps[run.start :])),
        labels=None if after is None else labels([after.batch]).get("labels"),
        **measured,  # type: ignore[arg-type]
    )


def best_step(
    objective: Objective, run: RunFolder, among: Collection[int] | None = None
) -> int | None:
    """The step whose weights did best on validation, the earliest of equals; None before any.

    Args:
        objective, run: the run's.
        among: only these steps.
    """
    done = [
        (loss(objective, line["value"]), line["step"])
        for line in run.evaluations
        if line["split"] == "validation"
        and line["value"] is not None
        and (among is None or line["step"] in among)
    ]
    return min(done)[1] if done else None
