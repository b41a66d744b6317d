"""zoobj.scoring against a plain twin: one prompt at a time, no padding, no cache, a loop.

The model is a Llama of random weights: its text is nonsense, but the nonsense is determined.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from zoobj.errors import UserError
from zoobj.models import prepare
from zoobj.objective import Batch
from zoobj.scoring import Sampling, Scorer
from zoobj.task import Example, Row, Task

PROMPTS = [
    "Question: Where did the mill stand? Answer:",
    "x",
    "The old mill stood by the river, and the miller's cat sat on the wall. One",
    "caf\u00e9 na\u00efve \u4f60\u597d \U0001f600",
    "Review: a stirring, funny film\nThe movie was",
    "one two three one two three one two three",
    "a b",
    "\n\n",
    "The cat",
]
# Label words of one token and of many, some with a common beginning.
CANDIDATES = ["g", "the", "great film", "great film\nindeed", "\u4f60\u597d", "m", "mill"]
NEW_TOKENS = 8

few = settings(
    max_examples=8,
    phases=(Phase.explicit, Phase.generate),  # to shrink a failure would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Continue(Task):
    """Generation: a row is a prompt."""

    name = "continue"
    stop = ()
    max_new_tokens = NEW_TOKENS

    def prompt(self, row: Row) -> str:
        return str(row["text"])

    def reference(self, row: Row) -> list[str]:
        return list(row.get("answers", ["the mill"]))


class Choose(Task):
    """Choices: a row is a prompt and its candidates."""

    name = "choose"
    output = "choices"
    max_new_tokens = NEW_TOKENS

    def prompt(self, row: Row) -> str:
        return str(row["text"])

    def reference(self, row: Row) -> int:
        return int(row.get("label", 0))

    def choices(self, row: Row) -> list[str]:
        return list(row.get("choices", CANDIDATES))


def examples(task: Task, prompts: Sequence[str] = PROMPTS, **columns: Any) -> list[Example]:
    task.files["test"] = [{"text": prompt, **columns} for prompt in prompts]
    return [
        Example(
            index=i,
            prompt=task.prompt(row),
            reference=task.reference(row),
            row=row,
            choices=task.choices(row) if task.output == "choices" else None,
        )
        for i, row in enumerate(task.files["test"])
    ]


Make = Callable[..., Scorer]


@pytest.fixture
def scorer(model: Any, tokenizer: Any) -> Make:
    """Makes scorers: ``scorer(task, batch_size=3, ...)``."""

    def make(task: Task, **settings: Any) -> Scorer:
        return Scorer(**({"model": model, "tokenizer": tokenizer, "task": task} | settings))

    return make


# The twin -------------------------------------------------------------------------------------


@torch.no_grad()
def next_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """[V] logits of the token after these."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1].float()


def greedy(model: Any, ids: list[int], eos: set[int], steps: int = NEW_TOKENS) -> list[int]:
    """New tokens before the first eos."""
    new: list[int] = []
    for _ in range(steps):
        token = int(next_logits(model, ids + new).argmax())
        if token in eos:
            break
        new.append(token)
    return new


def twin_text(scorer: Scorer, prompt: str, stop: Sequence[str] = ()) -> str:
    tokenizer, eos = scorer.tokenizer, {scorer.tokenizer.eos_token_id}
    ids = tokenizer(prompt)["input_ids"]
    text = tokenizer.decode(greedy(scorer.model, ids, eos), skip_special_tokens=True)
    ends = [text.index(string) for string in stop if string in text]
    return str(text[: min(ends, default=len(text))]).strip()


def twin_logprob(scorer: Scorer, prompt: str, answer: str) -> float:
    """Sum of log p(token | all before it) over the tokens of " answer"."""
    ids = scorer.tokenizer(prompt)["input_ids"]
    total = 0.0
    for token in scorer.tokenizer(f" {answer}")["input_ids"]:
        total += float(torch.log_softmax(next_logits(scorer.model, ids), -1)[token])
        ids = [*ids, token]
    return total


# Greedy text ----------------------------------------------------------------------------------


def test_the_twins_texts_differ(scorer: Make) -> None:
    """Else the tests below would show little."""
    texts = {twin_text(scorer(Continue()), prompt) for prompt in PROMPTS}
    assert len(texts) > len(PROMPTS) - 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_completions_are_those_of_the_twin(scorer: Make, batch_size: int) -> None:
    made = scorer(Continue(), batch_size=batch_size)
    batch = made(examples(made.task), {"completions"})
    assert batch.completions == [twin_text(made, prompt) for prompt in PROMPTS]
    assert batch.prompts == PROMPTS
    assert batch.rows == {"text": PROMPTS}
    assert (batch.predictions, batch.label_scores, batch.reference_logprob) == (None, None, None)


def test_stop_strings_cut_like_the_twin(scorer: Make) -> None:
    """Every short piece of the first texts becomes a stop string, alone and with others."""
    plain = [twin_text(scorer(Continue()), prompt) for prompt in PROMPTS]
    pieces = [text[i : i + width] for text in plain[:3] for width in (1, 3) for i in (0, 2, 4)]
    for stop in ([pieces[0]], [pieces[4]], pieces[2:4], pieces[5:9]):
        task = Continue()
        task.stop = tuple(stop)
        made = scorer(task, batch_size=4)
        batch = made(examples(task), {"completions"})
        assert batch.completions == [twin_text(made, prompt, stop) for prompt in PROMPTS]
        assert batch.completions != plain


def test_a_stop_string_over_the_end_of_the_prompt_is_none(scorer: Make, tokenizer: Any) -> None:
    """Stop strings end completions; what the prompt ends with is no part of one."""
    made = scorer(Continue())
    prompt = "The cat"
    first = tokenizer.decode(greedy(made.model, tokenizer(prompt)["input_ids"], set())[:1])
    made.task.stop = (prompt[-1] + first,)
    assert made.task.stop[0] not in twin_text(made, prompt)
    batch = made(examples(made.task, [prompt]), {"completions"})
    assert batch.completions == [twin_text(made, prompt)]


def test_decoding_ends_when_every_row_has_its_stop_string(
    fresh_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Scorer(fresh_model, tokenizer, Continue())
    steps = []
    seen = ids_seen(fresh_model, monkeypatch)
    for stop in ((), (twin_text(made, "a b")[1],)):
        made.task.stop = stop
        seen.clear()
        made(examples(made.task, ["a b"]), {"completions"})
        steps.append(len(seen))
    assert steps[0] == NEW_TOKENS
    assert steps[1] < NEW_TOKENS - 2


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_no_more_than_max_new_tokens(scorer: Make, tokenizer: Any, limit: int) -> None:
    made = scorer(Continue(max_new_tokens=limit))
    got = made(examples(made.task), {"completions"}).completions
    ids = [greedy(made.model, tokenizer(p)["input_ids"], {1}, limit) for p in PROMPTS]
    assert got == [tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]


def with_eos(model: Any, tokenizer: Any, token: str, position: int) -> None:
    """Make the model say a special token where it said its ``position``-th one for prompt 0."""
    usual = greedy(model, tokenizer(PROMPTS[0])["input_ids"], set())[position]
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = (
            2 * model.lm_head.weight[usual]
        )


def test_each_of_several_eos_tokens_ends_a_completion(fresh_model: Any, tokenizer: Any) -> None:
    with_eos(fresh_model, tokenizer, "<end>", 4)
    with_eos(fresh_model, tokenizer, "<eos>", 2)
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end>"])
    fresh_model.generation_config.eos_token_id = ends
    made = Scorer(fresh_model, tokenizer, Continue(), batch_size=4)
    got = made(examples(made.task), {"completions"}).completions
    ids = [greedy(fresh_model, tokenizer(p)["input_ids"], set(ends)) for p in PROMPTS]
    assert got == [tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]
    one = [greedy(fresh_model, tokenizer(p)["input_ids"], set(ends[:1])) for p in PROMPTS]
    two = [greedy(fresh_model, tokenizer(p)["input_ids"], set(ends[1:])) for p in PROMPTS]
    assert ids != one  # each of them ended some completion
    assert ids != two


def test_an_eos_token_that_is_not_marked_special_is_no_text(
    fresh_model: Any, tokenizer: Any
) -> None:
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    usual = greedy(fresh_model, prompt, set())
    fresh_model.generation_config.eos_token_id = usual[3]
    made = Scorer(fresh_model, tokenizer, Continue())
    (got,) = made(examples(made.task, PROMPTS[:1]), {"completions"}).completions or []
    assert got == tokenizer.decode(greedy(fresh_model, prompt, {usual[3]})).strip()


def test_the_models_own_ways_of_decoding_are_left_aside(fresh_model: Any, tokenizer: Any) -> None:
    """Chat models ship a temperature and a repetition penalty; a score is of plain decoding."""
    made = Scorer(fresh_model, tokenizer, Continue(), batch_size=4)
    plain = made(examples(made.task), {"completions"}).completions
    own = fresh_model.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty = True, 0.7, 5, 1.8
    own.no_repeat_ngram_size, own.num_beams = 1, 2
    assert made(examples(made.task), {"completions"}).completions == plain
    assert fresh_model.generation_config.repetition_penalty == 1.8  # and left as they were


# Log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_label_scores_are_those_of_the_twin(scorer: Make, batch_size: int) -> None:
    made = scorer(Choose(), batch_size=batch_size)
    batch = made(examples(made.task), {"label_scores"})
    assert batch.label_scores is not None
    for prompt, scores in zip(PROMPTS, batch.label_scores, strict=True):
        expected = [twin_logprob(made, prompt, text) for text in CANDIDATES]
        assert scores == pytest.approx(expected, abs=2e-5)
    best = [max(range(len(s)), key=s.__getitem__) for s in batch.label_scores]
    assert batch.predictions == best
    assert len(set(best)) > 1
    assert batch.completions == [CANDIDATES[label] for label in best]


def test_candidates_may_differ_by_row(scorer: Make) -> None:
    made = scorer(Choose(), batch_size=2)
    rows = [["a", "b"], ["one two three", "x", "a b c"], ["great", "bad"]]
    given = [
        Example(i, prompt, 0, {"text": prompt}, choices)
        for i, (prompt, choices) in enumerate(zip(PROMPTS, rows, strict=False))
    ]
    scores = made(given, {"label_scores"}).label_scores or []
    assert [len(line) for line in scores] == [2, 3, 2]
    for example, line in zip(given, scores, strict=True):
        expected = [twin_logprob(made, example.prompt, text) for text in example.choices or []]
        assert line == pytest.approx(expected, abs=2e-5)


def test_length_normalized_divides_by_the_tokens_of_each(scorer: Make, tokenizer: Any) -> None:
    task = Choose()
    plain = scorer(task)(examples(task), {"label_scores"}).label_scores or []
    task.length_normalized = True
    batch = scorer(task)(examples(task), {"predictions"})
    lengths = [len(tokenizer(f" {text}")["input_ids"]) for text in CANDIDATES]
    assert len(set(lengths)) > 2
    for normal, raw in zip(batch.label_scores or [], plain, strict=True):
        assert normal == pytest.approx([x / n for x, n in zip(raw, lengths, strict=True)])
    raw_best = [max(range(len(s)), key=s.__getitem__) for s in plain]
    assert batch.predictions != raw_best  # the choice is made by the normalised ones


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("also", [set(), {"predictions"}, {"label_scores"}])
def test_reference_logprob_of_choices(scorer: Make, also: set[str], normalized: bool) -> None:
    """A sum over tokens, whatever else is asked for and however choices are compared."""
    task = Choose()
    task.length_normalized = normalized
    made = scorer(task)
    batch = made(examples(task, label=2), {"reference_logprob"} | also)
    expected = [twin_logprob(made, prompt, CANDIDATES[2]) for prompt in PROMPTS]
    assert batch.reference_logprob == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_reference_logprob_of_generation_is_of_the_first_answer(
    scorer: Make, batch_size: int
) -> None:
    made = scorer(Continue(), batch_size=batch_size)
    batch = made(examples(made.task, answers=["by the river", "river"]), {"reference_logprob"})
    expected = [twin_logprob(made, prompt, "by the river") for prompt in PROMPTS]
    assert batch.reference_logprob == pytest.approx(expected, abs=2e-5)
    assert batch.completions is None


@pytest.mark.parametrize("task", [Continue(), Choose()], ids=["continue", "choose"])
def test_completion_ids_are_the_tokens_of_the_texts(
    scorer: Make, tokenizer: Any, task: Task
) -> None:
    batch = scorer(task)(examples(task), {"completion_ids"})
    assert batch.completions is not None
    assert batch.completion_ids is not None
    assert tokenizer.batch_decode(batch.completion_ids) == batch.completions
    assert not {*tokenizer.all_special_ids} & {i for ids in batch.completion_ids for i in ids}
    assert any(batch.completion_ids)


def test_text_and_likelihood_together(scorer: Make) -> None:
    made = scorer(Continue())
    both = made(examples(made.task), {"completions", "reference_logprob"})
    assert both.completions == made(examples(made.task), {"completions"}).completions
    alone = made(examples(made.task), {"reference_logprob"}).reference_logprob
    assert both.reference_logprob == pytest.approx(alone, abs=1e-6)


# Learned positions ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tokenizer: Any) -> Any:
    """Rotary positions, as of ``model``, are relative: a shift by the padding would not show."""
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=1
    )
    config.eos_token_id = 1
    with torch.random.fork_rng(devices=[]):
        made = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 0.4, generator=generator)
    prepare(made, tokenizer)
    return made


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_padding_takes_up_no_positions(gpt2: Any, tokenizer: Any, batch_size: int) -> None:
    text = Scorer(gpt2, tokenizer, Continue(), batch_size=batch_size)
    got = text(examples(text.task), {"completions", "reference_logprob"})
    assert got.completions == [twin_text(text, prompt) for prompt in PROMPTS]
    expected = [twin_logprob(text, prompt, "the mill") for prompt in PROMPTS]
    assert got.reference_logprob == pytest.approx(expected, abs=1e-4)


# However it is batched ------------------------------------------------------------------------


@st.composite
def batchings(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """The examples in any order, cut into any calls, scored with any batch size."""
    order = draw(st.permutations(range(len(PROMPTS))))
    cuts = sorted(draw(st.sets(st.integers(1, len(PROMPTS) - 1), max_size=3)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    return parts, draw(st.integers(1, len(PROMPTS)))


def scored(scorer: Scorer, parts: Iterator[list[int]], needs: set[str], seed: int) -> list[Any]:
    """One line for each example, in the order of PROMPTS."""
    given = examples(scorer.task, answers=["by the river"])
    lines: dict[int, Any] = {}
    for part in parts:
        batch = scorer([given[i] for i in part], needs, seed)
        columns = (batch.completions, batch.label_scores, batch.reference_logprob)
        for position, i in enumerate(part):
            lines[i] = [column and column[position] for column in columns]
    return [lines[i] for i in range(len(PROMPTS))]


SAMPLED = Sampling(temperature=1.3, top_p=0.9)


@few
@given(batchings(), st.sampled_from([None, SAMPLED]), st.integers(0, 2**53))
def test_text_does_not_depend_on_batching(
    scorer: Make, batching: Any, sampling: Sampling | None, seed: int
) -> None:
    parts, batch_size = batching
    whole = scorer(Continue(), sampling=sampling, batch_size=64)
    expected = scored(whole, [list(range(len(PROMPTS)))], {"completions"}, seed)
    made = scorer(Continue(), sampling=sampling, batch_size=batch_size)
    assert scored(made, parts, {"completions"}, seed) == expected


@few
@given(batchings())
def test_likelihood_does_not_depend_on_batching(scorer: Make, batching: Any) -> None:
    parts, batch_size = batching
    for task, need in ((Choose(), "label_scores"), (Continue(), "reference_logprob")):
        whole = scorer(task, batch_size=64)
        expected = scored(whole, [list(range(len(PROMPTS)))], {need}, 0)
        got = scored(scorer(task, batch_size=batch_size), parts, {need}, 0)
        for line, other in zip(got, expected, strict=True):
            assert line[1] == pytest.approx(other[1], abs=1e-5)
            assert line[2] == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_batches_that_do_not_fit_are_halved(
    scorer: Make, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Down to what fits, which is kept for later; one sequence that does not fit is an error."""
    made, limit = scorer(Continue(), batch_size=64), 3

    def full(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > limit:
            raise error("no memory left")

    hook = made.model.register_forward_pre_hook(full, with_kwargs=True)
    try:
        batch = made(examples(made.task), {"completions", "reference_logprob"})
        assert batch.completions == [twin_text(made, prompt) for prompt in PROMPTS]
        assert batch.reference_logprob is not None
        assert made.batch_size == 2
        halved = [record.getMessage() for record in caplog.records]
        assert halved[-1] == "out of memory: from here on 2 sequences in a forward pass"
        assert len(halved) == 5
        limit = 0
        with pytest.raises(error):
            made(examples(made.task), {"completions"})
    finally:
        hook.remove()


def test_other_errors_are_not_taken_for_lack_of_memory(scorer: Make) -> None:
    made = scorer(Continue(), batch_size=64)
    hook = made.model.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            made(examples(made.task), {"completions"})
    finally:
        hook.remove()
    assert made.batch_size == 64


def test_nothing_to_score(scorer: Make) -> None:
    for task, need in ((Continue(), "completions"), (Choose(), "label_scores")):
        assert scorer(task)([], {need}) == Batch([], [], **{need: [], **extra(task)})
    ids = {"completions": [], "completion_ids": []}
    assert scorer(Continue())([], {"completion_ids"}) == Batch([], [], **ids)


def extra(task: Task) -> dict[str, list[Any]]:
    return {"predictions": [], "completions": []} if task.output == "choices" else {}


def test_between_is_called_with_all_that_was_run(scorer: Make) -> None:
    calls: list[int] = []
    made = scorer(Continue(), batch_size=4, between=calls.append)
    made(examples(made.task), {"completions"})
    assert calls == [2, 2, 3, 2]  # rows of a batch, fewer where they are long


# Long prompts ---------------------------------------------------------------------------------


def ids_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows without their padding, as the model gets them from now on; later tokens one by one."""
    seen: list[list[int]] = []
    forward = model.forward

    def spy(input_ids: torch.Tensor, **rest: Any) -> Any:
        mask = rest.get("attention_mask")  # left away where nothing is padded
        masks = torch.ones_like(input_ids) if mask is None else mask[:, -input_ids.shape[1] :]
        pairs = zip(input_ids, masks.bool(), strict=True)
        seen.extend(row[kept].tolist() for row, kept in pairs)
        return forward(input_ids=input_ids, **rest)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", spy)
    return seen


@pytest.mark.parametrize("limit", [5, None])
def test_long_prompts_keep_their_last_tokens(
    fresh_model: Any, tokenizer: Any, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = limit or fresh_model.config.max_position_embeddings - NEW_TOKENS
    prompts = ["x", "y" * kept, "z" * (kept - 2) + "abcd", "The cat " * kept]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    seen = ids_seen(fresh_model, monkeypatch)
    made = Scorer(fresh_model, tokenizer, Continue(), max_prompt_length=limit)
    made(examples(made.task, prompts), {"completions"})
    assert sorted(row for row in seen if len(row) > 1) == sorted(line[-kept:] for line in ids[1:])
    long = sum(len(line) > kept for line in ids)
    assert 0 < long < len(prompts)
    assert made.truncated(examples(made.task, prompts)) == long


def test_a_long_prompt_scores_like_its_end(scorer: Make, tokenizer: Any) -> None:
    long = "The cat sat on the wall. " * 20
    ids = tokenizer(long)["input_ids"]
    end = tokenizer.decode(ids[-10:])
    assert tokenizer(end)["input_ids"] == ids[-10:]
    for task in (Continue(), Choose()):
        need = {"completions", "reference_logprob"}
        cut = scorer(task, max_prompt_length=10)(examples(task, [long]), need)
        short = scorer(task)(examples(task, [end]), need)
        assert cut.completions == short.completions
        assert cut.reference_logprob == pytest.approx(short.reference_logprob, abs=1e-5)


def test_an_answer_longer_than_max_new_tokens_fits_the_context(
    fresh_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models with learned positions crash beyond their context."""
    answer = "one two three four five six seven eight nine ten eleven twelve"
    assert len(tokenizer(answer)["input_ids"]) > NEW_TOKENS
    seen = ids_seen(fresh_model, monkeypatch)
    made = Scorer(fresh_model, tokenizer, Continue())
    made(examples(made.task, ["The cat " * 100], answers=[answer]), {"reference_logprob"})
    assert max(map(len, seen)) <= fresh_model.config.max_position_embeddings


def test_no_room_for_a_prompt(scorer: Make) -> None:
    with pytest.raises(UserError, match="leaves no room for a prompt in the model's context of 12"):
        scorer(Continue(max_new_tokens=128))


# Sampling -------------------------------------------------------------------------------------


def test_a_seed_is_a_text(scorer: Make) -> None:
    made = scorer(Continue(), sampling=Sampling(), batch_size=4)
    given = examples(made.task)
    texts = [made(given, {"completions"}, seed).completions for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    same = sum(a == b for a, b in zip(texts[0] or [], texts[2] or [], strict=True))
    assert same <= 1


def test_equal_prompts_draw_different_texts(scorer: Make) -> None:
    made = scorer(Continue(), sampling=Sampling())
    texts = made(examples(made.task, PROMPTS[:1] * 8), {"completions"}).completions or []
    assert len(set(texts)) == 8


def test_no_global_random_state_is_touched_or_read(scorer: Make) -> None:
    made = scorer(Continue(), sampling=Sampling())
    given = examples(made.task)
    before = torch.get_rng_state()
    first = made(given, {"completions"}, seed=3).completions
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)
        assert made(given, {"completions"}, seed=3).completions == first


class Letters(Continue):
    """One sampled token a completion; ``index`` tells equal prompts apart."""

    max_new_tokens = 1


@pytest.fixture
def letters_model(fresh_model: Any, tokenizer: Any) -> Any:
    """Draws only from ten letters: their text says which token was drawn."""
    keep = [tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghij"]
    with torch.no_grad():
        head = fresh_model.lm_head.weight
        logits = next_logits(fresh_model, tokenizer(PROMPTS[0])["input_ids"])
        # Along the last hidden state: the letters keep their logits, the rest fall far below.
        hidden = fresh_model.model(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]]))
        state = hidden.last_hidden_state[0, -1]
        others = torch.ones(len(logits), dtype=torch.bool).index_fill(0, torch.tensor(keep), False)
        head[others] -= 60 * state / state.dot(state)
    return fresh_model


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.6), Sampling(temperature=2.0, top_p=0.7)]
)
def test_first_tokens_follow_the_models_distribution(
    letters_model: Any, tokenizer: Any, sampling: Sampling
) -> None:
    draws, letters = 3000, "abcdefghij"
    made = Scorer(letters_model, tokenizer, Letters(), batch_size=1000, sampling=sampling)
    given = examples(made.task, PROMPTS[:1] * draws)
    texts = made(given, {"completions"}, seed=11).completions or []
    keep = torch.tensor(tokenizer.convert_tokens_to_ids(list(letters)))
    logits = next_logits(letters_model, tokenizer(PROMPTS[0])["input_ids"])[keep].double()
    p = torch.softmax(logits / sampling.temperature, -1)
    order = p.argsort(descending=True)
    # The most likely ones whose mass before them is below top_p.
    inside = order[(p[order].cumsum(0) - p[order]) < sampling.top_p].tolist()
    assert set(texts) <= {letters[i] for i in inside}
    if sampling.top_p < 1:
        assert len(inside) < len(letters)
    expected = torch.zeros_like(p)
    expected[inside] = p[inside] / p[inside].sum() * draws
    counts = [texts.count(letters[i]) for i in inside]
    # One seed, so the p-value is a fixed number: a wrong temperature gives less than 1e-10.
    assert chisquare(counts, expected[inside].numpy()).pvalue > 1e-3


def test_later_tokens_are_drawn_anew(scorer: Make) -> None:
    """Noise of one position isn't that of the next: else a flat model would repeat one token."""
    flat = copy.deepcopy(scorer(Continue()).model)
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    made = Scorer(flat, scorer(Continue()).tokenizer, Continue(), sampling=Sampling())
    texts = made(examples(made.task, ["x"] * 20), {"completions"}).completions or []
    assert all(len(set(text)) > 2 for text in texts)


# What can't be scored -------------------------------------------------------------------------


def test_an_empty_prompt(scorer: Make) -> None:
    for task, need in ((Continue(), "completions"), (Choose(), "label_scores")):
        with pytest.raises(UserError, match=f"prompt '' has no tokens: mend task {task.name}"):
            scorer(task)(examples(task, ["x", ""]), {need})


@pytest.mark.parametrize("need", ["label_scores", "predictions"])
def test_a_task_of_generation_has_no_choices(scorer: Make, need: str) -> None:
    task = Continue()
    with pytest.raises(UserError, match=f"needs {need} of choices, but task continue generates"):
        scorer(task)(examples(task), {need})


# Other types of numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(
    fresh_model: Any, tokenizer: Any, dtype: torch.dtype, scorer: Make
) -> None:
    half = fresh_model.to(dtype)
    made = Scorer(half, tokenizer, Choose(), batch_size=4)
    got = made(examples(made.task), {"label_scores", "reference_logprob"})
    full = scorer(Choose())(examples(made.task), {"label_scores"})
    for line, other in zip(got.label_scores or [], full.label_scores or [], strict=True):
        assert line == pytest.approx(other, rel=0.05)
    for sampling in (None, SAMPLED):
        text = Scorer(half, tokenizer, Continue(), batch_size=4, sampling=sampling)
        assert all(text(examples(text.task), {"completions"}).completions or [])
