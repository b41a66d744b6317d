"""A classifier of Hugging Face as a reward model: a black box that reads prompt and completion."""

from typing import Any

from zoobj.errors import UserError, did_you_mean
from zoobj.objective import Batch, Bounds, Objective, Score


class RewardModel(Objective):
    """The logit that a sequence classification model gives to a prompt with its completion.

    ``reward_model:path_or_hub_id`` on the command line. Where its tokenizer has a chat template,
    the two are a user's and the assistant's message, else one text with a space between them. Of
    what is longer than the model reads, the last tokens are kept. No gradients; the model stays as
    it is.
    Scores of one example in other batches differ by rounding: ask for float64 where that matters.

    Args:
        model: path or hub id; or a model, then with its tokenizer.
        label: index or name of the label, needed where there are several.
        tokenizer: of a model given as an object.
        batch_size: examples in one forward pass; 1 if the tokenizer has no padding token.
        device: by default a GPU if there is one, for a model object where it is.
        dtype: of the weights, "auto" for the checkpoint's own.
        max_length: tokens, by default what the model reads.
        name: in logs and results.
        higher_is_better: False for the logit of something bad.
        bounds: (lowest, highest) logit, unknown by default; needed for ``on_error=floor``.

    Raises:
        UserError: it can't be loaded, is no trained classifier, or the label is not one of its own.
    """

    def __init__(
        self,
        model: Any,
        label: int | str | None = None,
        tokenizer: Any = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "auto",
        max_length: int | None = None,
        name: str = "reward_model",
        higher_is_better: bool = True,
        bounds: Bounds = (None, None),
    ):
        if isinstance(model, str):
            model, tokenizer = _loaded(model, device, dtype)
        elif tokenizer is None:
            raise UserError("reward_model: a model object needs its tokenizer: give tokenizer=")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.label = _label(model.config, label)
        reads = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self.max_length = max_length or min(reads, tokenizer.model_max_length)
        padded = tokenizer.pad_token is not None and model.config.pad_token_id is not None
        self.batch_size = batch_size if padded else 1
        self.higher_is_better, self.bounds = higher_is_better, tuple(bounds)  # type: ignore[assignment]

    def score(self, batch: Batch) -> list[Score]:
        assert batch.completions is not None
        pairs = list(zip(batch.prompts, batch.completions, strict=True))
        scores: list[Score] = []
        for start in range(0, len(pairs), self.batch_size):
            scores += self._logits(pairs[start : start + self.batch_size])
        return scores

    def _logits(self, pairs: list[tuple[str, str]]) -> list[float]:
        import torch

        tokens = [self._tokens(*pair)[-self.max_length :] for pair in pairs]
        longest = max(map(len, tokens))
        padding = self.tokenizer.pad_token_id or 0  # without one there is nothing to fill
        ids = torch.tensor([line + [padding] * (longest - len(line)) for line in tokens])
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in tokens])
        device = next(self.model.parameters()).device
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device))
        finally:
            self.model.train(was_training)
        return [float(logit) for logit in output.logits[:, self.label]]

    def _tokens(self, prompt: str, completion: str) -> list[int]:
        if not self.tokenizer.chat_template:
            space = "" if prompt[-1:].isspace() else " "  # a completion comes stripped
            return list(self.tokenizer(f"{prompt}{space}{completion}")["input_ids"])
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _loaded(path: str, device: str | None, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        with torch.random.fork_rng(devices=[]):  # a head that is missing would be drawn
            model, told = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # whatever configurations, files and HTTP clients raise
        raise UserError(
            f"reward_model {path!r} can't be loaded: {type(error).__name__}: {error}; give the "
            "folder or hub id of a sequence classification model"
        ) from error
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"reward_model {path!r} is no trained classifier: it has no weights for {missing[0]}"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval().requires_grad_(False).to(device), tokenizer


def _label(config: Any, label: int | str | None) -> int:
    """The place of the label among the logits."""
    names = {str(name): int(place) for place, name in config.id2label.items()}
    if label is None and config.num_labels == 1:
        return 0
    if label is None:
        raise UserError(
            f"reward_model has {config.num_labels} labels: say which one is good, as in "
            f"label={next(iter(names))}; it has {', '.join(names)}"
        )
    if isinstance(label, int) and 0 <= label < config.num_labels:
        return label
    if str(label) not in names:
        raise UserError(f"reward_model has no label {label!r}{did_you_mean(str(label), names)}")
    return names[str(label)]
