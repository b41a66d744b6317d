"""A scoring program: 1 / (1 + length) for each completion."""

import json
import sys

for line in sys.stdin:
    sys.stdout.write(f"{1 / (1 + len(json.loads(line)['completion']))}\n")
