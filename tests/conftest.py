"""Settings and fixtures shared by all tests."""

import copy
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run: a failure is a change, never chance.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# Enough for a tokenizer with a few words of more than one byte.
TEXTS = [
    "Context: The old mill stood by the river, and the miller's cat sat on the wall.",
    "Question: Where did the mill stand? Answer: by the river",
    "Review: a stirring, funny film\nThe movie was great terrible good bad",
    "Paris London one two three; caf\u00e9, na\u00efve, \u4f60\u597d \U0001f600",
]
VOCABULARY = 320  # 256 bytes, three special tokens, the rest merges


@pytest.fixture
def no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Report and bootstrap, which take as long as a run of a second, are left out."""
    monkeypatch.setattr("zoobj.trainer.write_report", lambda *args: None)
    monkeypatch.setattr("zoobj.result.paired_bootstrap", lambda *args: (0.0, 0.0))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE with <pad>, <eos> and another special token, <end>; pads on the left."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=["<pad>", "<eos>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<end>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    """A Llama of random weights, 2 layers of width 32; read only, for changes: ``fresh_model``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from zoobj.models import prepare

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights of its own
        made = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:  # norm scales stay 1
                parameter.normal_(0.0, 0.3, generator=generator)
    prepare(made, tokenizer)
    return made


@pytest.fixture
def fresh_model(model: Any) -> Any:
    """A copy of ``model`` of the test's own."""
    return copy.deepcopy(model)
