"""ZOConfig: every setting of a run. YAML keys, command-line flags and fields are the same names."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoobj.errors import UserError, closest
from zoobj.models import TINY_QA


class ZOConfig(BaseModel):
    """Settings of a run; an unknown one is an error. Descriptions are the flags' help."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    model_name_or_path: str = Field(TINY_QA, description="embedded model, folder or hub id")
    gguf_file: str | None = Field(None, description="GGUF file in that folder; dequantised")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto: the checkpoint's own"
    )
    device_map: str | None = Field(None, description="left to transformers")
    trust_remote_code: bool = Field(False, description="as in transformers")

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

    objective: str | None = Field(None, description="name, file.py:function; default: the task's")
    on_error: Literal["drop", "raise", "floor"] = Field(
        "drop", description="what becomes of an example that could not be scored"
    )
    do_sample: bool = Field(False, description="draw completions instead of greedy decoding")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    top_p: float = Field(1.0, gt=0, le=1, description="of sampling")

    method: str = Field("zo-sgd", description="see: zoobj ls methods")
    learning_rate: float = Field(
        1e-3, gt=0, description="change of a weight in a typical step; without normalize MeZO's"
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="course of the learning rate, to 0 at the end of the budget"
    )
    eps: float = Field(5e-3, gt=0, description="perturbation of each weight")
    noise: Literal["rademacher", "gaussian", "sphere"] = Field(
        "rademacher", description="directions; rademacher: +/-1, the fastest"
    )
    tune: str | None = Field(
        None, description="patterns of the parameters to tune, as in '*.mlp.*,*norm*'; default all"
    )
    density: float = Field(1.0, gt=0, le=1, description="share of the weights that move at all")
    normalize: bool = Field(True, description="divide differences by their running size")
    per_device_train_batch_size: int = Field(64, ge=1, description="examples scored at each offset")
    per_device_eval_batch_size: int = Field(
        64, ge=1, description="sequences in one forward pass, in training too"
    )
    max_evals: int | None = Field(None, ge=1, description="budget in scored training examples")
    max_steps: int | None = Field(None, ge=1, description="budget in steps")
    eval_steps: int = Field(25, ge=1, description="steps between validations")
    seed: int = Field(0, ge=0, lt=2**63, description="of directions, data order and sampling")

    output_dir: str = Field("zoobj-run", description="run folder")
    overwrite_output_dir: bool = Field(False, description="replace an earlier run there")
    resume_from_checkpoint: bool = Field(False, description="continue the run in output_dir")
    disable_tqdm: bool = Field(False, description="no progress bar")

    def __init__(self, **settings: Any):
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise UserError(_explain(error)) from None


# What may differ between a run and its continuation; all else would make it another run.
MAY_CHANGE_ON_RESUME = {
    "max_evals",
    "max_steps",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "per_device_eval_batch_size",
}


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of a YAML file; its keys are the flags' names.

    Raises:
        UserError: no such file, no mapping, or an unknown key, with the closest one.
    """
    import yaml

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--config {path}: no such file")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"--config {path}: a mapping of settings is needed, as in 'eps: 0.001'")
    settings.pop("environment", None)  # what a run folder's own config.yaml adds, for the record
    for key in settings:
        if key not in ZOConfig.model_fields:
            raise UserError(f"--config {path}: unknown key {key!r}{_key_hint(str(key))}")
    return settings


def _key_hint(key: str) -> str:
    return closest(key, ZOConfig.model_fields) or "; see: zoobj train --help"


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key!r}{_key_hint(key)}"
    return f"{key} {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
