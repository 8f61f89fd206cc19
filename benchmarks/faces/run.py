"""The figures of docs/faces.md: how fast faces are drawn, and how the label depends on the person.

    python benchmarks/faces/run.py             # both, a few minutes
    python benchmarks/faces/run.py speed       # pictures per second on one core, by size
    python benchmarks/faces/run.py --print benchmarks/faces/results/faces.json      # its tables in docs/faces.md
    python benchmarks/faces/run.py identity    # how well a linear reader does on people it knows and on strangers

With ``--out FILE`` the numbers are also written as JSON, with versions, processor, commit and load of the machine.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_margin.faces import FacesDataset, draw_faces, face_geometry, sample_identities
from adaptive_margin.messages import said_plainly
from adaptive_margin.processes import ends_in_order
from adaptive_margin.training.command_line import check_output, json_with

sys.path.insert(0, str(Path(__file__).parents[1]))  # for modules in the folder above
from script import Parser, print_results, read_results, write_results

Array = NDArray[np.float64]


# -- speed ------------------------------------------------------------------------------------------------------------


def speed(n: int, repeats: int) -> list[dict[str, Any]]:
    """Whole calls of draw_faces, disturbances sampled within; nothing is cached between them.

    Drawing is elementwise numpy, which runs on one thread; on a busy machine the rate per second of CPU time says more
    than the one per second of wall time.
    """
    rows = []
    for size in (32, 64, 96, 128, 224, 256):
        count = max(64, min(4 * n, n * 96 * 96 // (size * size)))
        data = FacesDataset(100, -(-count // 100), seed=1, size=size)
        people = sample_identities(100, 1).take(data.person[:count])
        v, a, seeds = data.av[:count, 0], data.av[:count, 1], data.nuisance_seeds[:count]
        walls, cpus = [], []
        for _ in range(repeats + 1):  # the first call warms up
            wall, cpu = time.perf_counter(), time.process_time()
            draw_faces(people, v, a, size=size, nuisance_seeds=seeds)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        wall_rates, cpu_rates = (np.sort(count / np.array(x[1:])) for x in (walls, cpus))
        rows.append(
            {
                "size": size,
                "pictures": count,
                "repeats": repeats,
                "per_second_median": float(np.median(wall_rates)),
                "per_second_best": float(wall_rates[-1]),
                "per_cpu_second_median": float(np.median(cpu_rates)),
                "per_cpu_second_best": float(cpu_rates[-1]),
            }
        )
    return rows


# -- person dependence ------------------------------------------------------------------------------------------------


def expression_features(points: NDArray[np.float32]) -> Array:
    """What 68 landmarks show of an expression, in units of the distance between the eyes."""
    p = points.astype(np.float64)
    left, right = p[:, 36:42].mean(axis=1), p[:, 42:48].mean(axis=1)
    unit = np.linalg.norm(right - left, axis=1)
    y = p[:, :, 1]
    eyes = (left[:, 1] + right[:, 1]) / 2
    features = [
        (y[:, 48] + y[:, 54]) / 2 - (y[:, 62] + y[:, 66]) / 2,  # corners against the middle of the mouth
        y[:, 66] - y[:, 62],  # opening
        p[:, 54, 0] - p[:, 48, 0],  # width
        y[:, 57] - y[:, 51],  # lips and opening
        (y[:, 41] + y[:, 40] - y[:, 37] - y[:, 38] + y[:, 47] + y[:, 46] - y[:, 43] - y[:, 44]) / 4,  # lids
        eyes - (y[:, 21] + y[:, 22]) / 2,  # inner brows
        eyes - (y[:, 17] + y[:, 26]) / 2,  # outer brows
        p[:, 22, 0] - p[:, 21, 0],  # distance of the brows
        y[:, 8] - eyes,  # jaw
    ]
    x = np.stack(features, axis=1) / unit[:, None]
    return np.concatenate([x, x**2, x[:, :1] * x[:, 1:2], x[:, :1] * x[:, 4:5]], axis=1)


def ridge(x: Array, y: Array, strength: float) -> Any:
    """A linear map, inputs standardised, intercept free; returns the function that applies it."""
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = (x - mean) / sd
    weights = np.linalg.solve(z.T @ z + strength * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean(axis=0)))
    return lambda new: ((new - mean) / sd) @ weights + y.mean(axis=0)


def scores(predicted: Array, true: Array) -> dict[str, float]:
    """RMSE and concordance of valence and arousal (population statistics)."""
    result = {}
    for k, label in enumerate(("valence", "arousal")):
        p, t = predicted[:, k], true[:, k]
        covariance = ((p - p.mean()) * (t - t.mean())).mean()
        result[f"rmse_{label}"] = float(np.sqrt(((p - t) ** 2).mean()))
        result[f"ccc_{label}"] = float(2 * covariance / (p.var() + t.var() + (p.mean() - t.mean()) ** 2))
    return result


def identity(seed: int, n_people: int, n_images: int) -> list[dict[str, Any]]:
    """The same reader fitted on the person, on others, and on others with knowledge of who they are."""
    data = FacesDataset(n_people, n_images, seed=seed, size=32, disturb=False)
    av, person = data.av.astype(np.float64), data.person
    people = data.identities.take(person)
    geometry, _ = face_geometry(people, av[:, 0], av[:, 1], size=256, disturb=False)
    looks = np.concatenate(
        [people.skin_colour, people.hair_colour, np.stack([people.head_width, people.age, people.nose_width], axis=1)],
        axis=1,
    ).astype(np.float64)
    looks = (looks - looks.mean(axis=0)) / looks.std(axis=0)
    x = expression_features(geometry)
    grey = data.images.astype(np.float64).mean(axis=3).reshape(len(x), -1) / 255
    aware = np.concatenate([x] + [x * looks[:, k : k + 1] for k in range(looks.shape[1])] + [looks], axis=1)

    number = np.tile(np.arange(n_images), n_people)
    known, fit = person < n_people // 2, number < n_images // 2
    rows = []
    for name, features, strength in (
        ("landmarks", x, 1e-3),
        ("landmarks, told apart by looks", aware, 1e-3),
        ("pixels", grey, 1e-2),
    ):
        reader = ridge(features[known & fit], av[known & fit], strength)
        tests = {"seen people": known & ~fit, "unseen people": ~known}
        for test, rows_of in tests.items():
            rows.append(
                {"reader": name, "fitted on": "many people", "tested on": test}
                | scores(reader(features[rows_of]), av[rows_of])
            )
        if name.endswith("looks"):
            continue
        own, true = [], []
        for one in range(n_people // 2, n_people):
            mine = person == one
            own.append(ridge(features[mine & fit], av[mine & fit], 10 * strength)(features[mine & ~fit]))
            true.append(av[mine & ~fit])
        rows.append(
            {"reader": name, "fitted on": "this person", "tested on": "this person"}
            | scores(np.concatenate(own), np.concatenate(true))
        )
    return [{"seed": seed, **row} for row in rows]


def identity_table(seeds: int, n_people: int, n_images: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every seed, and mean and standard deviation over seeds."""
    runs = [row for seed in range(seeds) for row in identity(seed, n_people, n_images)]
    keys = ("reader", "fitted on", "tested on")
    table = []
    for cell in dict.fromkeys(tuple(row[k] for k in keys) for row in runs):
        same = [row for row in runs if tuple(row[k] for k in keys) == cell]
        line: dict[str, Any] = dict(zip(keys, cell, strict=True))
        for score in ("rmse_valence", "rmse_arousal", "ccc_valence", "ccc_arousal"):
            values = np.array([row[score] for row in same])
            line[score], line[f"{score}_sd"] = float(values.mean()), float(values.std(ddof=1)) if seeds > 1 else 0.0
        table.append(line | {"seeds": seeds})
    return runs, table


# -- main -------------------------------------------------------------------------------------------------------------


TESTED = {"this person": "this person", "seen people": "the same people", "unseen people": "strangers"}


def tables(result: dict[str, Any]) -> str:
    """What each reader reaches, and the speed, in Markdown."""
    scores = ("rmse_valence", "rmse_arousal", "ccc_valence", "ccc_arousal")
    heads = ["reader", "fitted on", "tested on", "RMSE valence", "RMSE arousal", "CCC valence", "CCC arousal"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for reader in dict.fromkeys(row["reader"] for row in result["identity"]):
        rows = {row["tested on"]: row for row in result["identity"] if row["reader"] == reader}
        for tested, said in TESTED.items():
            if row := rows.get(tested):
                cells = [f"{row[each]:.3f}" + f" ± {row[f'{each}_sd']:.3f}" * ("rmse" in each) for each in scores]
                lines.append("| " + " | ".join([reader, row["fitted on"], said, *cells]) + " |")
    repeats = result["speed"][0]["repeats"]
    lines += ["", f"| size | per second of CPU time (median of {repeats}) | per second of wall time |", "|---|---|---|"]
    for row in result["speed"]:
        rates = [row[f"per_{each}_median"] for each in ("cpu_second", "second")]
        lines.append(f"| {row['size']} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |")
    return "\n".join(lines)


@ends_in_order("nothing is written")
@said_plainly()
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "speed", "identity"), default="all")
    parser.add_argument("--n", type=int, default=1024, help="pictures of 96 px per call (speed)")
    parser.add_argument("--repeats", type=int, default=5, help="calls per size (speed)")
    parser.add_argument("--seeds", type=int, default=5, help="data sets (identity)")
    parser.add_argument("--people", type=int, default=80, help="people per data set, half of them unseen (identity)")
    parser.add_argument("--images", type=int, default=80, help="pictures per person (identity)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--print", type=Path, help="print the tables of this JSON file, in Markdown; measures nothing")
    args = parser.parse_args()
    if args.print:
        print_results(args.print, lambda: tables(read_results(args.print)))
        return
    from adaptive_margin.training import World, environment  # with PyTorch, which --print does not need

    if args.out:

        def earlier(content: bytes) -> bool:
            return json_with("speed")(content) or json_with("identity")(content)

        check_output("--out", args.out, file=True, replaces=earlier)

    result: dict[str, Any] = {"environment": environment(World()), "load_average": list(os.getloadavg())}
    print(f"{result['environment']['device']}, load {result['load_average']}")
    if args.what in ("all", "speed"):
        result["speed"] = speed(args.n, args.repeats)
        print("\npictures per second, one process, one thread (median and best of the calls)")
        print(f"{'size':>6} {'pictures':>9} {'wall':>8} {'best':>8} {'CPU time':>9} {'best':>8}")
        for row in result["speed"]:
            rates = [row[f"per_{k}_{best}"] for k in ("second", "cpu_second") for best in ("median", "best")]
            cells = "".join(f"{rate:>{width}.0f}" for rate, width in zip(rates, (9, 9, 10, 9), strict=True))
            print(f"{row['size']:>6} {row['pictures']:>9}{cells}")
    if args.what in ("all", "identity"):
        result["identity_runs"], result["identity"] = identity_table(args.seeds, args.people, args.images)
        print(f"\nridge regression, undisturbed faces, mean ± standard deviation over {args.seeds} data sets")
        print(f"{'reader':<32}{'fitted on':<14}{'tested on':<15}{'RMSE v':>14}{'RMSE a':>14}{'CCC v':>14}{'CCC a':>14}")
        for row in result["identity"]:
            cells = [
                f"{row[k]:.3f} ± {row[k + '_sd']:.3f}"
                for k in ("rmse_valence", "rmse_arousal", "ccc_valence", "ccc_arousal")
            ]
            print(
                f"{row['reader']:<32}{row['fitted on']:<14}{row['tested on']:<15}" + "".join(f"{c:>14}" for c in cells)
            )
    if args.out:
        write_results(args.out, result)


if __name__ == "__main__":
    main()
