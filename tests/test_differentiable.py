"""The training loss: the objective's own number, its gradient whatever the micro-batches."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from zoobj import UserError
from zoobj.models import prepare
from zoobj.scoring import Scorer
from zoobj.scoring.differentiable import checkpointed, training_loss, training_losses
from zoobj.task import Example, Task
from zoobj.tasks import SST2, SquadMini

REVIEWS = [
    {"sentence": f"a {word} film", "label": i % 2} for i, word in enumerate("abcdefghijklmnopqrst")
]


def scorer(model: Any, tokenizer: Any, task: Task, batch_size: int = 32) -> Scorer:
    return Scorer(model=model, tokenizer=tokenizer, task=task, batch_size=batch_size)


def some(task: Task) -> list[Example]:
    return task.examples("train", 7)


def gradients(model: Any, losses: Callable[[], Any]) -> tuple[float, list[Tensor]]:
    """The loss, and its gradient by each parameter, micro-batch by micro-batch."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for loss in losses():
        loss.backward()
        total += loss.item()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    assert len(found) > 5
    return total, found


def equal(a: tuple[float, list[Tensor]], b: tuple[float, list[Tensor]]) -> bool:
    largest = max(float(x.abs().max()) for x in a[1])
    apart = [float((x - y).abs().max()) / largest for x, y in zip(a[1], b[1], strict=True)]
    return a[0] == pytest.approx(b[0], rel=1e-5) and max(apart) < 1e-5


@pytest.fixture(params=["generation", "choices"])
def task(request: Any, tmp_path: Any) -> Task:
    return SquadMini() if request.param == "generation" else SST2(train_file=REVIEWS)


def test_it_is_the_objective(model: Any, tokenizer: Any, task: Task) -> None:
    subject, examples = scorer(model, tokenizer, task), some(task)
    told = subject(examples, {"reference_logprob"}).reference_logprob
    loss = training_loss(subject, examples)
    assert loss.requires_grad
    assert loss.item() == pytest.approx(-sum(told) / len(told), rel=1e-6)


def test_its_gradient_is_that_of_torchs_cross_entropy(model: Any, tokenizer: Any) -> None:
    task = SquadMini()
    examples = some(task)[:1]
    subject = scorer(model, tokenizer, task)
    prompt = subject.encode(examples[0].prompt)
    answer = tokenizer(f" {examples[0].reference[0]}")["input_ids"]

    def plain() -> list[Tensor]:
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        picked = logits[len(prompt) - 1 : -1]
        return [torch.nn.functional.cross_entropy(picked, torch.tensor(answer), reduction="sum")]

    assert equal(
        gradients(model, lambda: training_losses(subject, examples)), gradients(model, plain)
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_micro_batches_are_one_big_batch(
    model: Any, tokenizer: Any, task: Task, batch_size: int
) -> None:
    whole, parts = scorer(model, tokenizer, task), scorer(model, tokenizer, task, batch_size)
    whole.typical_length = 1e6  # no limit on tokens: one batch
    examples = some(task)
    assert len(list(training_losses(whole, examples))) == 1
    assert len(list(training_losses(parts, examples))) >= 7 / batch_size
    one = gradients(model, lambda: training_losses(whole, examples))
    assert equal(gradients(model, lambda: training_losses(parts, examples)), one)
    assert equal(gradients(model, lambda: [training_loss(parts, examples)]), one)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_checkpointing_changes_no_gradient(family: str, tokenizer: Any) -> None:
    """Nor does dropout come in by it, which gpt2 and opt have in training."""
    model, task = tiny.made(family), SquadMini()
    prepare(model, tokenizer)
    subject = scorer(model, tokenizer, task)
    subject.prompt_limit = 40
    examples, calls = some(task), []
    layer = next(m for m in model.modules() if hasattr(m, "self_attn") or hasattr(m, "attn"))
    inner = getattr(layer, "self_attn", None) or layer.attn
    inner.register_forward_pre_hook(lambda *args: calls.append(layer.training))
    plain = gradients(model, lambda: training_losses(subject, examples))
    assert calls == [False]
    again = gradients(model, lambda: training_losses(subject, examples, checkpointing=True))
    assert calls == [False] * 3, "forward once more in the backward pass, in evaluation mode"
    assert equal(again, plain)
    assert not any(m.training for m in model.modules())
    gradients(model, lambda: training_losses(subject, examples))
    assert len(calls) == 4, "it was for once"


def test_what_can_not_be_checkpointed_is_named() -> None:
    with (
        pytest.raises(UserError, match="can't checkpoint Linear"),
        checkpointed(torch.nn.Linear(1, 1)),
    ):
        pass
