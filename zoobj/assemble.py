"""From settings to things: the task, the model, the scorer, the method that a ZOConfig names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from zoobj.config import (
    FIRST_EPS,
    OF_DIRECTIONS,
    OF_EPS,
    OF_GRADIENTS,
    OF_METHODS,
    ZOConfig,
    with_defaults,
)
from zoobj.environment import share_memory
from zoobj.errors import UserError
from zoobj.estimators.base import Estimator
from zoobj.estimators.first_order import FirstOrder
from zoobj.estimators.fo_sgd import FOSGD
from zoobj.grid import ROOM
from zoobj.models import load_model, prepare
from zoobj.noise import derive
from zoobj.objective import Objective
from zoobj.overlay import Overlay
from zoobj.parameters import base_anchor, moved
from zoobj.registry import build, find
from zoobj.scoring import Sampling, Scorer
from zoobj.service import Service
from zoobj.sites import layers, patterns
from zoobj.task import SPLITS, Task
from zoobj.ties import TieBreaker
from zoobj.walk import Walk

_ABOUT_WEIGHTS = ("learning_rate", "normalize", "tune_layers", "density", "blocks", "eps")
_ROOM = 16.0  # for what an overlay adds: it begins at 0, in units of what is normal there


def make_task(
    args: ZOConfig, task: Task | None = None, datasets: Sequence[Any] = (None, None, None)
) -> Task:
    """The task that the settings name, or the one given, with its own files replaced."""
    files = (args.train_file, args.validation_file, args.test_file)
    sources = [file if rows is None else rows for rows, file in zip(datasets, files, strict=True)]
    if task is None:
        names = ("train_file", "validation_file", "test_file")
        settings = dict(zip(names, sources, strict=True))
        settings |= {"num_fewshot": args.num_fewshot, "max_new_tokens": args.max_new_tokens}
        made = build("task", args.task, **settings)
        if not isinstance(made, Task):
            raise UserError(f"task {args.task!r} is no Task: derive it from zoobj.Task")
        return made
    given = zip(SPLITS, sources, strict=True)
    task.files = {**task.files, **{split: rows for split, rows in given if rows is not None}}
    return task


def make_scorer(args: ZOConfig, model: Any, tokenizer: Any, task: Task) -> Scorer:
    """A scorer with the settings' decoding."""
    return Scorer(
        model=model,
        tokenizer=tokenizer,
        task=task,
        batch_size=args.per_device_eval_batch_size,
        max_prompt_length=args.max_prompt_length,
        sampling=Sampling(args.temperature, args.top_p) if args.do_sample else None,
    )


def make_service(args: ZOConfig, objective: Objective) -> Service:
    """The reward service that the settings ask for."""
    return Service(
        objective,
        on_error=args.on_error,
        workers=args.reward_workers,
        timeout=args.reward_timeout,
        retries=args.reward_retries,
        memory=args.reward_memory,
        cache=args.reward_cache,
        max_failed=args.max_failed,
    )


def make_tie_breaker(args: ZOConfig, objective: Objective | None) -> TieBreaker | None:
    """What is asked where pairs tie, if the settings name something."""
    if objective is None:
        return None
    return TieBreaker(objective, make_service(args, objective), make_method(args))


def make_model(
    args: ZOConfig, model: Any = None, tokenizer: Any = None, peft_config: Any = None
) -> tuple[Any, Any]:
    """The model that the settings name and its tokenizer, or the ones given, ready to be scored.

    With a ``peft_config``, or where the settings ask for it, the model gets an adapter, which alone
    is tuned. Its first weights are a function of the seed, so that a run can be resumed.
    """
    share_memory()
    if model is None:
        model, loaded = load_model(
            args.model_name_or_path,
            gguf_file=args.gguf_file,
            dtype=args.dtype,
            device_map=args.device_map,
            trust_remote_code=args.trust_remote_code,
            packed=args.tune not in ("full", "auto") and args.peft is None,
        )
        tokenizer = tokenizer or loaded
    elif tokenizer is None:
        raise UserError("a model given as an object needs its tokenizer: processing_class=...")
    if peft_config is not None or args.peft is not None:
        model = _with_adapter(args, model, peft_config)
    prepare(model, tokenizer)
    return model, tokenizer


def _with_adapter(args: ZOConfig, model: Any, config: Any) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("adapters need the package peft: pip install 'zoobj[peft]'") from error
    if hasattr(model, "peft_config"):
        raise UserError("the model has an adapter already, which is tuned alone: leave peft out")
    if config is None:
        modules = args.lora_target_modules
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            target_modules=modules if modules == "all-linear" else modules.split(","),
        )
    with torch.random.fork_rng():  # peft draws from the global state, which is put back
        torch.manual_seed(derive(args.seed) % 2**63)  # noqa: TID251
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # modules that the model lacks
            raise UserError(f"the adapter does not fit the model: {error}") from error


def chosen(args: ZOConfig, model: Any, given: bool = False) -> tuple[ZOConfig, str]:
    """The settings with ``tune`` and what depends on it; where "auto" was decided, also why.

    Few numbers are learned sooner from few scores than many (docs/tuning.md has the table). Who
    speaks of weights, by a setting that has another size for them or by giving a model object, of
    which "every parameter that requires gradients" is tuned, gets all of them.
    """
    if args.tune != "auto":
        return with_defaults(args), ""
    told = [name for name in _ABOUT_WEIGHTS if name in args.model_fields_set]
    if differentiates(args.method) or args.fo_layers is not None:
        kind, why = "full", "gradients move the model's own weights"
    elif hasattr(model, "peft_config"):
        kind, why = "full", "the model has an adapter, which is tuned alone"
    elif given:
        kind, why = "full", "the model was given as an object"
    elif told and getattr(args, told[0]) != "auto":
        kind, why = "full", f"--{told[0]} is given; --tune steer to have it for vectors"
    else:
        kind, why = _by_structure(model)
    settled = with_defaults(args.model_copy(update={"tune": kind}))
    return settled, f"--tune auto: {kind} ({why})"


def _by_structure(model: Any) -> tuple[str, str]:
    """What to tune, and why."""
    try:
        count = len(layers(model))
    except UserError as error:
        return "full", str(error)
    return "steer", (
        "of what a few thousand scores can teach, vectors after some of the model's "
        f"{count} layers are the most"
    )


def make_tuned(
    args: ZOConfig, model: Any, tokenizer: Any, facts: dict[str, Any] | None = None
) -> Any:
    """What the settings tune: the model, or an overlay on it.

    Args:
        args: the settings.
        model, tokenizer: from ``make_model``.
        facts: of the overlay of an earlier run; else its units are not measured yet.

    Raises:
        UserError: an overlay that does not fit the model.
    """
    if args.tune == "full":
        return model
    if differentiates(args.method) or args.fo_layers is not None:
        raise UserError(
            f"--tune {args.tune}: gradients move the model's own weights: leave tune at full, or "
            "have an adapter by --peft lora"
        )
    if hasattr(model, "peft_config"):
        raise UserError(
            f"--tune {args.tune}: the model has an adapter: merge it first, or --tune full"
        )
    tokens = _virtual_tokens(args, tokenizer) if args.tune == "prompt" else []
    overlay = Overlay(model, args.tune, args.tune_layers, rank=args.lora_r, tokens=tokens)
    if facts is not None:
        overlay.set_units(facts["units"])
    overlay.base = args.model_dump(include={"model_name_or_path", "gguf_file"})
    return overlay


def _virtual_tokens(args: ZOConfig, tokenizer: Any) -> list[int]:
    """Tokens of the vocabulary that the new ones begin as: those of a text, over and over."""
    known = tokenizer(args.prompt_tuning_init_text, add_special_tokens=False)["input_ids"]
    if not known:
        raise UserError(f"prompt_tuning_init_text {args.prompt_tuning_init_text!r} has no tokens")
    return [known[i % len(known)] for i in range(args.num_virtual_tokens)]


def make_walk(args: ZOConfig, model: Any) -> Walk:
    """The walk over the weights that the settings tune; puts them on their grids.

    Args:
        args: the settings.
        model: from ``make_tuned``.
    """
    beside = isinstance(model, Overlay)
    by_gradients = moved(args, model) if args.fo_layers is not None else {}
    params = {n: p for n, p in model.named_parameters() if n not in by_gradients}
    return Walk(
        params.items(),
        noise=args.noise,
        tune=[] if beside else patterns(model, args.tune_layers),
        room=_ROOM if beside else ROOM,
        blocks=args.blocks,
        density=args.density,
        mask_seed=derive(args.seed),
        anchor=base_anchor(args, {n: p for n, p in params.items() if p.requires_grad}),
    )


def method_class(name: str) -> type[Estimator] | type[FirstOrder]:
    """The class of a method, by name."""
    found = find("method", name)
    thing = found.thing
    if found.args or found.kwargs:
        raise UserError(f"method {name!r}: a method takes no arguments; eps and others are flags")
    if not (isinstance(thing, type) and issubclass(thing, (Estimator, FirstOrder))):
        raise UserError(f"method {name!r} is no Estimator: derive it from zoobj.estimators")
    return thing


def is_first_order(args: ZOConfig) -> bool:
    """Whether the method moves the weights by gradients."""
    return issubclass(method_class(args.method), FirstOrder)


def hears_ties(args: ZOConfig) -> bool:
    """Whether the method has a use for a tie-breaker."""
    return "tie_breaker" in getattr(method_class(args.method), "allows", ())


def differentiates(name: str) -> bool:
    """Whether a method needs derivatives of what it is trained on."""
    kind = method_class(name)
    return issubclass(kind, FirstOrder) or kind.derivative


def first_eps(args: ZOConfig) -> float:
    """The eps of a run's first step."""
    if args.eps != "auto":
        return args.eps
    return FIRST_EPS["full" if args.tune == "auto" else args.tune]


def make_method(args: ZOConfig) -> Estimator:
    """The method with the settings' seed, eps and learning rate, and what else it takes.

    Raises:
        UserError: a setting of other methods that differs from its default.
    """
    kind = method_class(args.method)
    assert issubclass(kind, Estimator), "see make_first_order"
    _refuse_unused(args)
    return kind(
        seed=args.seed,
        eps=first_eps(args),
        learning_rate=args.learning_rate,
        directions=args.directions,
        **{name: getattr(args, name) for name in kind.takes},
    )


def make_first_order(
    args: ZOConfig, params: Iterable[Parameter], anchor: Mapping[Parameter, Tensor] | None = None
) -> FirstOrder:
    """What moves parameters by gradients: the method, or what ``fo_layers`` are moved by.

    Args:
        args: the settings.
        params: what it moves.
        anchor: where decay pulls them, if not to 0.

    Raises:
        UserError: a setting of other methods that differs from its default.
    """
    kind, rate = method_class(args.method), args.learning_rate
    if issubclass(kind, FirstOrder):
        _refuse_unused(args)
    else:
        kind, rate = FOSGD, args.fo_learning_rate
    return kind(
        params,
        rate,
        max_grad_norm=args.max_grad_norm,
        max_grad_value=args.max_grad_value,
        weight_decay=args.weight_decay,
        anchor=anchor,
        **{name: getattr(args, name) for name in kind.takes},
    )


def cost(args: ZOConfig) -> tuple[int, Sequence[int]]:
    """Offsets that a step scores, and how many minibatches each, for the steps of a cycle.

    An example that goes forward and backward counts as one that is scored.
    """
    kind = method_class(args.method)
    if issubclass(kind, FirstOrder):
        return kind.evaluations, kind.batches
    method = make_method(args)
    return method.evaluations, method.batches


def unused(args: ZOConfig) -> list[str]:
    """Settings that differ from their defaults, and that the method has no use for."""
    kind = method_class(args.method)
    if issubclass(kind, FirstOrder):
        names = {*OF_METHODS.difference(kind.takes), *OF_DIRECTIONS}
    else:
        names = OF_METHODS.difference(kind.takes, kind.allows)
        names |= {*OF_EPS} if kind.derivative else set()
        if args.fo_layers is None:
            names |= {*OF_GRADIENTS, "fo_learning_rate"}
            names -= {"surrogate"} if kind.derivative else set()
    idle = {name: (field.default, None, "none") for name, field in ZOConfig.model_fields.items()}
    return [name for name in sorted(names) if getattr(args, name) not in idle[name]]


def _refuse_unused(args: ZOConfig) -> None:
    for name in unused(args):
        usual = ZOConfig.model_fields[name].default
        left = "out" if usual is None else f"at {usual}"
        raise UserError(
            f"--{name} {getattr(args, name)}: method {args.method!r} has no use for it: leave it "
            f"{left}"
        )
