"""The embedded default over several seeds: does the held-out F1 rise, and how sure is it?

    python benchmarks/squad_mini_seeds.py --seeds 1 2 3 4 5

Runs ``zoobj train --seed N`` with the defaults, one after the other, and prints a table. Arguments
after ``--`` go to zoobj.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(seed: int, folder: Path, more: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "zoobj", "train", "--seed", str(seed), *more]
    subprocess.run([*command, "--output_dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("more", nargs="*", help="arguments for zoobj train, after --")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| seed | before | after | difference [95 %] | verdict | ties | seconds | of them walk |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            r = run(seed, Path(folder) / str(seed), options.more)
            low, high = r["ci95"]
            print(
                f"| {seed} | {r['before']:.3f} | {r['after']:.3f} | {r['difference']:+.3f} "
                f"[{low:+.3f}, {high:+.3f}] | {r['verdict']} | {r['tie_rate']:.0%} | "
                f"{r['seconds']:.0f} | {r['seconds_in_walk'] / r['seconds']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
