"""ZOConfig: every setting of a run. YAML keys, command-line flags and fields are the same names."""

import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from zoobj.errors import UserError, closest
from zoobj.models import TINY_QA

# Defaults of what is tuned; docs/tuning.md has the experiments.
FIRST_EPS = {"full": 5e-3, "steer": 0.27, "scale": 0.27, "lora": 0.27, "prompt": 0.05}
_WITH_OVERLAY: dict[str, dict[str, Any]] = {
    "steer": {"learning_rate": 0.065},
    "scale": {"learning_rate": 0.065},
    "lora": {"learning_rate": 0.065, "lora_r": 1},
    "prompt": {"learning_rate": 0.02},
}
for _usual in _WITH_OVERLAY.values():
    _usual |= {"directions": 8, "per_device_train_batch_size": 8}
_BY_GRADIENTS: dict[str, dict[str, Any]] = {  # docs/methods.md has the experiments
    "fo-sgd": {"learning_rate": 1e-2},
    "lomo": {"learning_rate": 1e-2},
    "fo-adam": {"learning_rate": 1e-4},
    "adalomo": {"learning_rate": 3e-3},
}


class ZOConfig(BaseModel):
    """Settings of a run; an unknown one is an error. Descriptions are the flags' help."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    model_name_or_path: str = Field(TINY_QA, description="embedded model, folder or hub id")
    gguf_file: str | None = Field(
        None, description="GGUF file in that folder; dequantised to tune all weights"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto: the checkpoint's own"
    )
    device_map: str | None = Field(None, description="left to transformers")
    trust_remote_code: bool = Field(False, description="as in transformers")

    peft: Literal["lora"] | None = Field(
        None, description="tune an adapter of peft on the model, and save that"
    )
    lora_r: int = Field(8, ge=1, description="rank of the adapter; of --tune lora 1")
    lora_alpha: int = Field(16, ge=1, description="its scale, times its rank")
    lora_target_modules: str = Field(
        "all-linear", description="modules that get one, as in 'q_proj,v_proj'"
    )

    task: str = Field("squad_mini", description="name, file.py:Class or file.yaml")
    train_file: str | None = Field(None, description="local rows instead of the task's own")
    validation_file: str | None = Field(None, description="likewise; else cut from train")
    test_file: str | None = Field(None, description="likewise; else cut from train")
    num_fewshot: int | None = Field(None, ge=0, description="examples shown in every prompt")
    max_new_tokens: int | None = Field(None, ge=1, description="tokens of a completion")
    max_prompt_length: int | None = Field(
        None, ge=1, description="tokens of a prompt that are kept, its last ones"
    )
    max_train_samples: int | None = Field(None, ge=1, description="use the first N of train")
    max_eval_samples: int | None = Field(None, ge=1, description="use the first N of validation")
    max_test_samples: int | None = Field(None, ge=1, description="use the first N of test")

    objective: str | list[Any] | dict[str, Any] | None = Field(
        None,
        description="name, file.py:function, or a list of them with weights and limits, as in "
        "'[token_f1, {name: length, at_most: 5}]'; default: the task's",
    )
    tie_breaker: str | list[Any] | dict[str, Any] | None = Field(
        "auto",
        description="a second objective, asked only about what ties on the first; none: nothing "
        "is; auto: the first one's own, as margin is for accuracy",
    )
    on_error: Literal["drop", "raise", "floor"] = Field(
        "drop", description="what becomes of an example that could not be scored"
    )
    max_failed: float | None = Field(
        None, ge=0, le=1, description="pause the run when a larger share of a batch fails"
    )
    reward_workers: int = Field(
        0, ge=0, description="processes that score, example by example; 0: none of their own"
    )
    reward_timeout: float | None = Field(
        None, gt=0, description="seconds for a call of the objective, in a worker"
    )
    reward_retries: int = Field(
        0, ge=0, description="times that a call which raised, took too long or died is made again"
    )
    reward_memory: float | None = Field(None, gt=0, description="GiB of address space for a worker")
    reward_cache: str | None = Field(None, description="folder where scores are kept and found")
    do_sample: bool = Field(False, description="draw completions instead of greedy decoding")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling")

    method: str = Field("zo-sgd", description="see: zoobj ls methods")
    directions: int = Field(1, ge=1, description="directions scored a step; with an overlay 8")
    one_sided: bool = Field(
        False,
        description="compare all directions with one score at theta, not each with its opposite",
    )
    momentum: float = Field(
        0.9, gt=0, lt=1, description="of zo-momentum: what is left of a step in the next"
    )
    adam_beta1: float = Field(0.9, gt=0, lt=1, description="of zo-adam, fo-adam: of the mean step")
    adam_beta2: float = Field(
        0.999, ge=0, lt=1, description="of zo-adam, fo-adam: of the mean square"
    )
    adam_epsilon: float = Field(1e-8, ge=0, description="of zo-adam, fo-adam: added to its root")
    svrg_interval: int = Field(4, ge=2, description="of zo-svrg: steps between anchors")
    anchor_batches: int = Field(
        4, ge=1, description="of zo-svrg: minibatches that an anchor is scored on"
    )
    fo_layers: int | None = Field(
        None, ge=1, description="move the last so many layers by gradients, the rest by the method"
    )
    fo_learning_rate: float = Field(1e-2, gt=0, description="of fo_layers")
    surrogate: Literal["loglikelihood"] | None = Field(
        None, description="what gradients are of, where the objective has none"
    )
    max_grad_norm: float | None = Field(
        None, gt=0, description="scale gradients down to this norm; lomo, adalomo: twice the time"
    )
    max_grad_value: float | None = Field(
        None, gt=0, description="cut each element of a gradient off at +/- this"
    )
    gradient_checkpointing: bool = Field(
        False, description="work activations out twice rather than keep them for gradients"
    )
    weight_decay: float = Field(
        0.0, ge=0, description="decoupled: weights shrink by learning_rate times this each step"
    )
    decay_to_base: bool = Field(
        False, description="weight_decay pulls towards the base's weights instead of 0"
    )
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="change of a weight in a typical step, without normalize MeZO's; other "
        "defaults with an overlay and of first-order methods",
    )
    lr_scheduler_type: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = Field("linear", description="course of the learning rate over the budget; transformers'")
    lr_scheduler_kwargs: dict[str, Any] | None = Field(
        None, description="more of that scheduler's, as in '{min_lr_rate: 0.1}'"
    )
    warmup_steps: float = Field(
        0.0, ge=0, description="steps in which the learning rate rises; below 1 a share of all"
    )
    eps: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="perturbation of each weight; auto: steered by how many examples flip"
    )
    flip_target: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of examples to flip between offsets, with eps auto; default: 0.4, with "
        "a tie-breaker 0.2",
    )
    noise: Literal["rademacher", "gaussian", "sphere"] = Field(
        "rademacher", description="directions; rademacher: +/-1, the fastest"
    )
    tune: Literal["auto", "full", "steer", "scale", "lora", "prompt"] = Field(
        "auto",
        description="what is tuned: all weights (full), or beside them vectors added after layers, "
        "factors on norms, low-rank products beside linear layers, tokens before the prompt",
    )
    tune_layers: str | None = Field(
        None,
        description="where: numbers of layers (3, 10:, 2:8) or patterns of names, as in "
        "'*.mlp.*,*norm*'; default all, but of an overlay every nth layer",
    )
    num_virtual_tokens: int = Field(8, ge=1, description="of --tune prompt")
    prompt_tuning_init_text: str = Field(
        "\n", description="text whose tokens, over and over, they begin as"
    )
    density: float = Field(1.0, gt=0, le=1, description="share of the weights that move at all")
    blocks: int = Field(
        1, ge=1, description="cut the tensors into so many runs; each direction moves only one"
    )
    shaping: Literal["rank", "zscore", "sign"] = Field(
        "rank", description="of the values of a step, by --method population"
    )
    normalize: bool = Field(True, description="divide differences by their running size")
    per_device_train_batch_size: int = Field(
        64, ge=1, description="examples scored at each offset; with an overlay 8"
    )
    per_device_eval_batch_size: int = Field(
        64, ge=1, description="sequences in one forward pass, in training too"
    )
    race: float | None = Field(
        None,
        gt=0,
        description="score a minibatch in parts, and stop a pair whose difference is larger than "
        "so many standard errors",
    )
    grow_batch: int = Field(
        1, ge=1, description="most times a minibatch grows while more than half of the pairs tie"
    )
    max_evals: int | None = Field(None, ge=1, description="budget in scored training examples")
    max_steps: int | None = Field(None, ge=1, description="budget in steps")
    max_seconds: float | None = Field(
        None, gt=0, description="budget in seconds of steps and evaluations"
    )
    max_reward_calls: int | None = Field(
        None, ge=1, description="stop before the objective is called more often on a batch"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many validations without a better value"
    )
    early_stopping_threshold: float = Field(
        0.0, ge=0, description="by how much a value must be better to count"
    )
    target_value: float | None = Field(None, description="stop once validation reaches it")
    eval_steps: int = Field(25, ge=1, description="steps between validations")
    seed: int = Field(0, ge=0, lt=2**63, description="of directions, data order and sampling")

    output_dir: str = Field("zoobj-run", description="run folder")
    overwrite_output_dir: bool = Field(False, description="replace an earlier run there")
    resume_from_checkpoint: bool | str = Field(
        False,
        description="continue the run in output_dir, or in the run folder given here; auto: if any",
    )
    branch_from: str | None = Field(
        None, description="begin where another run stood: its folder or log, and @STEP"
    )
    save_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; none: the log brings back any step"
    )
    save_total_limit: int | None = Field(
        None, ge=1, description="most checkpoints kept, the one best on validation among them"
    )
    logging_steps: int = Field(1, ge=1, description="steps between reports to callbacks")
    report_to: str = Field(
        "none", description="tensorboard, trackio, wandb, ...; several by commas"
    )
    run_name: str | None = Field(None, description="of the run, in trackers")
    project: str = Field("zoobj", description="of the run, in trackers that have projects")
    sample_steps: int = Field(
        50, ge=1, description="steps between tables of samples, where stderr is a terminal"
    )
    disable_tqdm: bool = Field(False, description="no progress bar")
    push_to_hub: bool = Field(False, description="upload the tuned model at the end")
    hub_model_id: str | None = Field(None, description="where to; default: output_dir's name")
    hub_private_repo: bool = Field(False, description="make it private where it is new")

    @field_validator("resume_from_checkpoint", mode="before")
    @classmethod
    def _words_for_bool(cls, value: Any) -> Any:
        """Flags arrive as text; what is no word for yes or no is a path."""
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return words.get(value.lower(), value) if isinstance(value, str) else value

    @field_validator("objective", "tie_breaker", "lr_scheduler_kwargs", mode="before")
    @classmethod
    def _list_in_a_flag(cls, value: Any) -> Any:
        """Flags arrive as text; a list or mapping is written as in YAML."""
        if not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
            return value
        import yaml

        try:
            return yaml.safe_load(value)
        except Exception as error:  # PyYAML lets through what its constructors of values raise
            raise ValueError(f"it is not YAML: {error}") from None

    def __init__(self, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UserError(_explain(error)) from None
        self.__dict__ |= self._usual()  # not by assignment: nobody has told them

    def _usual(self) -> dict[str, Any]:
        """Defaults that depend on what is tuned, and how."""
        usual = _BY_GRADIENTS.get(self.method, _WITH_OVERLAY.get(self.tune, {}))
        return {key: value for key, value in usual.items() if key not in self.model_fields_set}


def with_defaults(args: ZOConfig) -> ZOConfig:
    """The settings with the defaults of what is tuned now, where nobody has told others."""
    settled = args.model_copy()
    settled.__dict__ |= args._usual()
    return settled


# Settings of some methods; see ``Estimator.takes`` and ``Estimator.allows``.
OF_METHODS = {
    *("normalize", "one_sided", "shaping", "momentum"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "svrg_interval", "anchor_batches"),
    *("tie_breaker", "race", "grow_batch"),
}
DIFFERENTIABLE = "loglikelihood"  # the objective that has a gradient; others may have it trained on
# Settings of gradients, of how far to look, and of directions, which gradients have no use for.
OF_GRADIENTS = ("max_grad_norm", "max_grad_value", "gradient_checkpointing", "surrogate")
OF_EPS = ("eps", "flip_target")
OF_DIRECTIONS = (
    *("directions", *OF_EPS, "noise", "density", "blocks"),
    *("fo_layers", "fo_learning_rate"),
)
# What may differ between a run and its continuation; all else would make it another run. Models and
# data are known by their fingerprints, so that they may be moved.
MAY_CHANGE_ON_RESUME = {
    *("model_name_or_path", "gguf_file", "device_map", "trust_remote_code"),
    *("train_file", "validation_file", "test_file"),
    *("per_device_eval_batch_size", "gradient_checkpointing"),
    *("max_evals", "max_steps", "max_seconds", "max_reward_calls", "target_value"),
    *("max_failed", "reward_workers", "reward_timeout", "reward_retries", "reward_memory"),
    *("reward_cache", "early_stopping_patience", "early_stopping_threshold"),
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "branch_from"),
    *("save_steps", "save_total_limit", "logging_steps", "sample_steps", "disable_tqdm"),
    *("report_to", "run_name", "project", "push_to_hub", "hub_model_id", "hub_private_repo"),
}
# What a continued run does not take from the settings it had; a branch takes less.
_OF_ONE_CALL = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"}
_OF_ONE_RUN = {"branch_from", "run_name", "push_to_hub", "hub_model_id", "hub_private_repo"}


def taken_over(args: ZOConfig, earlier: dict[str, Any], branch: bool) -> ZOConfig:
    """The settings, with those that were left open as an earlier run had them."""
    left_out = {*args.model_fields_set, *_OF_ONE_CALL, *(_OF_ONE_RUN if branch else ())}
    inherited = {key: value for key, value in earlier.items() if key not in left_out}
    return ZOConfig(**inherited, **args.model_dump(include=args.model_fields_set))


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of a YAML file; its keys are the flags' names.

    Raises:
        UserError: no such file, no mapping, or an unknown key, with the closest one.
    """
    settings = read_yaml(path)
    settings.pop("environment", None)  # what a run folder's own config.yaml adds, for the record
    for key in settings:
        if key not in ZOConfig.model_fields:
            raise UserError(f"{path}: unknown key {key!r}{_key_hint(str(key))}")
    return settings


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A mapping in a YAML file.

    Raises:
        UserError: no such file, or no mapping.
    """
    import yaml

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = file.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except Exception as error:  # PyYAML lets through what its constructors of values raise
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of settings is needed, as in 'eps: 0.001'")
    keys = [key.value for key, _ in node.value] if node else []
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{path}: key {twice[0]!r} is there twice: keep one")
    return content


def _key_hint(key: str) -> str:
    return closest(key, ZOConfig.model_fields) or "; see: zoobj train --help"


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = str(problem["loc"][0])  # what follows is pydantic's: a type of several
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key!r}{_key_hint(key)}"
    return f"{key} {_shown(problem['input'])}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _shown(value: Any) -> str:
    """A value for a message, cut where it is as long as a file."""
    short = reprlib.Repr()
    short.maxstring, short.maxother, short.maxlevel = 100, 100, 2
    try:
        return short.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "of so many digits"
