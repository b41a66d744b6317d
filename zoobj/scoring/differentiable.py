"""The training loss where one is differentiated: mean negative log-likelihood of gold answers.

What the objective ``loglikelihood`` measures, with its sign turned, on the same tokens and by the
same forward pass, but with a graph:

    L(theta; B) = -1 / |B| sum_i log p(gold_i | prompt_i)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoobj.errors import UserError
from zoobj.scoring.batching import buckets
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


def micro_batches(scorer: Scorer, examples: Sequence[Example]) -> int:
    """How many ``training_losses`` gives for different examples: rows are of similar length."""
    lengths = [
        len(prompt) + len(answer) - 1
        for prompt, answer in zip(*scorer.tokens(gold(examples)), strict=True)
    ]
    return sum(1 for _ in buckets(lengths, scorer.batch_size, scorer.typical_length))


def training_loss(
    scorer: Scorer, examples: Sequence[Example], checkpointing: bool = False
) -> Tensor:
    """L as one scalar, whose graph holds all micro-batches: see ``training_losses``."""
    losses = training_losses(scorer, examples, checkpointing)
    return sum(losses, start=next(losses))


@torch.no_grad()
def derivative(
    model: Any, losses: Callable[[], Iterable[Tensor]], along: Mapping[str, Tensor]
) -> tuple[float, float]:
    """A loss, and how fast it changes along a direction, by one forward pass: forward-mode AD.

    Each number in the pass carries its tangent (``torch.autograd.forward_ad``); there is no graph.
    Attention is torch's plain one meanwhile: fused kernels have no derivative of this kind.

    Args:
        model: whose parameters are moved.
        losses: runs the model; micro-batches' shares of the loss, as of ``training_losses``.
        along: the direction, for those of its parameters that it moves, by name.

    Returns:
        The loss L, and sum_i dL/dtheta_i along_i.
    """
    params = dict(model.named_parameters())
    places = {params[name].data_ptr(): z for name, z in along.items()}  # tied ones move together
    within = _Within(model, lambda: [ad.unpack_dual(loss) for loss in losses()])
    with ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        duals = {
            f"model.{name}": ad.make_dual(param, places[param.data_ptr()])
            for name, param in params.items()
            if param.data_ptr() in places
        }
        parts = torch.func.functional_call(within, duals, ())
        slopes = [float(part.tangent) for part in parts if part.tangent is not None]
        return math.fsum(float(part.primal) for part in parts), math.fsum(slopes)


class _Within(torch.nn.Module):
    """Calls a function of a model as if it were the model's, for ``functional_call``."""

    def __init__(self, model: Any, call: Callable[[], Any]):
        super().__init__()
        self.model, self.call = model, call

    def forward(self) -> Any:
        return self.call()


def checkpointable(model: Any) -> list[Any]:
    """The layers that transformers can checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in _base(model).modules() if isinstance(m, GradientCheckpointingLayer)]


def _base(model: Any) -> Any:
    """The model that an adapter is on."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within the block, graphs keep no activations within layers.

    transformers checkpoints layers in training mode only, in which they may have dropout: a layer
    is told that it trains, and evaluates once it runs.
    """
    layers, base = checkpointable(model), _base(model)
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
