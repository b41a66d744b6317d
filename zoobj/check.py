"""``zoobj validate objective SPEC``: the contract tests of an objective, on examples made up."""

from collections.abc import Iterator
from typing import Any

from zoobj.assemble import make_task
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.objective import Batch, Objective, as_objective
from zoobj.outcome import judge
from zoobj.scoring import as_batch
from zoobj.task import Example
from zoobj.testing import ObjectiveContract

_EXAMPLES = 4


def check_objective(spec: str, args: ZOConfig) -> Iterator[str]:
    """Run the contract tests on an objective.

    Args:
        spec: as for ``--objective``.
        args: settings, of which the task counts: its rows have the columns that rewards ask for.

    Yields:
        A line for each test that it passes.

    Raises:
        UserError: the first test that it fails, and why.
    """
    objective = as_objective(spec)
    batch = _fitting(objective, make_task(args).examples("test", _EXAMPLES))
    contract: Any = type("Contract", (ObjectiveContract,), {"objective": objective, "batch": batch})
    for name in vars(ObjectiveContract):
        if not name.startswith("test_"):
            continue
        what = name.removeprefix("test_").replace("_", " ")
        try:
            getattr(contract(), name)()
        except Exception as error:
            why = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"objective {spec}: {what}: no ({why}); see docs/objectives.md"
            ) from error
        yield f"ok: {what}"


def _fitting(objective: Objective, examples: list[Example]) -> Batch:
    """Made-up outcomes that the objective can score: texts, or choices where it is for these."""
    batches = [_texts(examples), _choices()]
    if {"predictions", "label_scores"} & set(objective.needs):
        batches = batches[1:]
    outcomes = [judge(objective, batch) for batch in batches]
    sound = [outcome.batch for outcome in outcomes if outcome.error is None]
    if not sound:
        raise UserError(outcomes[0].error or "")
    return sound[0]


def _texts(examples: list[Example]) -> Batch:
    """A right answer, a wordy one, another's, and none."""
    right = [
        str(e.reference[0] if isinstance(e.reference, list) else e.reference) for e in examples
    ]
    said = [right[0], f"It is {right[1]}, I think.", right[0], ""]
    return as_batch(
        examples,
        completions=said,
        completion_ids=[list(range(len(text.split()))) for text in said],
        reference_logprob=[-0.5 * i for i in range(len(said))],
    )


def _choices() -> Batch:
    """Both of two choices, rightly and wrongly predicted."""
    chosen = [1, 1, 0, 0]
    return Batch(
        prompts=["a", "b", "c", "d"],
        references=[1, 0, 0, 1],
        predictions=chosen,
        completions=["yes" if choice else "no" for choice in chosen],
        completion_ids=[[choice] for choice in chosen],
        label_scores=[[-2.0, -0.25], [-1.5, -0.5], [-0.125, -3.0], [-0.75, -1.0]],
        reference_logprob=[-0.25, -1.5, -0.125, -1.0],
    )
