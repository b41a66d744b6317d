"""Which parameters gradients move, and where decay pulls parameters to."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.models import base_weights
from zoobj.sites import layers, patterns


def moved(args: ZOConfig, model: Any) -> dict[str, Parameter]:
    """What gradients move, by name: what is tuned, or of a hybrid the last layers.

    Raises:
        UserError: no such layers or parameters.
    """
    known = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if args.fo_layers is None:
        wanted = patterns(model, args.tune_layers) or ["*"]
    else:
        every = [name for name, _ in layers(model)]
        if args.fo_layers > len(every):
            raise UserError(f"--fo_layers {args.fo_layers}: the model has {len(every)} layers")
        wanted = [f"{name}.*" for name in every[-args.fo_layers :]]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"no trainable parameter is called {pattern!r}")
    return {name: p for name, p in known.items() if any(fnmatchcase(name, w) for w in wanted)}


def base_anchor(args: ZOConfig, params: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The base's weights for these parameters, memory-mapped, if decay pulls there.

    Raises:
        UserError: the base's file lacks one, or has another shape.
    """
    if not args.decay_to_base:
        return None
    base = base_weights(args.model_name_or_path)
    for name, param in params.items():
        if name not in base or base[name].shape != param.shape:
            raise UserError(
                f"--decay_to_base: the file of {args.model_name_or_path!r} has no parameter {name} "
                f"of shape {list(param.shape)}: leave it out"
            )
    return {name: base[name] for name in params}


def check_decay(args: ZOConfig, model: Any, given: bool) -> None:
    """Refuse decay that can't be.

    Args:
        args: the settings.
        model: what is scored.
        given: it came as an object.

    Raises:
        UserError: decay beyond its goal, or towards a base that is not at hand.
    """
    if args.weight_decay * args.learning_rate > 1:
        raise UserError(
            f"--weight_decay {args.weight_decay:g}: times learning_rate {args.learning_rate:g} it "
            "is more than all of a weight: lower it"
        )
    if not args.decay_to_base:
        return
    if not args.weight_decay:
        raise UserError("--decay_to_base: it says where weight_decay pulls to: give that as well")
    if args.tune != "full":
        raise UserError(
            f"--decay_to_base: at 0 what --tune {args.tune} adds is nothing, so that weight_decay "
            "alone pulls to the base: leave it out"
        )
    if given or args.gguf_file is not None or hasattr(model, "peft_config"):
        raise UserError(
            "--decay_to_base reads the base's weights from its safetensors: name a model that has "
            "them, with no adapter, or leave it out"
        )
