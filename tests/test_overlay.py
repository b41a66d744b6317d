"""zoobj.overlay against a twin whose weights are changed by hand, one row at a time."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_scoring import CANDIDATES, Choose, Continue, examples
from tiny import FAMILIES, KINDS, MIXTURES, TOKENS, Twin, padded, prompts, random_members
from torch import Tensor, nn

from zoobj.errors import UserError
from zoobj.models import prepare
from zoobj.noise import noise
from zoobj.optim import ZOSGD
from zoobj.overlay import Member, Overlay, overlay_of
from zoobj.scoring import Sampling, Scorer
from zoobj.scoring.choices import loglikelihood
from zoobj.scoring.generation import generate
from zoobj.scoring.population import Population
from zoobj.sites import layers, patterns, typical
from zoobj.walk import Walk

CLOSE = 1e-4
FAR = 0.05  # what a member changes at least
every_kind = pytest.mark.parametrize("kind", KINDS)
some_layers = [("steer", None), ("steer", "1:"), ("scale", "1:"), ("lora", "2:"), ("prompt", None)]


@cache
def base(family: str, layers: int = 3) -> Any:
    """Read only."""
    return tiny.made(family, layers)


def on(model: Any, kind: str, tune_layers: str | None = None, rank: int = 2) -> Overlay:
    """An overlay with units that were measured."""
    tokens = TOKENS if kind == "prompt" else ()
    overlay = Overlay(model, kind, tune_layers, rank=rank, tokens=tokens)
    overlay.measure(*padded(prompts([6, 9], seed=4)))
    return overlay


def fresh(family: str, kind: str, tune_layers: str | None = None, layers: int = 3) -> Overlay:
    """On a model of its own."""
    return on(copy.deepcopy(base(family, layers)), kind, tune_layers)


def twin(family: str, overlay: Overlay, member: Member, layers: int = 3) -> Twin:
    return Twin(copy.deepcopy(base(family, layers)), overlay, member)


def run(overlay: Overlay, rows: Sequence[Sequence[int]], side: str = "left") -> list[Tensor]:
    """Logits of each row at its real tokens, or of a classifier."""
    ids, mask = padded([[*overlay.placeholders, *row] for row in rows], side)
    found = tiny.logits(overlay.model, mask, input_ids=ids)
    if found.dim() == 2:
        return list(found)
    return [one[shown.bool()] for one, shown in zip(found, mask, strict=True)]


def move_to(overlay: Overlay, member: Member) -> None:
    for param, value in zip(overlay.parameters(), member, strict=True):
        param.data.copy_(value)


@contextmanager
def at(overlay: Overlay, member: Member) -> Iterator[None]:
    before = overlay.snapshot()
    move_to(overlay, member)
    yield
    move_to(overlay, before)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(expected) and all(torch.equal(now[k], expected[k]) for k in now)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Rows of a batch ------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
def test_each_row_is_what_its_member_gives_alone(family: str, kind: str) -> None:
    where = "0:" if kind == "steer" else None  # the last layer, too, where a norm ends the model
    overlay, rows, index = fresh(family, kind, where), prompts([5, 9, 3, 9]), [2, 0, 1, 0]
    members = random_members(overlay, 3)
    twins = [twin(family, overlay, member) for member in members]
    untuned = twin(family, overlay, overlay.snapshot())
    # A classifier reads the first place, which must not be padding.
    sides = {"bert classifier": ["right"], "bert": ["left", "right"], "roberta": ["left", "right"]}
    for side in sides.get(family, ["left"]):
        with overlay.rows(members, index):
            together = run(overlay, rows, side)
        for row, who, found in zip(rows, index, together, strict=True):
            assert apart(found, twins[who].logits(row)) < CLOSE
            assert apart(found, untuned.logits(row)) > FAR
            assert apart(found, twins[(who + 1) % 3].logits(row)) > FAR
    with at(overlay, members[1]):  # the same outside of rows
        assert apart(run(overlay, rows[:1])[0], twins[1].logits(rows[0])) < CLOSE


LAYERS = {
    "steer": [None, "1:", "2", ":2", "0,2", "*layers.1"],
    "scale": [None, "1:", "2", "*input_layernorm", "*.1.*norm,2"],
    "lora": [None, "1:", "0", "*.mlp.*", "*self_attn.[qv]_proj", "2,*.0.mlp.up_proj"],
    "prompt": [None],
}


@settings(max_examples=25, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_any_batch_of_any_members(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    where, rank = data.draw(st.sampled_from(LAYERS[kind])), data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, 4))
    index = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    n = len(index)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    rows, order = (
        prompts(lengths, data.draw(st.integers(0, 9))),
        data.draw(st.permutations(range(n))),
    )
    model = base("llama")
    overlay = on(model, kind, where, rank)
    try:
        members = random_members(overlay, count)
        if data.draw(st.booleans()):
            members.append(members[0])  # a member that is there twice
            index = [count if who == 0 and i % 2 else who for i, who in enumerate(index)]
        with overlay.rows(members, index):
            together = run(overlay, rows)
        with overlay.rows(members, [index[i] for i in order]):
            permuted = run(overlay, [rows[i] for i in order])
        for i, one in zip(order, permuted, strict=True):
            assert apart(one, together[i]) < CLOSE
        for row, who, found in zip(rows, index, together, strict=True):
            with overlay.rows([members[who]], [0]):
                assert apart(found, run(overlay, [row])[0]) < CLOSE
        if kind != "prompt":
            most = st.integers(0, max(n - 2, 0))  # fewer prompts than rows, else none is shared
            source = data.draw(st.lists(most, min_size=n, max_size=n))
            ids, mask = padded(rows)
            with overlay.rows(members, index):
                separate = tiny.logits(model, mask[source], input_ids=ids[source])
            some = slice(max(source) + 1)
            with overlay.rows(members, index, source):
                shared = tiny.logits(model, mask[some], input_ids=ids[some])
            real = mask[source].bool()
            assert apart(shared[real], separate[real]) < CLOSE
        which = data.draw(st.integers(0, n - 1))
        by_hand = Twin(tiny.made("llama"), overlay, members[index[which]])
        assert apart(together[which], by_hand.logits(rows[which])) < CLOSE
    finally:
        overlay.remove()


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
@pytest.mark.parametrize(("kind", "where"), [p for p in some_layers if p[0] != "prompt"])
def test_prompts_that_members_share_are_run_once(family: str, kind: str, where: str | None) -> None:
    overlay, rows = fresh(family, kind, where), prompts([7, 4])
    side = "right" if family == "bert classifier" else "left"
    members, index, source = random_members(overlay, 3), [0, 1, 2, 2, 0], [0, 0, 0, 1, 1]
    with overlay.rows(members, index):
        expected = run(overlay, [rows[i] for i in source], side)
    seen = rows_per_layer(overlay)
    ids, mask = padded(rows, side)
    with overlay.rows(members, index, source):
        found = tiny.logits(overlay.model, mask, input_ids=ids)
    for one, goal, i in zip(found, expected, source, strict=True):
        assert apart(one[mask[i].bool()] if one.dim() > 1 else one, goal) < CLOSE
    assert apart(expected[0], expected[1]) > FAR
    split = overlay.shared_layers
    assert split == {None: 1, "1:": 1 + (kind == "steer"), "2:": 2}[where]
    assert [rows for rows, _ in seen] == [2] * split + [5] * (3 - split)


def rows_per_layer(overlay: Overlay) -> list[tuple[int, int]]:
    """Rows and tokens that each layer gives itself to, from now on."""
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen.append((states.shape[0], states.shape[1]))

    for _, layer in layers(overlay.model):
        layer.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("source", [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 3], [3, 2, 1, 0]])
@pytest.mark.parametrize("where", ["0", "1:", "2"])
@pytest.mark.parametrize("kind", ["steer", "scale", "lora"])
def test_sharing_of_one_prompt_of_some_and_of_none(
    kind: str, where: str, source: list[int]
) -> None:
    overlay, rows = fresh("llama", kind, where), prompts([4, 4, 4, 4])  # as many as tokens
    members = random_members(overlay, 4)
    with overlay.rows(members, [0, 1, 2, 3]):
        expected = torch.stack(run(overlay, [rows[i] for i in source]))
    ids, mask = padded(rows[: max(source) + 1])
    if len(set(source)) == 4:  # nothing is shared: rows are as they are given
        ids, mask = ids[source], mask[source]
    with overlay.rows(members, [0, 1, 2, 3], source):
        found = tiny.logits(overlay.model, mask, input_ids=ids)
    assert apart(found, expected) < CLOSE


# Generation -----------------------------------------------------------------------------------

Completed = tuple[list[str], list[str]]


def completed(
    overlay: Overlay,
    tokenizer: Any,
    rows: Sequence[list[int]],
    members: Sequence[Member],
    **options: Any,
) -> Completed:
    """Of every row under every member: all in batches, and each alone."""
    options = {"max_new_tokens": 6, "stop": (), **options}
    asked = [(i, who) for i in range(len(rows)) for who in range(len(members))]
    whole = [[*overlay.placeholders, *rows[i]] for i, _ in asked]
    together = generate(
        overlay.model,
        tokenizer,
        whole,
        keys=[i for i, _ in asked],
        batch_size=4,
        population=Population(overlay, members, [who for _, who in asked]),
        **options,
    )
    alone: list[str] = []
    for tokens, (i, who) in zip(whole, asked, strict=True):
        with at(overlay, members[who]):
            alone += generate(overlay.model, tokenizer, [tokens], keys=[i], batch_size=1, **options)
    return together, alone


@pytest.mark.parametrize("sampling", [None, Sampling(), Sampling(0.7, 0.9)], ids=str)
@pytest.mark.parametrize(("kind", "where"), some_layers)
def test_members_complete_what_each_completes_alone(
    kind: str, where: str | None, sampling: Sampling | None, tokenizer: Any
) -> None:
    overlay = fresh("llama", kind, where)
    members, rows = random_members(overlay, 3), prompts([5, 11, 3, 11])
    together, alone = completed(overlay, tokenizer, rows, members, sampling=sampling, seed=5)
    assert together == alone
    assert len(set(together)) > len(rows)  # members differ


@pytest.mark.parametrize("family", [f for f in [*FAMILIES, *MIXTURES] if "bert" not in f])
def test_families_complete_with_a_cache(family: str, tokenizer: Any) -> None:
    for kind, where in [("lora", None), *some_layers[1:3]]:
        overlay = fresh(family, kind, where)
        members, rows = random_members(overlay, 2), prompts([5, 11, 5])
        together, alone = completed(overlay, tokenizer, rows, members, max_new_tokens=4)
        assert together == alone


def test_the_prompt_is_run_once_for_all_members_where_that_pays(tokenizer: Any) -> None:
    rows = prompts([9])
    shared = fresh("llama", "steer", "1:")  # two layers of three give the same
    seen = rows_per_layer(shared)
    options: dict[str, Any] = {"max_new_tokens": 2, "stop": (), "batch_size": 4}
    population = Population(shared, random_members(shared, 4), [0, 1, 2, 3])
    assert population.shares
    generate(shared.model, tokenizer, rows * 4, population=population, **options)
    assert seen[:3] == [(1, 8), (1, 8), (4, 8)]  # but for the last token
    assert seen[3:] == [(4, 1)] * len(seen[3:])
    first = fresh("llama", "lora", "0")  # none does
    seen = rows_per_layer(first)
    population = Population(first, random_members(first, 4), [0, 1, 2, 3])
    assert not population.shares
    generate(first.model, tokenizer, rows * 4, population=population, **options)
    assert seen[:3] == [(4, 9)] * 3


def test_a_prompt_that_begins_with_the_pad_token_is_no_padded_one(tokenizer: Any) -> None:
    overlay = fresh("llama", "steer", "1:")
    row = prompts([5])[0]
    together, alone = completed(
        overlay, tokenizer, [[tiny.PAD, *row], row], random_members(overlay, 2)
    )
    assert together == alone
    assert together[0] != together[2]


@pytest.mark.parametrize("name", ["Bloom", "Mpt"])
def test_positions_as_biases_of_heads(name: str, tokenizer: Any) -> None:
    """Four heads and four prompts: rows of a bias are no prompts."""
    ids: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    settings = {
        "Bloom": ("hidden_size", "n_layer", "n_head"),
        "Mpt": ("d_model", "n_layers", "n_heads"),
    }
    sizes = dict(zip(settings[name], (32, 3, 4), strict=True))
    config = getattr(tf, f"{name}Config")(vocab_size=len(tokenizer), **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        model = getattr(tf, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        if param.dim() > 1:
            param.data.normal_(0, 0.3, generator=generator)
    overlay = on(model, "steer", "1:")
    members, rows = random_members(overlay, 2), prompts([5, 5, 5, 5])
    together, alone = completed(overlay, tokenizer, rows, members)
    assert together == alone
    who = [0, 1] * 4
    asked = [row for row in rows for _ in range(2)]
    population = Population(overlay, members, who)
    found = loglikelihood(model, asked, [[7]] * 8, pad=0, batch_size=8, population=population)
    for i, value in enumerate(found):
        with at(overlay, members[who[i]]):
            (goal,) = loglikelihood(model, [asked[i]], [[7]], pad=0, batch_size=1)
        assert value == pytest.approx(goal, abs=1e-4)


# Scorer ---------------------------------------------------------------------------------------

NEEDS = {"label_scores", "predictions", "completions", "reference_logprob"}


@pytest.mark.parametrize("batch_size", [1, 13])
@pytest.mark.parametrize(("kind", "where"), some_layers)
def test_a_population_scores_choices_as_one_at_a_time(
    kind: str, where: str | None, batch_size: int, tokenizer: Any
) -> None:
    overlay = fresh("llama", kind, where)
    prepare(overlay.model, tokenizer)
    scorer = Scorer(overlay.model, tokenizer, task := Choose(), batch_size=batch_size)
    members, asked = random_members(overlay, 3), examples(task)[: 9 if batch_size > 1 else 2]
    assert {len(scorer._answer("x", c)) > 1 for c in CANDIDATES} == {True, False}
    found = scorer.population(members, asked, NEEDS)
    assert len(found) == 3
    for member, batch in zip(members, found, strict=True):
        with at(overlay, member):
            expected = scorer(asked, NEEDS)
        assert batch.prompts == expected.prompts
        assert batch.references == expected.references
        assert batch.rows == expected.rows
        assert batch.predictions == expected.predictions
        assert batch.completions == expected.completions
        assert batch.reference_logprob == pytest.approx(expected.reference_logprob, abs=1e-3)
        for one, goal in zip(batch.label_scores, expected.label_scores, strict=True):
            assert one == pytest.approx(goal, abs=1e-3)
    assert found[0].label_scores[0] != pytest.approx(found[1].label_scores[0], abs=0.01)


@pytest.mark.parametrize("sampling", [None, Sampling()], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("kind", "where"), some_layers)
def test_a_population_completes_as_one_at_a_time(
    kind: str, where: str | None, sampling: Sampling | None, tokenizer: Any
) -> None:
    overlay, needs = fresh("llama", kind, where), {"completions", "reference_logprob"}
    prepare(overlay.model, tokenizer)
    scorer = Scorer(overlay.model, tokenizer, task := Continue(), batch_size=7, sampling=sampling)
    members, asked = random_members(overlay, 3), examples(task)[:4]
    found = scorer.population(members, asked, needs, seed=3)
    for member, batch in zip(members, found, strict=True):
        with at(overlay, member):
            expected = scorer(asked, needs, seed=3)
        assert batch.completions == expected.completions
        assert batch.reference_logprob == pytest.approx(expected.reference_logprob, abs=1e-3)
    assert found[0].completions != found[1].completions


# Tunables, and what is left of them -----------------------------------------------------------


@every_kind
def test_members_are_the_start_and_noise_by_name(kind: str) -> None:
    overlay = fresh("llama", kind)
    starts = dict(overlay.named_parameters())
    before = {name: param.detach().clone() for name, param in starts.items()}
    walk = Walk(overlay.named_parameters())
    for seed, size in [(3, 0.1), (2**63 + 5, -0.25), (3, 0.01)]:
        walk.goto({seed: size})
        for (name, start), value in zip(before.items(), overlay.snapshot(), strict=True):
            z = noise("rademacher", seed, name, 0, start.numel()).view(start.shape)
            assert apart(value, start + size * z) < 1e-6
    walk.goto({})
    for (name, start), value in zip(before.items(), overlay.snapshot(), strict=True):
        assert apart(value, start) < 1e-6
        assert not bool(start.any()) or name.startswith("lora_A.")


@every_kind
def test_the_start_is_the_base(kind: str) -> None:
    overlay, rows = fresh("llama", kind), prompts([6])
    expected = twin("llama", overlay, overlay.snapshot()).logits(rows[0])
    plain = tiny.logits(base("llama"), torch.ones(1, 6).long(), input_ids=torch.tensor(rows))
    if kind == "prompt":  # which is that of some words before the prompt
        words = torch.tensor([[*TOKENS, *rows[0]]])
        plain = tiny.logits(base("llama"), torch.ones_like(words), input_ids=words)
    assert apart(plain[0], expected) < CLOSE
    assert apart(run(overlay, rows)[0], expected) < CLOSE


@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_nothing_is_left_of_it_once_removed(family: str, kind: str) -> None:
    model = copy.deepcopy(base(family))
    ids, mask = padded(prompts([6, 4]))
    before, plain = weights(model), tiny.logits(model, mask, input_ids=ids)
    overlay = on(model, kind)
    move_to(overlay, random_members(overlay, 1)[0])
    with overlay.rows(random_members(overlay, 2), [1, 0]):
        moved = torch.stack([logits[-4:] for logits in run(overlay, ids.tolist())])
    assert apart(moved, plain[:, -4:]) > FAR
    for param in overlay.parameters():
        assert param.requires_grad
    with overlay.aside():
        assert overlay.placeholders == []
        assert torch.equal(tiny.logits(model, mask, input_ids=ids), plain)
    assert len(overlay.placeholders) == (3 if kind == "prompt" else 0)
    assert same_weights(model, before)
    with pytest.raises(UserError, match="remove"):
        Overlay(model, "steer")
    assert overlay_of(model) is overlay
    overlay.remove()
    assert overlay_of(model) is None
    assert hooks(model) == 0
    assert same_weights(model, before)
    assert torch.equal(tiny.logits(model, mask, input_ids=ids), plain)
    Overlay(model, "steer").remove()
    assert hooks(model) == 0


def test_blocks_within_blocks() -> None:
    overlay, rows = fresh("llama", "steer", "1:"), prompts([5, 5])
    members = random_members(overlay, 3)
    move_to(overlay, members[2])

    def now(rows: Sequence[Sequence[int]] = rows) -> Tensor:
        return torch.stack(run(overlay, rows))

    own = now()
    with overlay.aside():
        plain = now()
    with overlay.rows(members, [0, 1]):
        mixed = now()
    assert min(apart(own, plain), apart(mixed, plain), apart(mixed, own)) > FAR
    with overlay.aside():
        with overlay.aside():
            assert torch.equal(now(), plain)
        assert torch.equal(now(), plain)
        with overlay.rows(members, [0, 1]):
            assert torch.equal(now(), mixed)
            with overlay.rows(members, [1, 0]):
                assert not torch.equal(now(), mixed)
            with overlay.aside():
                assert torch.equal(now(), plain)
            assert torch.equal(now(), mixed)
        assert torch.equal(now(), plain)
    assert torch.equal(now(), own)
    with overlay.rows(members, [0, 1, 2, 2], [0, 0, 1, 1]):
        together = run_shared(overlay, rows)
        assert together.shape[0] == 4
        with overlay.aside():
            assert torch.equal(now(), plain)
        assert torch.equal(run_shared(overlay, rows), together)
    assert torch.equal(now(), own)


def run_shared(overlay: Overlay, rows: Sequence[Sequence[int]]) -> Tensor:
    ids, mask = padded(rows)
    return tiny.logits(overlay.model, mask, input_ids=ids)


def test_errors_leave_it_as_it_was() -> None:
    overlay, rows = fresh("llama", "lora"), prompts([5])
    members = random_members(overlay, 2)
    move_to(overlay, members[0])
    before = run(overlay, rows)[0]
    with pytest.raises(IndexError), overlay.rows(members, [2]):
        pass
    assert torch.equal(run(overlay, rows)[0], before)
    for block in (overlay.aside(), overlay.rows(members, [1])):
        with pytest.raises(KeyError), block:
            raise KeyError
        assert torch.equal(run(overlay, rows)[0], before)


# Which modules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, []),
        ("", []),
        ("*.mlp.*", ["*.mlp.*"]),
        (" *.mlp.* , *norm", ["*.mlp.*", "*norm"]),
        ("1", ["model.layers.1.*"]),
        ("11:", ["model.layers.11.*"]),
        (":1,x", ["model.layers.0.*", "x"]),
        ("10:12", ["model.layers.10.*", "model.layers.11.*"]),
        ("10:99", ["model.layers.10.*", "model.layers.11.*"]),
        (":", [f"model.layers.{n}.*" for n in range(12)]),
    ],
)
def test_patterns_of_layers(spec: str | None, expected: list[str]) -> None:
    assert patterns(base("llama", 12), spec) == expected


@pytest.mark.parametrize(
    ("spec", "places"),
    [("1", [1]), ("1:3,11", [1, 2, 11]), ("*.1", [1]), ("*.1?", [10, 11]), ("9:", [9, 10, 11])],
)
def test_numbers_are_of_whole_layers(spec: str, places: list[int]) -> None:
    overlay = Overlay(model := base("llama", 12), "steer", spec)
    try:
        assert [site.name for site in overlay.sites] == [f"model.layers.{n}" for n in places]
        assert overlay.shared_layers == places[0] + 1
    finally:
        overlay.remove()
    assert hooks(model) == 0


@pytest.mark.parametrize("spec", ["99", "12:", "3:2", "5:5", "nonsense", "-1", "*.mpl.*", "1.5"])
@pytest.mark.parametrize("kind", ["steer", "scale", "lora"])
def test_nonsense_is_named(kind: str, spec: str) -> None:
    model = base("llama", 12)
    with pytest.raises(UserError) as error:
        Overlay(model, kind, spec)
    assert spec in str(error.value)
    assert "layers" in str(error.value)
    assert hooks(model) == 0
    assert overlay_of(model) is None


def test_kinds_have_names() -> None:
    with pytest.raises(UserError, match=r"'bias'.*steer"):
        Overlay(base("llama"), "bias")


@every_kind
def test_a_model_without_layers(kind: str) -> None:
    model = copy.deepcopy(base("llama"))
    model.config.num_hidden_layers = 7
    with pytest.raises(UserError, match=r"layers of LlamaForCausalLM.*7.*--tune full"):
        Overlay(model, kind, tokens=TOKENS)


class Experts(nn.Module):
    """As some models have them: they see tokens in an order of their own."""

    def __init__(self, width: int, order: Callable[[int], Tensor]):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        total = torch.zeros_like(flat)
        for part in self.parts:
            chosen = self.order(len(flat))
            total[chosen] += part(flat[chosen])
        return total.view(x.shape)


ORDERS: dict[str, Callable[[int], Tensor]] = {
    "some": lambda n: torch.arange(0, n, 2),
    "all, in another order": lambda n: torch.arange(n).flip(0),
    "as many as there are rows": lambda n: torch.arange(3),
}


@pytest.mark.parametrize("order", ORDERS)
def test_experts_are_right_or_refused(order: str) -> None:
    model = copy.deepcopy(base("llama"))
    with torch.random.fork_rng(devices=[]):
        for _, layer in layers(model):
            layer.mlp = Experts(32, ORDERS[order])
    plain, rows = copy.deepcopy(model), prompts([5, 5, 5])
    overlay = on(model, "steer")
    members = random_members(overlay, 3)
    with overlay.rows(members, [0, 1, 2]):
        together = run(overlay, rows)
    if order == "all, in another order":  # others depend on which tokens are in the batch
        for row, member, found in zip(rows, members, together, strict=True):
            goal = Twin(copy.deepcopy(plain), overlay, member).logits(row)
            assert apart(found, goal) < CLOSE
    overlay.remove()
    overlay = on(model, "lora")
    with (
        overlay.rows(random_members(overlay, 3), [0, 1, 2]),
        pytest.raises(UserError, match=r"layers\.0\.mlp\.parts\.0 .*rows.*--tune_layers"),
    ):
        run(overlay, rows)
    overlay.remove()
    overlay = on(model, "lora", "*self_attn*")  # the remedy
    with overlay.rows(random_members(overlay, 3), [0, 1, 2]):
        run(overlay, rows)


# Units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_units_do_not_depend_on_padding(family: str, kind: str) -> None:
    overlay, rows = fresh(family, kind), prompts([6, 6, 6])
    side = "right" if "bert" in family else "left"  # BERT's habit
    ids, mask = padded(rows, side)
    overlay.measure(ids, mask)
    plain = overlay.units
    none = torch.zeros(3, 5, dtype=torch.long)
    parts = (none, ids), (none, mask)
    if side == "right":
        parts = (ids, none), (mask, none)
    with at(overlay, random_members(overlay, 1)[0]):  # nor on the tunables
        overlay.measure(*(torch.cat(part, dim=1) for part in parts))
    assert overlay.units == pytest.approx(plain, rel=0.01)  # a digit may be rounded elsewhere
    assert plain.keys() == {site.name for site in overlay.sites}
    for unit in plain.values():
        assert unit > 0
        assert unit == float(f"{unit:.3g}")
    if kind == "scale":
        assert set(plain.values()) == {float(f"{1 / len(overlay.sites) ** 0.5:.3g}")}
    elif kind != "prompt":
        assert len(set(plain.values())) > 1


@pytest.mark.parametrize("kind", ["steer", "lora", "prompt"])
def test_units_are_of_what_modules_give(kind: str) -> None:
    overlay = fresh("llama", kind)
    ids = torch.tensor(prompts([7]))
    site = overlay.sites[-1]
    seen: list[Tensor] = []
    plain = copy.deepcopy(base("llama"))
    plain.get_submodule(site.name).register_forward_hook(lambda m, x, y: seen.extend([x[0], y]))
    with torch.no_grad():
        plain(input_ids=ids)
    overlay.measure(ids, torch.ones_like(ids))
    x, y = (sizes_of(each).median() for each in seen)
    typical = float(y / x if kind == "lora" else y)
    assert site.unit == pytest.approx(typical / len(overlay.sites) ** 0.5, rel=0.006)


@pytest.mark.parametrize(
    ("layers", "step", "steered"), [(1, 1, 1), (3, 1, 2), (19, 1, 12), (20, 2, 12), (31, 3, 19)]
)
@pytest.mark.parametrize("kind", ["steer", "scale", "lora"])
def test_every_nth_layer_unless_chosen(kind: str, layers: int, step: int, steered: int) -> None:
    model = tiny.made("llama", layers=layers)
    overlay = on(model, kind)
    found = sorted({int(site.name.split(".")[2]) for site in overlay.sites})
    assert found == list(range(0, steered if kind == "steer" else layers, step))
    overlay.remove()
    every = Overlay(model, kind, "0:")
    assert len({int(site.name.split(".")[2]) for site in every.sites}) == layers


def sizes_of(vectors: Tensor) -> Tensor:
    """[tokens] root mean squares."""
    return vectors[0].float().pow(2).mean(-1).sqrt() if vectors.dim() > 2 else torch.ones(1)


def test_a_massive_activation_does_not_count() -> None:
    usual = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert typical(torch.cat([usual, 1e4 * torch.ones(1, 16)])) == pytest.approx(1, abs=0.15)
    units = []
    for size in (1.0, 1000.0):
        model = copy.deepcopy(base("llama"))
        model.get_input_embeddings().weight.data[7] *= size
        overlay = on(model, "steer")
        ids = torch.tensor(prompts([9, 9]))
        ids[:, -1] = 7  # seen by no other token
        overlay.measure(ids, torch.ones_like(ids))
        units.append(list(overlay.units.values()))
    assert units[1] == pytest.approx(units[0], rel=0.3)


# Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@every_kind
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_16_bits_are_near_32(family: str, kind: str, dtype: torch.dtype) -> None:
    whole, rows = fresh(family, kind), prompts([8, 8, 8])
    half = on(tiny.made(family, dtype=dtype), kind)
    assert half.units == pytest.approx(whole.units, rel=0.1)
    half.set_units(whole.units)
    members = random_members(whole, 2, size=0.1)
    assert all(param.dtype == torch.float32 for param in half.parameters())
    with whole.rows(members, [0, 1, 1]), half.rows(members, [0, 1, 1]):
        goal, found = (torch.stack(run(overlay, rows)) for overlay in (whole, half))
    assert found.dtype == dtype
    assert apart(found.float(), goal) < 0.2 * float(goal.abs().max())
    near = torch.nn.functional.cosine_similarity(found.float(), goal, dim=-1)
    assert float(near.min()) > 0.98
    move_to(half, members[1])
    assert run(half, rows)[0].dtype == dtype
    assert apart(run(half, rows[2:])[0].float(), goal[2]) < 0.2 * float(goal.abs().max())


# As an optimizer ------------------------------------------------------------------------------


def wishes(overlay: Overlay, rows: list[list[int]]) -> list[float]:
    """Of each row, how likely token 7 is at its end."""
    return [float(torch.log_softmax(x[-1].float(), -1)[7]) for x in run(overlay, rows)]


@every_kind
def test_ask_and_tell_of_a_population(kind: str) -> None:
    rows, results = prompts([5, 8, 6]), []
    for at_once in (True, False):
        overlay = fresh("llama", kind)
        settings: dict[str, Any] = {"lr": 0.03, "eps": 0.05, "maximize": True}
        opt = ZOSGD(overlay.named_parameters(), directions=4, **settings)
        first = sum(wishes(overlay, rows)) / 3
        for _ in range(6):
            trials, members, scores = [], [], []
            for _ in range(8):
                with opt.ask() as trial:
                    trials.append(trial)
                    members.append(overlay.snapshot())
                    if not at_once:
                        scores.append(sum(wishes(overlay, rows)) / 3)
            if at_once:
                with overlay.rows(members, [i for i in range(8) for _ in rows]):
                    each = iter(wishes(overlay, rows * 8))
                scores = [(next(each) + next(each) + next(each)) / 3 for _ in range(8)]
            moved = [opt.tell(*told) for told in zip(trials, scores, strict=True)]
            assert moved == [False] * 7 + [True]
        assert sum(wishes(overlay, rows)) / 3 > first + 0.3
        results.append(overlay.snapshot())
    for one, other in zip(*results, strict=True):
        assert apart(one, other) < 1e-3
        assert one.abs().max() > 0.02
