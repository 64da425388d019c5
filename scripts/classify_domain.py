"""What in an observation tells simulated runs from real ones.

    python scripts/record_observations.py simulated small field --runs 8 --out out/observations
    python scripts/classify_domain.py out/observations

For every feature its area under the ROC curve (0.5 says nothing, 1 everything; taken on the side
on which it is above a half), and that of two classifiers of all features on runs that were held
out: a logistic regression and a small perceptron. Each against the small tasks and against the
field suite, with the observation as it is and as it was before the size of the data set was
clipped; as it is, also from each group of features alone and from all but it. Every run counts
alike: so many decisions of it are drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rlbatch.observation import GROUPS, OBSERVATION_NAMES

REAL = ("small", "field")
CHUNKS = 12  # decisions drawn from each run
HELD_OUT = 0.3  # share of the runs
BALANCE = 4  # simulated runs for each real one
FOLDS = 5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recorded", type=Path)
    parser.add_argument("--top", type=int, default=12, help="features shown")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    kinds = {name: np.load(arguments.recorded / f"{name}.npz") for name in ("simulated", *REAL)}
    tables: dict[str, np.ndarray] = {}
    for real in REAL:
        simulated, other = kinds["simulated"], kinds[real]
        share = BALANCE * len(np.unique(other["run"])) / len(np.unique(simulated["run"]))
        one, two = drawn(simulated, rng, min(share, 1.0)), drawn(other, rng, 1.0)
        seen = np.concatenate([one[0], two[0]])
        before = np.concatenate([unclipped(*one[:2]), unclipped(*two[:2])])
        runs = np.concatenate([one[2], -1 - two[2]])
        is_real = np.arange(len(seen)) >= len(one[0])
        for when, values in (("before", before), ("now", seen)):
            tables[f"{real} {when}"] = single(values, is_real)
            linear, bent = held_out(values, is_real, runs)
            print(f"{real} {when}: logistic {linear:.3f}, perceptron {bent:.3f}", flush=True)
        for group, names in GROUPS.items():
            columns = [OBSERVATION_NAMES.index(name) for name in names]
            alone = held_out(seen[:, columns], is_real, runs)[1]
            rest = held_out(np.delete(seen, columns, axis=1), is_real, runs)[1]
            print(f"{real} now, perceptron: {group} alone {alone:.2f}, all others {rest:.2f}")
    show(tables, arguments.top)


def drawn(
    recorded: np.lib.npyio.NpzFile, rng: np.random.Generator, share: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return observations, numbers and runs of a share of the runs, a few decisions each."""
    runs = recorded["run"]
    kept: list[np.ndarray] = []
    for run in np.unique(runs):
        if rng.random() < share:
            places = np.flatnonzero(runs == run)
            kept.append(rng.permutation(places)[:CHUNKS])
    places = np.concatenate(kept)
    return recorded["observation"][places], recorded["numbers"][places], runs[places]


def unclipped(seen: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return observations as they were when they told the size of the data set."""
    dataset, size, samples = numbers.T
    values = {
        "epoch_steps": np.log2(dataset / size) / 12,
        "epochs_done": np.log1p(samples / dataset) / 5,
    }
    changed = seen.copy()
    for name, value in values.items():
        changed[:, OBSERVATION_NAMES.index(name)] = np.clip(value, -1.0, 1.0)
    return changed


def single(values: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """Return the area under the curve of each feature, at least a half."""
    areas = np.array([roc_auc_score(is_real, column) for column in values.T])
    return np.maximum(areas, 1.0 - areas)


def held_out(values: np.ndarray, is_real: np.ndarray, runs: np.ndarray) -> tuple[float, float]:
    """Return the mean areas of both classifiers on runs that they were not trained on."""
    areas: list[tuple[float, float]] = []
    for fold in range(FOLDS):
        rng = np.random.default_rng(fold)
        out = np.array([run for run in np.unique(runs) if rng.random() < HELD_OUT])
        test = np.isin(runs, out)
        models = (
            make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2_000)),
            make_pipeline(
                StandardScaler(),
                MLPClassifier((32,), alpha=1e-2, early_stopping=True, random_state=fold),
            ),
        )
        fitted = [model.fit(values[~test], is_real[~test]) for model in models]
        scores = [model.predict_proba(values[test])[:, 1] for model in fitted]
        linear, bent = (float(roc_auc_score(is_real[test], score)) for score in scores)
        areas.append((linear, bent))
    linear, bent = np.mean(areas, axis=0)
    return float(linear), float(bent)


def show(tables: dict[str, np.ndarray], top: int) -> None:
    """Print the features that give most away, under any heading."""
    print("| feature | " + " | ".join(tables) + " |")
    print("|---" * (len(tables) + 1) + "|")
    areas = np.stack(list(tables.values()))
    for place in np.argsort(-areas.max(axis=0))[:top]:
        cells = " | ".join(f"{area:.2f}" for area in areas[:, place])
        print(f"| `{OBSERVATION_NAMES[place]}` | {cells} |")


if __name__ == "__main__":
    main()
