"""The training loss of first-order methods: the mean negative log-likelihood of gold answers.

What the objective ``loglikelihood`` measures, with its sign turned, on the same tokens and by the
same forward pass, but with a graph:

    L(theta; B) = -1 / |B| sum_i log p(gold_i | prompt_i)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from zoobj.errors import UserError
from zoobj.scoring.choices import in_batches
from zoobj.scoring.scorer import Scorer, gold
from zoobj.task import Example


def training_losses(
    scorer: Scorer, examples: Sequence[Example], checkpointing: bool = False
) -> Iterator[Tensor]:
    """The loss in micro-batches: what they give adds up to L, their gradients to its gradient.

    Args:
        scorer: its ``batch_size`` is the most rows in a forward pass; the model stays in evaluation
            mode, so that dropout plays no part.
        examples: a minibatch B, not empty.
        checkpointing: keep the activations between layers alone, and work out those within a layer
            again in the backward pass (``gradient_checkpointing_enable`` of transformers).

    Yields:
        Scalars in float64 nats, each with a graph of its own: its share of the sum, over |B|.

    Raises:
        UserError: a model without layers that transformers can checkpoint.
    """
    prompts, answers = scorer.tokens(gold(examples))
    with checkpointed(scorer.model) if checkpointing else nullcontext():
        for _, logprobs in in_batches(
            scorer.model,
            prompts,
            answers,
            pad=scorer.tokenizer.pad_token_id,
            batch_size=scorer.batch_size,
            typical=scorer.typical_length,
            between=scorer.between,
        ):
            yield -logprobs.sum() / len(examples)


def training_loss(
    scorer: Scorer, examples: Sequence[Example], checkpointing: bool = False
) -> Tensor:
    """L as one scalar, whose graph holds all micro-batches: see ``training_losses``."""
    losses = training_losses(scorer, examples, checkpointing)
    return sum(losses, start=next(losses))


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within the block, graphs keep no activations within layers.

    transformers checkpoints layers in training mode only, in which they may have dropout: a layer
    is told that it trains, and evaluates once it runs.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    layers = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient_checkpointing: transformers can't checkpoint {type(base).__name__}: leave "
            "it out, and lower per_device_eval_batch_size"
        )
    named = ("activation_checkpointing", "gradient_checkpointing")  # transformers 6, and 5
    prefix = next(name for name in named if hasattr(base, f"{name}_enable"))
    contexts = {"context_fn": lambda: (_training(layers, False), _training(layers, False))}
    getattr(base, f"{prefix}_enable")({"use_reentrant": False, **contexts})
    try:
        with _training(layers, True):
            yield
    finally:
        getattr(base, f"{prefix}_disable")()


@contextmanager
def _training(layers: Sequence[Any], flag: bool) -> Iterator[None]:
    """Within the block these layers, but nothing in them, have this flag."""
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = flag
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.training = was
