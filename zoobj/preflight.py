"""A few examples through the whole chain: a broken reward shows before any training."""

from collections.abc import Sequence

from zoobj.errors import UserError
from zoobj.outcome import OnError, floor
from zoobj.scoring import Scorer
from zoobj.service import Service
from zoobj.task import Example

_EXAMPLES = 4  # scored before anything is paid for


def try_out(scorer: Scorer, examples: Sequence[Example], *services: Service) -> None:
    """Score a few examples by all objectives of a run.

    Args:
        scorer: runs the model.
        examples: of the train split.
        services: of the objective, and of what is asked beside it.

    Raises:
        UserError: none of them could be scored, or under the policy ``raise`` one could not; or
            the policy is ``floor``, and an objective has none.
    """
    needs = frozenset[str]().union(*(service.objective.needs for service in services))
    batch = scorer(examples[:_EXAMPLES], needs)
    for service in services:
        policy: OnError = "raise" if service.on_error == "raise" else "drop"
        outcome = service.judge(batch, policy)
        if outcome.error is not None and not outcome.known:
            raise UserError(outcome.error)
    first = services[0]
    if first.on_error == "floor" and floor(first.objective) is None:
        raise UserError(
            f"--on_error floor: objective {first.objective.name!r} has no worst value: set its "
            "'bounds', or choose drop"
        )
