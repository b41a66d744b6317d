"""Load a model and its tokenizer with transformers, ready to be scored and tuned."""

import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoobj.errors import UserError, closest, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

TINY_QA = "tiny-qa"
EMBEDDED = {TINY_QA: Path(__file__).parent / "assets" / "tiny_qa"}
_ADAPTER, _OVERLAY = "adapter_config.json", "overlay.safetensors"  # of peft, and zoobj's own
_MARKS = ("config.json", _ADAPTER, _OVERLAY)  # of a folder with something to load
DTYPES = ("auto", "float32", "bfloat16", "float16")

logger = logging.getLogger(__name__)


def load_model(
    model_name_or_path: str,
    *,
    gguf_file: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    packed: bool = False,
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer padding on the left.

    Args:
        model_name_or_path: an embedded model (``tiny-qa``), a folder, or a hub id. A folder with an
            adapter of peft gives its base with the adapter on it, which alone is trainable.
        gguf_file: name of a GGUF file in that folder or repository.
        dtype: "auto" takes the checkpoint's own.
        device_map: left to transformers (needs accelerate); without it the model goes to the
            first GPU where there is one, else stays on the CPU.
        trust_remote_code: as in transformers.
        packed: leave the weights of a GGUF file as small as they are, where transformers can; such
            weights can't be written, but an overlay needs no more.

    Raises:
        UserError: no such model, or one that can't be loaded, with the remedy.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _locate(model_name_or_path, gguf_file)
    if gguf_file is not None and find_spec("gguf") is None:
        raise UserError("--gguf_file needs the package gguf: pip install 'zoobj[gguf]'")
    has = {name for name in _MARKS if gguf_file is None and (Path(source) / name).is_file()}
    if _OVERLAY in has and "config.json" not in has:  # with it the overlay is in the weights
        return _load_overlay(Path(source), dtype, device_map, trust_remote_code)
    if _ADAPTER in has:
        return _load_adapter(source, dtype, device_map, trust_remote_code)
    torch_dtype = _dtype(dtype)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch_dtype,
            device_map=device_map,
            output_loading_info=True,
            **options,
            **({} if packed else _dequantised(gguf_file)),
        )
    except Exception as error:  # transformers, safetensors and gguf each have their own kinds
        raise UserError(
            f"model {model_name_or_path!r} can't be loaded: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {model_name_or_path!r} lacks weights of a causal language model, such as "
            f"{missing[0]} (of {len(missing)}): they would be random"
        )
    if device_map is None:
        model = model.to(default_device())
    return model, tokenizer


def _load_adapter(
    folder: str, dtype: str, device_map: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """The base that an adapter names, with the adapter, and the tokenizer beside it."""
    from transformers import AutoTokenizer

    if find_spec("peft") is None:
        raise UserError(f"model {folder!r} is an adapter: pip install 'zoobj[peft]'")
    from peft import PeftModel

    try:
        config = json.loads((Path(folder) / _ADAPTER).read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"model {folder!r}: its {_ADAPTER} names no base: {error}") from error
    if not isinstance(base, str):
        raise UserError(f"model {folder!r}: its {_ADAPTER} names no base")
    model, tokenizer = load_model(
        base, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
    )
    try:
        if (Path(folder) / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return PeftModel.from_pretrained(model, folder, is_trainable=True), tokenizer
    except Exception as error:  # peft and safetensors each have their own kinds
        raise UserError(
            f"adapter {folder!r} can't be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _load_overlay(
    folder: Path, dtype: str, device_map: str | None, trust_remote_code: bool
) -> tuple[Any, Any]:
    """The base that an overlay names, with the overlay, and its tokenizer."""
    from zoobj.overlay import load_overlay, read_facts

    base: Any = read_facts(folder).get("base")
    name = base.get("model_name_or_path") if isinstance(base, dict) else None
    if not name or not isinstance(name, str):
        raise UserError(
            f"overlay {str(folder)!r} names no base: load that, and load_overlay(model, folder)"
        )
    model, tokenizer = load_model(
        **base,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        packed=True,
    )
    load_overlay(model, folder)
    return model, tokenizer


def base_weights(model_name_or_path: str) -> dict[str, "Tensor"]:
    """The weights of a checkpoint by name, memory-mapped: pages are read when they are needed.

    What decay can pull towards: ``Walk(..., anchor=base_weights("tiny-qa"))``.

    Args:
        model_name_or_path: as for ``load_model``; a checkpoint in safetensors.

    Raises:
        UserError: no such checkpoint, or none in safetensors.
    """
    from safetensors.torch import load_file
    from transformers.utils import cached_file

    source = _locate(model_name_or_path, None)
    for name in ("model.safetensors.index.json", "model.safetensors"):
        try:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise UserError(f"model {model_name_or_path!r}: {_first_line(error)}") from error
        if found is None:
            continue
        files = {name}
        if name.endswith(".json"):
            files = set(json.loads(Path(found).read_text())["weight_map"].values())
        paths = [cached_file(source, file) for file in sorted(files)]
        return {key: value for path in paths for key, value in load_file(path).items()}
    raise UserError(
        f"model {model_name_or_path!r} has no model.safetensors: write one with save_pretrained"
    )


def prepare(model: Any, tokenizer: Any) -> None:
    """What scoring relies on: evaluation mode, left padding, a pad token.

    On a CPU oneDNN keeps what it compiled for each shape of a batch, 1024 of them by default, in
    bfloat16 some 0.7 GB after a few steps. What one batch needs is a few dozen, so that is what it
    keeps here, unless the environment says otherwise or oneDNN was at work before.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    for name, config in getattr(model, "peft_config", {}).items():
        if config.is_prompt_learning:
            raise UserError(
                f"adapter {name!r} is {config.peft_type.value}: adapters that put tokens before "
                "the prompt lose the positions of padded rows; use one that changes weights"
            )
    model.eval()
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad, eos or unk token: set tokenizer.pad_token")


def warn_of_emulation(model: Any) -> None:
    """Say so where the CPU works out bfloat16 in float32, 2 to 4 times slower than float32."""
    import torch

    if model.dtype is not torch.bfloat16 or model.device.type != "cpu":
        return
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.6
    has = told.get("avx512_bf16") or told.get("amx_bf16")
    if told.get("architecture") == "x86_64" and not has:
        logger.warning(
            "the model is in bfloat16, which this CPU does not compute in: --dtype float32 takes "
            "twice the memory and less time"
        )


def context_length(model: Any) -> int | None:
    """Most tokens the model takes, None where its configuration does not say."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def _dtype(name: str) -> Any:
    import torch

    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}{did_you_mean(name, DTYPES)}")
    return "auto" if name == "auto" else getattr(torch, name)


def _dequantised(gguf_file: str | None) -> dict[str, Any]:
    """Newer transformers leave GGUF weights packed unless told; older ones always unpack them."""
    import transformers

    if gguf_file is None or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def default_device() -> str:
    """The first GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _locate(name: str, gguf_file: str | None) -> str:
    """Where to load from, after the checks that save the user a long wait and a long message."""
    if name in EMBEDDED:
        return str(EMBEDDED[name])
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path, gguf_file)
    if path.exists():
        raise UserError(
            f"model {name!r} is a file; give its folder"
            + (f" and --gguf_file {path.name}" if path.suffix == ".gguf" else "")
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        neighbours = [folder.name for folder in path.parent.glob("*/")]
        raise UserError(f"model {name!r}: no such folder{closest(path.name, neighbours)}")
    _check_hub(name, gguf_file)
    return name


def _checked_folder(path: Path, gguf_file: str | None) -> str:
    if gguf_file is None and not any((path / name).is_file() for name in _MARKS):
        ggufs = sorted(file.name for file in path.glob("*.gguf"))
        remedy = f"add --gguf_file {ggufs[0]}" if ggufs else "give a folder with a saved model"
        raise UserError(f"model {str(path)!r}: no config.json in this folder; {remedy}")
    if gguf_file is not None and not (path / gguf_file).is_file():
        files = [file.name for file in path.glob("*.gguf")]
        raise UserError(f"no file {gguf_file!r} in {str(path)!r}{did_you_mean(gguf_file, files)}")
    return str(path)


def _check_hub(name: str, gguf_file: str | None) -> None:
    """Ask the hub once; from_pretrained would retry for a minute where there is no network."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    missing, hint = f"model {name!r}: no folder here", closest(name, EMBEDDED)
    try:
        if isinstance(try_to_load_from_cache(name, gguf_file or "config.json"), str):
            return
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"{missing}, none in the cache, and HF_HUB_OFFLINE is set{hint}")
        HfApi().model_info(name, timeout=10)
    except UserError:
        raise
    except HFValidationError:
        raise UserError(f"{missing}, and not a hub id either{hint}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{missing}, and none on the hub (or it is private: log in){hint}"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"{missing}, and the hub answered: {_first_line(error)}") from None
    except Exception as error:  # whatever the HTTP client of the day raises without a network
        logger.debug("hub not reached", exc_info=error)
        raise UserError(
            f"{missing}, and the hub can't be reached: check the network{hint}"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
