"""What autograd tells of a loss: the parts of a divided batch add up, or a warning says why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rlbatch
from rlbatch.control import loss_parts
from rlbatch.testing import ScriptedPolicy
from tests.contract.programs import CLASSES, TOKENS, Loss, Rows, train

CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 30.0, 4.0, 5.0], dtype=torch.float64)
ONES = torch.ones(CLASSES, dtype=torch.float64)


def of_logits(function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss of a batch's logits and classes."""
    return lambda model, batch: function(model(batch[1]).mean(1), batch[2])


def each(logits: Tensor, kind: Tensor) -> Tensor:
    return functional.cross_entropy(logits, kind, reduction="none")


def one_hot(kind: Tensor) -> Tensor:
    return functional.one_hot(kind, CLASSES).double()


def info_nce_of_parts(left: Tensor, right: Tensor) -> Tensor:
    mask = 1e9 * torch.eye(len(left))
    return functional.cross_entropy(
        left @ right.T - mask, (torch.arange(len(left)) + 1) % len(left)
    )


def variational(model: nn.Module, batch: Any) -> Tensor:
    found, samples = model(batch[1]), len(batch[1])
    entropy = functional.binary_cross_entropy_with_logits(
        found, torch.ones_like(found), reduction="sum"
    )
    return entropy / samples - 0.3 * (1 + found - found.exp()).sum() / samples


ADD_UP: dict[str, Loss] = {
    "sum / len": of_logits(lambda x, y: each(x, y).sum() / len(x)),
    "sum * (1 / len)": of_logits(lambda x, y: each(x, y).sum() * (1 / len(x))),
    "own mean": of_logits(lambda x, y: each(x, y).mean(dim=0)),
    "variational": variational,
    "batchmean": of_logits(
        lambda x, y: functional.kl_div(x.log_softmax(1), one_hot(y), reduction="batchmean")
    ),
    "soft targets": of_logits(lambda x, y: functional.cross_entropy(x, one_hot(y), CLASS_WEIGHTS)),
    "label smoothing": of_logits(lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1)),
    "positive weights": of_logits(
        lambda x, y: functional.binary_cross_entropy_with_logits(
            x, one_hot(y), pos_weight=CLASS_WEIGHTS
        )
    ),
    "two tasks": of_logits(lambda x, y: 2.0 * each(x, y).mean() + 0.3 * x.square().mean()),
    "weight decay": lambda model, batch: (
        each(model(batch[1]).mean(1), batch[2]).mean()
        + 0.01 * sum(p.square().sum() for p in model.parameters())
    ),
    "orthogonal weights": lambda model, batch: (
        each(model(batch[1]).mean(1), batch[2]).mean()
        + (model[0].weight.T @ model[0].weight - 1.0).square().sum()  # pyright: ignore[reportIndexIssue]
    ),
    "five tasks": of_logits(
        lambda x, y: torch.stack([each(x, y).mean(), *(x.pow(n).mean() for n in range(4))]).mean()
    ),
    "standardised features": of_logits(
        lambda x, y: each((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), y).mean()
    ),
    "nothing of a sum": of_logits(lambda x, y: each(x, y).mean() + 0.0 * x.sum()),
    "nothing at all": of_logits(lambda x, y: 0.0 * each(x, y).sum()),
    "learned weight": lambda model, batch: (
        torch.exp(-model[0].bias[0]) * each(model(batch[1]).mean(1), batch[2]).mean()  # pyright: ignore[reportIndexIssue]
        + model[0].bias[0]  # pyright: ignore[reportIndexIssue]
    ),
}

DO_NOT: dict[str, tuple[Loss, str]] = {
    "sum": (of_logits(lambda x, y: each(x, y).sum()), "a sum over samples"),
    "sum / 8": (of_logits(lambda x, y: each(x, y).sum() / 8), "divided by 8 where there are"),
    "mean * len": (of_logits(lambda x, y: each(x, y).mean() * len(x)), "times the number"),
    "penalty": (
        of_logits(lambda x, y: each(x, y).mean() + 0.01 * x.square().sum()),
        r"divided by 25 for a sample of one part, by 20",
    ),
    "own weights": (
        of_logits(lambda x, y: (each(x, y) * (y + 1) / (y + 1).sum()).sum()),
        "a sum over samples",
    ),
    "root": (
        of_logits(lambda x, y: functional.mse_loss(x, one_hot(y)).sqrt()),
        r"function \(Sqrt\) of a mean",
    ),
    "log": (
        of_logits(lambda x, y: functional.mse_loss(x, one_hot(y)).log()),
        r"function \(Log\) of a mean",
    ),
    "product": (
        of_logits(lambda x, y: each(x, y).mean() * x.square().mean()),
        r"function \(Mul\) of a mean",
    ),
    "ratio": (
        of_logits(lambda x, y: each(x, y).mean() / x.square().mean()),
        r"function \(Div\) of a mean",
    ),
    "hardest": (of_logits(lambda x, y: each(x, y).max()), r"no mean over samples \(Max\)"),
    "hard half": (
        of_logits(lambda x, y: each(x, y).topk(max(len(x) // 2, 1)).values.mean()),
        r"\(Topk\)",
    ),
    "variance": (of_logits(lambda x, y: functional.relu(1 - x.var(0)).mean()), r"\(Var\)"),
    "moments": (of_logits(lambda x, y: (x.mean(0) - ONES).square().sum()), r"\(Pow\)"),
    "pairs": (of_logits(lambda x, y: info_nce_of_parts(x, x)), "compares each sample"),
    "distances": (of_logits(lambda x, y: torch.cdist(x, x).mean()), "compares each sample"),
    "products": (
        of_logits(lambda x, y: (x.T @ x / len(x) - torch.eye(CLASSES)).square().sum()),
        "compares each sample|of a sum over samples",
    ),
    "correlations": (
        of_logits(lambda x, y: (x[:, :3].T @ x[:, 1:4] / len(x) - torch.eye(3)).square().sum()),
        r"function \(Pow\) of a sum over samples",
    ),
    "centred": (
        of_logits(lambda x, y: (x - x.mean(0)).square().mean()),
        "depends on means over the others",
    ),
    "standardised": (
        of_logits(lambda x, y: each((x - x.mean(0)) / (x.std(0) + 1e-5), y).mean()),
        "depends on means over the others",
    ),
    "smoothed tokens": (
        lambda model, batch: functional.cross_entropy(
            model(batch[1]).reshape(-1, CLASSES), batch[3].reshape(-1), label_smoothing=0.1
        ),
        "do not add up",
    ),
}


@pytest.mark.parametrize("name", ADD_UP)
def test_a_mean_over_samples_is_divided_without_a_word(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps = train(ADD_UP[name])
    assert len(steps.divided) > 2
    assert max(steps.errors) < 1e-12


@pytest.mark.parametrize("name", DO_NOT)
def test_anything_else_is_said(name: str) -> None:
    loss, words = DO_NOT[name]
    with pytest.warns(RuntimeWarning, match=words):
        steps = train(loss)
    assert not max(steps.divided) < 1e-3


def test_tokens_with_smoothed_labels_are_weighted() -> None:
    loss, _ = DO_NOT["smoothed tokens"]
    steps = train(loss, weight=lambda batch: (batch[3] >= 0).sum())
    assert max(steps.errors) < 1e-12


def test_a_weight_of_several_numbers_is_refused() -> None:
    with pytest.raises(rlbatch.errors.DeliveryError, match="one number as the weight"):
        train(ADD_UP["own mean"], weight=lambda batch: torch.ones(len(batch[0])))


@pytest.mark.parametrize("name", ["sum", "sum / 8"])
def test_a_sum_that_grows_with_the_batch_is_said(name: str) -> None:
    with pytest.warns(RuntimeWarning, match="with the batch size its gradient grows"):
        train(DO_NOT[name][0], micro_batch_size=None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*ADD_UP, *sorted(DO_NOT.keys() - {"sum", "sum / 8", "penalty"})])
def test_other_losses_of_undivided_batches_are_the_users_affair(name: str) -> None:
    train(ADD_UP.get(name) or DO_NOT[name][0], micro_batch_size=None)


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_the_size_stays() -> None:
    train(DO_NOT["sum"][0], micro_batch_size=None, policy="fixed")


def test_a_classifier_of_as_many_classes_as_samples_compares_nothing() -> None:
    """Nor does attention over as many places as samples."""
    torch.manual_seed(0)
    rows, attention = Rows(), nn.MultiheadAttention(6, 1, batch_first=True).double()
    model = nn.Sequential(nn.Linear(6, TOKENS), nn.Linear(TOKENS, TOKENS)).double()
    optimizer = torch.optim.SGD([*model.parameters(), *attention.parameters()], lr=0.01)
    controller = rlbatch.BatchController(
        nn.ModuleList([model, attention]), optimizer, batch_size=TOKENS,
        policy=ScriptedPolicy((1.0,)), micro_batch_size=TOKENS, cost="samples",
    )  # fmt: skip
    loader = controller.loader(torch.utils.data.DataLoader(rows, TOKENS, shuffle=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            for _, x, kind, _ in loader:
                logits = model(attention(x, x, x)[0])
                controller.backward(functional.cross_entropy(logits.mean(1), kind))
                controller.step()
    assert controller.batch_size == 2 * TOKENS


def test_a_graph_that_cannot_be_read_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("saved tensors were freed")

    monkeypatch.setattr(loss_parts, "read", fails)
    steps = train(of_logits(lambda x, y: each(x, y).sum()), policy=ScriptedPolicy((1.0, 1.0)))
    assert len(steps.errors) > 5
