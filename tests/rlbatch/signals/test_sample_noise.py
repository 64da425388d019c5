"""Gradient noise of undivided batches against every sample's own gradient, by `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.checkpoint import checkpoint

from rlbatch.signals import noise_scale, sample_noise
from rlbatch.signals.metric import make_metric
from rlbatch.signals.monitor import ChunkMeasurement, ChunkMonitor
from rlbatch.signals.sample_layers import probe_of
from rlbatch.signals.sample_noise import SampleGradients
from tests.helpers import optimizer_step

N = 12
Contribution = Callable[[Tensor, Tensor], Tensor]
"""What one sample's output and target add to the batch's loss; both with a leading axis of 1."""


def mean_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="sum") / N


class Convolutions(nn.Module):
    """Plain, strided, grouped, depthwise, dilated and circular ones, one of which has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(3, 6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 9, 3, padding="same", groups=3),
            nn.Tanh(),
            nn.Conv2d(9, 9, (2, 3), dilation=(1, 2), padding=(0, 2), groups=9),
            nn.Conv2d(9, 4, 3, padding=1, padding_mode="circular"),
        )
        self.line = nn.Conv1d(4, 5, 3, padding="same", dilation=2, groups=1)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.line(self.layers(x).flatten(2)).mean(2))


class Transformer(nn.Module):
    """Attention by hand, a sequence's outputs, a layer used twice, a shift that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6, padding_idx=0)
        self.first, self.second = nn.LayerNorm(6), nn.RMSNorm(6)
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.wide = nn.Linear(6, 9)
        self.narrow = nn.Linear(9, 6)
        self.head = nn.Linear(6, 3)
        self.first.bias.requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        for _ in range(2):
            y = self.first(x)
            scores = self.query(y) @ self.key(y).transpose(1, 2)
            x = x + scores.softmax(-1) @ self.value(y)
            x = x + self.narrow(self.wide(input=self.second(x)).relu())
        return self.head(x)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def data_of(model: nn.Module, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (N,), generator=generator)
    if isinstance(model, Convolutions):
        return torch.randn(N, 2, 6, 7, generator=generator), labels
    if isinstance(model, Transformer):
        labels = torch.randint(3, (N, 4), generator=generator)
        return torch.randint(7, (N, 4), generator=generator), labels
    return torch.randn(N, 5, generator=generator), labels


def sample_gradients(
    model: nn.Module, x: Tensor, y: Tensor, contribution: Contribution
) -> dict[str, Tensor]:
    """Each sample's contribution to the gradient of the batch's loss, by vmap(grad)."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(model, {**fixed, **parameters}, (x[None],))
        return contribution(output, y[None])

    return vmap(grad(loss), (None, 0, 0))(trained, x, y)


def expected(rows: Tensor, weight: Tensor | float = 1.0) -> tuple[float, float, float]:
    """|G|^2, tr(Sigma) and cosine from contributions [samples, elements], by sample variance."""
    samples = (len(rows) * rows).double()
    weight = torch.as_tensor(weight, dtype=torch.float64)
    trace = float((samples.var(dim=0) * weight).sum())
    grad_sqr = float((samples.mean(0).square() * weight).sum()) - trace / len(rows)
    return grad_sqr, trace, grad_sqr / (grad_sqr + 2 * trace / len(rows))


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1)


def step(
    model: nn.Module,
    optimizer: Optimizer,
    monitor: ChunkMonitor | None,
    contribution: Contribution,
    *,
    seed: int = 0,
    scaler: Any = None,
) -> None:
    x, y = data_of(model, seed)
    if monitor is not None:
        monitor.begin_step([len(x)], measured=True)
    loss = contribution(model(x), y)
    (loss if scaler is None else scaler.scale(loss)).backward()
    if monitor is not None:
        monitor.after_backward(loss)
    optimizer_step(optimizer, scaler)


def measured(result: ChunkMeasurement) -> tuple[float, float, float]:
    return result.grad_sqr, result.noise_trace, result.gradient_cosine


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0])


def weighted(output: Tensor, target: Tensor) -> Tensor:
    """Weighted cross-entropy as torch takes its mean: over the batch's sum of weights."""
    output, target = output.flatten(0, -2), target.flatten()
    total = functional.cross_entropy(output, target, CLASS_WEIGHTS, reduction="sum")
    return total / 7.25


def padded(output: Tensor, target: Tensor) -> Tensor:
    """A mean over the places that are not padding, which samples have in different numbers."""
    output, target = output.flatten(0, -2), target.flatten()
    return functional.cross_entropy(output, target, ignore_index=1, reduction="sum") / 5.0


def summed(output: Tensor, target: Tensor) -> Tensor:
    return mean_loss(output, target) * N


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of these small layers are the layers."""
    monkeypatch.setattr(sample_noise, "_ELEMENTS", 1 << 20)
    monkeypatch.setattr(sample_noise, "MAX_LAYERS", 20)


@pytest.mark.parametrize("make_model", [perceptron, Convolutions, Transformer])
@pytest.mark.parametrize("contribution", [mean_loss, summed, weighted, padded])
@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_the_samples_own_gradients(
    make_model: Callable[[], nn.Module], contribution: Contribution, adaptive: bool
) -> None:
    torch.manual_seed(1)
    model = make_model()
    optimizer = (AdamW if adaptive else SGD)(model.parameters(), lr=0.01)
    for seed in range(1, 4):
        step(model, optimizer, None, contribution, seed=seed)
    gradients = sample_gradients(model, *data_of(model), contribution)
    weight: Tensor | float = 1.0
    metric = make_metric(model.parameters(), optimizer)
    assert metric is not None
    if metric.scales is not None:
        weight = torch.cat([scale.flatten() for scale in metric.scales]).double().square()
    reference = expected(flat(gradients), weight)
    monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
    step(model, optimizer, monitor, contribution)
    assert measured(monitor.finish()) == pytest.approx(reference, rel=2e-4)


class Normalised(nn.Module):
    """Batch normalisation whose scale and shift may be written out for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.each: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.each is None:
            return self.norm(x).square().mean((2, 3))
        bare = functional.batch_norm(
            x, self.norm.running_mean, self.norm.running_var, training=self.norm.training
        )
        scale, shift = (part[:, :, None, None] for part in self.each)
        return (bare * scale + shift).square().mean((2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_shows_what_samples_contribute_through_it(training: bool) -> None:
    torch.manual_seed(0)
    model, x = Normalised(), 1 + 2 * torch.randn(N, 3, 2, 4)
    model.norm.weight.data.uniform_(0.0, 1.0)
    y = torch.randint(3, (N,))
    for _ in range(3):
        model(x)
    model.train(training)
    model.each = (
        model.norm.weight.detach().expand(N, 3).clone().requires_grad_(),
        model.norm.bias.detach().expand(N, 3).clone().requires_grad_(),
    )
    rows = torch.cat(torch.autograd.grad(mean_loss(model(x), y), model.each), dim=1)
    model.each = None
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    monitor.begin_step([N], measured=True)
    loss = mean_loss(model(x), y)
    loss.backward()
    monitor.after_backward(loss)
    assert measured(monitor.finish()) == pytest.approx(expected(rows), rel=1e-4)


@pytest.mark.parametrize("make_model", [perceptron, Convolutions, Transformer])
def test_blocks_are_exact_and_unbiased_for_the_whole(make_model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)
    model = make_model()
    x, y = data_of(model)
    gradients = sample_gradients(model, x, y, mean_loss)
    names = {id(p): name for name, p in model.named_parameters()}
    norms: dict[str, list[float]] = {}
    for seed in range(200):
        probes = []
        for layer in sample_noise.measurable_layers(model):
            kind = probe_of(layer)
            assert kind is not None
            probes.append(kind(layer, N, 4, Random(seed)))
        hooks: list[Any] = [sample_noise._ForwardHook(probe) for probe in probes]
        handles = [
            probe.layer.register_forward_hook(hook, with_kwargs=True)
            for probe, hook in zip(probes, hooks, strict=True)
        ]
        mean_loss(model(x), y).backward()
        for handle in handles:
            handle.remove()
        for block in (block for probe in probes for block in probe.blocks()):
            name = names[id(block.parameter)]
            rows = torch.stack([block.view(g) for g in gradients[name]])
            weight = torch.rand_like(rows[0])
            norms.setdefault(name, []).append(block.factor * float(rows.square().sum()))
            if seed > 4:
                continue
            squares = (rows.square() * weight).flatten(1).sum(1)
            torch.testing.assert_close(block.total(), rows.sum(0), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(block.squares(weight), squares, rtol=1e-4, atol=1e-9)
            torch.testing.assert_close(
                block.squares(None), rows.square().flatten(1).sum(1), rtol=1e-4, atol=1e-9
            )
    assert set(norms) == set(gradients)
    for name, values in norms.items():
        whole = float(gradients[name].square().sum())
        drawn = torch.tensor(values)
        error = 4.5 * float(drawn.std()) / len(values) ** 0.5 + 1e-5 * whole
        assert float(drawn.mean()) == pytest.approx(whole, abs=error), name


def test_estimates_are_unbiased_and_their_errors_honest() -> None:
    """Many small batches of a population whose mean gradient and covariance are known."""
    torch.manual_seed(0)
    model = perceptron()
    x = torch.randn(4096, 5)
    y = (x[:, :3] + torch.randn(4096, 3)).argmax(1)
    rows = flat(sample_gradients(model, x, y, mean_loss)) * N
    grad_sqr, trace = float(rows.mean(0).square().sum()), float(rows.var(0).sum())
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    found = []
    for seed in range(600):
        chosen = torch.randint(4096, (N,), generator=torch.Generator().manual_seed(seed))
        monitor.begin_step([N], measured=True)
        loss = mean_loss(model(x[chosen]), y[chosen])
        loss.backward()
        monitor.after_backward(loss)
        model.zero_grad()
        noise = monitor.finish()
        found.append((noise.grad_sqr, noise.noise_trace, noise.noise_trace_se))
    squares, traces, errors = torch.tensor(found, dtype=torch.float64).T
    assert float(squares.mean()) == pytest.approx(grad_sqr, abs=4 * float(squares.std()) / 600**0.5)
    assert float(traces.mean()) == pytest.approx(trace, abs=4 * float(traces.std()) / 600**0.5)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(traces.std()), rel=0.3)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.05, momentum=0.9), AdamW])
@pytest.mark.parametrize("make_model", [perceptron, Convolutions, Transformer])
def test_watching_changes_no_bit(
    make: Callable[[Any], Optimizer], make_model: Callable[[], nn.Module]
) -> None:
    weights: list[list[Tensor]] = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = make_model()
        optimizer = make(model.parameters())
        monitor = ChunkMonitor(model.parameters(), optimizer, model=model) if watched else None
        for seed in range(5):
            step(model, optimizer, monitor, mean_loss, seed=seed)
        weights.append([p.detach() for p in model.parameters()])
        if monitor is not None:
            assert monitor.finish().measurements >= 3
        assert not any(layer._forward_hooks for layer in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_scale_of_mixed_precision_is_divided_out() -> None:
    results: list[ChunkMeasurement] = []
    for scaled in (False, True):
        torch.manual_seed(1)
        model = perceptron()
        optimizer = SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        monitor = ChunkMonitor(
            model.parameters(), optimizer, model=model, scaler=scaler if scaled else None
        )
        for seed in range(5):
            step(
                model,
                optimizer,
                monitor,
                mean_loss,
                seed=seed,
                scaler=scaler if scaled else None,
            )
        results.append(monitor.finish())
    assert measured(results[1]) == pytest.approx(measured(results[0]), rel=1e-4)
    assert results[0].measurements == results[1].measurements == 5


def test_steps_that_are_not_finite_are_left_out() -> None:
    torch.manual_seed(1)
    model = perceptron()
    x, y = data_of(model)
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    # The last one has an overflow behind a finite loss, as under a GradScaler.
    changes = [lambda out: 1.0, lambda out: torch.inf, lambda out: 1 + (out - out.detach()).sqrt()]
    for change in changes:
        monitor.begin_step([N], measured=True)
        output = model(x)
        loss = (mean_loss(output, y) * change(output)).mean()
        loss.backward()
        monitor.after_backward(loss)
        model.zero_grad()
    result = monitor.finish()
    assert (result.measurements, result.nonfinite_losses, result.nonfinite_steps) == (1, 1, 2)
    assert result.noise_trace > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = perceptron()
    x, y = data_of(model)
    reference = expected(flat(sample_gradients(model, x, y, mean_loss)))
    model.to(dtype)
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    monitor.begin_step([N], measured=True)
    loss = mean_loss(model(x.to(dtype)), y)
    loss.backward()
    monitor.after_backward(loss)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert measured(monitor.finish()) == pytest.approx(reference, rel=tolerance)


def test_autocast() -> None:
    torch.manual_seed(1)
    model = Transformer()
    x, y = data_of(model)
    reference = expected(flat(sample_gradients(model, x, y, mean_loss)))
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    monitor.begin_step([N], measured=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean_loss(model(x).float(), y)
    loss.backward()
    monitor.after_backward(loss)
    assert measured(monitor.finish()) == pytest.approx(reference, rel=0.1)


# -- where the samples of a layer cannot be told apart --


class Awkward(nn.Module):
    """A head whose gradient is known, behind a layer that is used in some awkward way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer, self.head = nn.Linear(5, 5, bias=kind != "used by hand"), nn.Linear(5, 3)
        self.twin = nn.Linear(5, 5)
        if kind == "tied":
            self.twin.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "merged":
            x = self.layer(torch.cat([x, -x])).unflatten(0, (2, len(x))).sum(0)
        elif self.kind == "one of two calls merged":
            x = self.layer(self.layer(torch.cat([x, -x])).unflatten(0, (2, len(x))).sum(0))
        elif self.kind == "sequence first":
            x = self.layer(x.expand(len(x), *x.shape).contiguous()).mean(0)
        elif self.kind == "tied":
            x = self.twin(self.layer(x).tanh())
        elif self.kind == "used by hand":
            x = functional.linear(self.layer(x).tanh(), self.layer.weight)
        elif self.kind == "looked into":
            out = self.layer(x)
            torch.autograd.grad(out.square().sum(), self.layer.bias, retain_graph=True)
            x = out
        return self.head(x.tanh())


@pytest.mark.parametrize(
    "kind",
    ["merged", "one of two calls merged", "sequence first", "tied", "used by hand", "looked into"],
)
def test_layers_whose_samples_cannot_be_told_apart_are_left_out(kind: str) -> None:
    torch.manual_seed(3)
    model = Awkward(kind)
    x, y = data_of(model)
    every = sample_gradients(model, x, y, mean_loss) if kind != "sequence first" else None
    seen = []
    head = model.head.register_forward_hook(lambda layer, args, out: seen.append(args[0].detach()))
    model(x)
    head.remove()
    gradients = sample_gradients(model.head, seen[0], y, mean_loss)
    reference = expected(flat(gradients))
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    monitor.begin_step([N], measured=True)
    loss = mean_loss(model(x), y)
    loss.backward()
    whole = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    head_sqr = sum(float(p.grad.square().sum()) for p in model.head.parameters())  # type: ignore[union-attr]
    monitor.after_backward(loss)
    found = measured(monitor.finish())
    # what is measured, scaled to the whole gradient's norm
    scale = whole / head_sqr
    scaled = reference[0] * scale, reference[1] * scale, reference[2]
    assert found == pytest.approx(scaled, rel=1e-4)
    assert every is None or whole == pytest.approx(
        float(flat(every).sum(0).square().sum()), rel=1e-4
    )


def test_a_penalty_on_the_weights_alone_leaves_their_layers_out_if_it_is_large() -> None:
    torch.manual_seed(1)
    model = perceptron()

    def penalised(output: Tensor, target: Tensor) -> Tensor:
        return mean_loss(output, target) + 100 * model[0].weight.square().sum()  # type: ignore[index]

    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.0), model=model)
    step(model, SGD(model.parameters(), lr=0.0), monitor, penalised)
    assert monitor.finish().measurements == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_are_measured_once(reentrant: bool) -> None:
    torch.manual_seed(1)
    model = perceptron()
    x, y = data_of(model)
    reference = expected(flat(sample_gradients(model, x, y, mean_loss)))
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    monitor.begin_step([N], measured=True)
    x.requires_grad_()
    output: Any = checkpoint(model, x, use_reentrant=reentrant)
    loss = mean_loss(output, y)
    loss.backward()
    monitor.after_backward(loss)
    assert measured(monitor.finish()) == pytest.approx(reference, rel=1e-4)


class Unknown(nn.Module):
    """A layer of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_without_a_known_layer_nothing_is_measured_and_no_step_is_bad() -> None:
    model = Unknown()
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
    step(model, optimizer, monitor, mean_loss)
    result = monitor.finish()
    assert (result.measurements, result.nonfinite_steps) == (0, 0)


def test_layers_used_by_hand_alone_are_no_bad_step() -> None:
    layer = nn.Linear(5, 3)
    model = nn.Sequential(layer)
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
    x, y = data_of(model)
    monitor.begin_step([N], measured=True)
    loss = mean_loss(model(x) + 9 * functional.linear(x.abs(), layer.weight), y)
    loss.backward()
    monitor.after_backward(loss)
    result = monitor.finish()
    assert (result.measurements, result.nonfinite_steps) == (1, 0)  # the bias is left


def test_compiled_models_are_not_watched() -> None:
    model = torch.compile(perceptron(), backend="eager")
    assert sample_noise.measurable_layers(model) == []  # type: ignore[arg-type]
    inner = perceptron()
    inner[0].compile(backend="eager")  # type: ignore[index]
    assert sample_noise.measurable_layers(inner) == [inner[2]]  # type: ignore[index]


def test_a_model_compiled_elsewhere_is_not_measured_and_goes_on() -> None:
    model = perceptron()
    compiled = torch.compile(model, backend="eager")
    monitor = ChunkMonitor(model.parameters(), SGD(model.parameters(), lr=0.1), model=model)
    x, y = data_of(model)
    for measure in (True, False, True):
        monitor.begin_step([N], measured=measure)
        loss = mean_loss(compiled(x), y)
        loss.backward()
        monitor.after_backward(loss)
        model.zero_grad()
    assert monitor.finish().nonfinite_steps == 0


def test_running_out_of_memory_costs_the_measurement_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError

    torch.manual_seed(1)
    model = perceptron()
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
    for name in ("keep", "add", "blocks"):
        with monkeypatch.context() as patch:
            patch.setattr(sample_noise.probe_of(model[0]), name, no_memory)  # type: ignore[index]
            step(model, optimizer, monitor, mean_loss)
    assert monitor.finish().measurements == 0


def test_many_layers_are_sampled_and_the_scale_is_that_of_all() -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(5, 5) for _ in range(sample_noise.MAX_LAYERS + 8)]
    model = nn.Sequential(*layers, nn.Linear(5, 3))
    watch = SampleGradients(model)
    watch.begin(N, "0")
    assert len(watch._probes) == sample_noise.MAX_LAYERS
    first = {id(probe.layer) for probe in watch._probes}
    watch.begin(N, "1")
    assert {id(probe.layer) for probe in watch._probes} != first
    x, y = data_of(model)
    mean_loss(model(x), y).backward()
    metric = make_metric(model.parameters(), SGD(model.parameters(), lr=0.1))
    noise = watch.finish(metric)
    assert noise is not None
    whole = sum(float(p.grad.square().sum()) for p in model.parameters())  # type: ignore[union-attr]
    assert float(noise.big_sqr) == pytest.approx(whole, rel=1e-5)
    grad_sqr, trace = noise_scale.estimate(float(noise.small_sqr), float(noise.big_sqr), 1, N)
    assert float(grad_sqr + trace / N) == pytest.approx(whole, rel=1e-5)


def test_a_resumed_chunk_measures_the_same(tmp_path: Any) -> None:
    def run(break_at: int | None) -> ChunkMeasurement:
        torch.manual_seed(1)
        model = Transformer()
        optimizer = AdamW(model.parameters())
        monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
        for seed in range(9):
            if seed == break_at:
                torch.save(monitor.state_dict(), tmp_path / "state")
                monitor = ChunkMonitor(model.parameters(), optimizer, model=model)
                monitor.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
            step(model, optimizer, monitor, mean_loss, seed=seed)
            if seed == 3:
                monitor.finish()
        return monitor.finish()

    assert run(6) == run(None)
