"""What a tuned model is compared with: itself, a prompt with examples, a probe of what it knows."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoobj.assemble import make_model, make_task
from zoobj.config import ZOConfig
from zoobj.errors import UserError
from zoobj.evaluation import evaluate
from zoobj.models import context_length
from zoobj.objective import as_objective
from zoobj.outcome import judge
from zoobj.scoring import as_batch
from zoobj.task import Example

_PROBED = 1000  # training examples of a linear probe, at most
_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation, chosen on validation


@dataclass(frozen=True)
class Baseline:
    """A held-out value, how it was had and how long that took, loading included."""

    name: str
    value: float
    seconds: float


def zero_shot(args: ZOConfig) -> Baseline:
    """The model as it is."""
    return _scored("zero-shot", args)


def in_context(args: ZOConfig, count: int) -> Baseline:
    """The model as it is, with examples of train before every prompt (T. Brown et al. 2020)."""
    return _scored(f"in context, {count} examples", args.model_copy(update={"num_fewshot": count}))


def _scored(name: str, args: ZOConfig) -> Baseline:
    start = time.perf_counter()
    told = evaluate(args, "test", args.max_test_samples)
    return Baseline(name, told["value"], time.perf_counter() - start)


def linear_probe(args: ZOConfig) -> Baseline:
    """Logistic regression on the last hidden state of the prompt's last token, by scikit-learn.

    It knows the labels of up to 1,000 training examples; its regularisation is chosen by the
    objective on validation (G. Alain, Y. Bengio, arXiv 1610.01644, 2016).

    Raises:
        UserError: the task is not one of choices that are the same for all rows.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    start, task = time.perf_counter(), make_task(args)
    if task.output != "choices":
        raise UserError(f"task {task.name} generates text: a linear probe is for choices")
    limits = (args.max_train_samples or _PROBED, args.max_eval_samples, args.max_test_samples)
    splits = zip(("train", "validation", "test"), limits, strict=True)
    examples = {split: task.examples(split, limit) for split, limit in splits}
    if len({tuple(e.choices or []) for split in examples.values() for e in split}) > 1:
        raise UserError(f"task {task.name}: rows have choices of their own: no linear probe")
    objective = as_objective(args.objective or task.objective)
    model, tokenizer = make_model(args)
    features = {split: _features(args, model, tokenizer, es) for split, es in examples.items()}

    def value(probe: Any, split: str) -> float:
        return judge(objective, _predicted(probe, features[split], examples[split])).value

    def fitted(strength: float) -> Any:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        return probe.fit(features["train"], [e.reference for e in examples["train"]])

    sign = 1 if objective.higher_is_better else -1
    best = max(map(fitted, _STRENGTHS), key=lambda probe: sign * value(probe, "validation"))
    return Baseline("linear probe", value(best, "test"), time.perf_counter() - start)


def _features(args: ZOConfig, model: Any, tokenizer: Any, examples: list[Example]) -> np.ndarray:
    """[n, hidden] float32."""
    import torch

    size, rows = args.per_device_eval_batch_size, []
    limit = min(args.max_prompt_length or 10**9, context_length(model) or 10**9)
    for start in range(0, len(examples), size):
        prompts = [example.prompt for example in examples[start : start + size]]
        told = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
        told = {name: told[name][:, -limit:] for name in ("input_ids", "attention_mask")}
        positions = (told["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            out = model(**told, position_ids=positions, output_hidden_states=True, use_cache=False)
        rows.append(out.hidden_states[-1][:, -1].float().cpu())
    return torch.cat(rows).numpy()


def _predicted(probe: Any, features: np.ndarray, examples: list[Example]) -> Any:
    """The batch of a model that answers as the probe does."""
    known, count = probe.classes_, len(examples[0].choices or [])
    scores = np.full((len(examples), count), -1e9)  # a class that train lacks is never predicted
    scores[:, known] = probe.predict_log_proba(features)
    labels = scores.argmax(1).tolist()
    return as_batch(
        examples,
        predictions=labels,
        label_scores=scores.tolist(),
        completions=[(e.choices or [])[i] for e, i in zip(examples, labels, strict=True)],
        reference_logprob=[float(s[e.reference]) for e, s in zip(examples, scores, strict=True)],
    )
