"""How each grouper splits the feelings of drawn faces: the table of docs/grouping.md.

    python benchmarks/grouping/run.py            # seconds; writes results/grouping.json and prints the table
    python benchmarks/grouping/run.py --print    # the table of the committed results; measures nothing

Labels are those of ``sample_labels`` for 1,024 people with 50 feelings each, shuffled, in 200 batches of 256.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, write_results


def parsed() -> argparse.Namespace:
    """The options."""
    parser = Parser(__doc__)
    parser.add_argument("--print", action="store_true", help="print the table of the committed results")
    return parser.parse_args()


if __name__ == "__main__":  # help and mistakes are answered before PyTorch is loaded
    parsed()

import numpy as np
import torch

from adaptive_margin import KMeansGrouper, OtsuGrouper
from adaptive_margin.faces import sample_labels
from adaptive_margin.training import World, environment

PEOPLE, FEELINGS, BATCH, SEED = 1024, 50, 256, 0
RESULTS = Path(__file__).parent / "results" / "grouping.json"
GROUPERS = {
    "OtsuGrouper()": OtsuGrouper(),
    "OtsuGrouper(bins=256)": OtsuGrouper(bins=256),
    "OtsuGrouper(magnitude=False)": OtsuGrouper(magnitude=False),
    "KMeansGrouper(2)": KMeansGrouper(2),
    "KMeansGrouper(3)": KMeansGrouper(3),
    "KMeansGrouper(5)": KMeansGrouper(5),
}


def measured() -> list[dict[str, Any]]:
    """Radius, share of strong samples and share in Otsu's group of each grouper: mean and standard deviation."""
    labels = np.concatenate([sample_labels(SEED, person, FEELINGS) for person in range(PEOPLE)])
    shuffled = torch.from_numpy(np.random.default_rng(SEED).permutation(labels))
    batches = shuffled.split(BATCH)
    otsu = [GROUPERS["OtsuGrouper()"](batch) for batch in batches]
    rows = []
    for name, grouper in GROUPERS.items():
        groups, radii = [], []
        for batch in batches:
            groups.append(grouper(batch))
            radii.append(float(grouper.radius))
        strong = [float((group == 1).double().mean()) for group in groups]
        same = [float((group == other).double().mean()) for group, other in zip(groups, otsu, strict=True)]
        row: dict[str, Any] = {"grouper": name, "same": float(np.mean(same))}
        for what, values in (("radius", radii), ("strong", strong)):
            row[what], row[f"{what}_sd"] = float(np.mean(values)), float(np.std(values, ddof=1))
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| grouper | δ_r | share strong | same group as `OtsuGrouper()` |", "|---|---|---|---|"]
    for row in rows:
        radius, strong = (f"{row[what]:.3f} ± {row[f'{what}_sd']:.3f}" for what in ("radius", "strong"))
        lines.append(f"| `{row['grouper']}` | {radius} | {strong} | {100 * row['same']:.1f}% |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    if not parsed().print:
        sizes = {"people": PEOPLE, "feelings": FEELINGS, "batch": BATCH, "seed": SEED}
        write_results(RESULTS, {**environment(World()), **sizes, "rows": measured()})
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
