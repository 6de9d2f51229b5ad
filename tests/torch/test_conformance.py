"""The conformance suite on PyTorch, and that it notices what it should."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spile.interfaces import Activations, Verification
from spile.torch import backend, capturing, quiet, taps
from spile.torch.taps import Tap

pytest.register_assert_rewrite("spile.testing")

from spile.testing import Array, BackendTests, Case  # noqa: E402


class Row(nn.Module):
    """Its layers one after the other. Not an `nn.Sequential`, which is a mere container."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Tripwire(nn.Module):
    """Raises once it is armed; that is told to the class, as it is not part of the model's state."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        if Tripwire.armed:
            raise RuntimeError("tripped")
        return x


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Row(dense=nn.Linear(4, 5), act=nn.Tanh())
        self.head = nn.Linear(5, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.encoder(left) - self.encoder(right))


class ReluTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))))


class Split(nn.Module):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.as_dict = as_dict

    def forward(self, x: Tensor) -> Any:
        return {"a": x + 1, "b": x * 2} if self.as_dict else (x + 1, x * 2)


class Splitting(nn.Module):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.split, self.head = Split(as_dict), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.split(x)
        one, other = parts.values() if isinstance(parts, dict) else parts
        return self.head(one + other)


class Join(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.cat([left, right], dim=1)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.join, self.head = Join(), nn.Linear(7, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.join(left, right))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Identity(), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.up(x) if x.sum().item() > 0 else self.down(x)


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0].item())):
            x = self.cell(x)
        return self.head(x)


def by_hand(case: Case, run: Callable[..., dict[str, Tensor]]) -> Case:
    """`run` gives every layer's output, from tensors; the model's flags are put back by hand too."""

    def expected(*batch: Array) -> dict[str, Tensor]:
        training = [module for module in case.model.modules() if module.training]
        case.model.eval()
        with torch.no_grad():
            found = run(*map(torch.from_numpy, batch))
            found = {name: value.clone() for name, value in found.items()}
        for module in training:
            module.training = True
        return found

    return replace(case, expected=expected)


def through(x: Tensor, *layers: tuple[str, nn.Module]) -> dict[str, Tensor]:
    """One layer after the other; outputs cloned, as a later layer may work in place."""
    found: dict[str, Tensor] = {}
    for name, layer in layers:
        x = layer(x)
        found[name] = x.clone()
    return found


def of(model: nn.Module, run: Callable[..., dict[str, Tensor]], **inputs: tuple[int, ...]) -> Case:
    return by_hand(Case(model, inputs, expected=run), run)


class TestTorch(BackendTests):
    separator, map_layout, dense = ".", "BCYX", "Linear"
    engines = ("eager", "compile", "openvino")

    def chain(self) -> Case:
        torch.manual_seed(0)
        model = Row(
            first=nn.Linear(4, 5),
            act=nn.Tanh(),
            second=nn.Linear(5, 6),
            tripwire=Tripwire(),
            head=nn.Linear(6, 3),
        )
        case = of(model, lambda x: through(x, *model.named_children()), x=(4,))
        Tripwire.armed = False
        return replace(case, arm=lambda: setattr(Tripwire, "armed", True))

    def nested(self) -> Case:
        torch.manual_seed(0)
        inner = Row(dense=nn.Linear(5, 6), act=nn.Tanh())
        outer = Row(enter=nn.Linear(5, 5), middle=Row(inner=inner))
        model = Row(stem=nn.Linear(4, 5), outer=outer, head=nn.Linear(6, 3))

        def run(x: Tensor) -> dict[str, Tensor]:
            found = through(
                x,
                ("stem", model.stem),
                ("outer/enter", outer.enter),
                ("outer/middle/inner/dense", inner.dense),
                ("outer/middle/inner/act", inner.act),
            )
            last = found["outer/middle/inner/act"]
            ends = dict.fromkeys(("outer/middle/inner", "outer/middle", "outer"), last)
            return found | ends | {"head": model.head(last)}

        return of(model, run, x=(4,))

    def shared(self) -> Case:
        torch.manual_seed(0)
        model = Siamese()

        def run(left: Tensor, right: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for call, x in enumerate((left, right)):
                dense = model.encoder.dense(x)
                found[f"encoder/dense#{call}"] = dense
                found[f"encoder/act#{call}"] = found[f"encoder#{call}"] = dense.tanh()
            return found | {"head": model.head(found["encoder#0"] - found["encoder#1"])}

        return of(model, run, left=(4,), right=(4,))

    def relu_twice(self) -> Case:
        torch.manual_seed(0)
        model = ReluTwice()

        def run(x: Tensor) -> dict[str, Tensor]:
            first = model.first(x)
            second = model.second(first.relu())
            return {"first": first, "relu#0": first.relu(), "second": second, "relu#1": second.relu()}

        return of(model, run, x=(4,))

    def tuple_output(self) -> Case:
        return self._splitting(as_dict=False)

    def dict_output(self) -> Case:
        return self._splitting(as_dict=True)

    def _splitting(self, *, as_dict: bool) -> Case:
        torch.manual_seed(0)
        model, items = Splitting(as_dict), "ab" if as_dict else "01"
        return of(
            model,
            lambda x: {
                f"split:{items[0]}": x + 1,
                f"split:{items[1]}": x * 2,
                "head": model.head(x + 1 + x * 2),
            },
            x=(4,),
        )

    def two_inputs(self) -> Case:
        torch.manual_seed(0)
        model = TwoInputs()

        def run(left: Tensor, right: Tensor) -> dict[str, Tensor]:
            joined = torch.cat([left, right], dim=1)
            return {"join": joined, "head": model.head(joined)}

        return of(model, run, left=(4,), right=(3,))

    def normalised(self) -> Case:
        torch.manual_seed(0)
        model = Row(
            conv=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(inplace=True),
            drop=nn.Dropout(),
            pool=Mean(),
            head=nn.Linear(4, 3),
        )
        nn.init.uniform_(model.norm.running_mean)
        nn.init.uniform_(model.norm.running_var, 0.5, 2)
        model.train()
        return of(model, lambda x: through(x, *model.named_children()), x=(3, 7, 6))

    def tokens(self) -> Case:
        torch.manual_seed(0)
        model = Row(mix=nn.Linear(4, 6), head=nn.Linear(6, 3))
        return of(model, lambda x: through(x, *model.named_children()), x=(5, 4))

    def idle_layer(self) -> Case:
        torch.manual_seed(0)
        model = Idle()
        return of(model, lambda x: {"used": model.used(x)}, x=(4,))

    def tied(self) -> Case:
        torch.manual_seed(0)
        model = Tied()
        return of(model, lambda x: {"first": model.first(x)}, x=(4,))

    def branching(self) -> Case:
        torch.manual_seed(0)
        model = Branching()

        def run(x: Tensor) -> dict[str, Tensor]:
            name = "up" if x.sum() > 0 else "down"
            return {"stem": x, name: getattr(model, name)(x)}

        return of(model, run, x=(4,))

    def looping(self) -> Case:
        torch.manual_seed(0)
        model = Looping()

        def run(x: Tensor) -> dict[str, Tensor]:
            times = int(x[0, 0])
            cells = {f"cell#{call}" if times > 1 else "cell": x for call in range(times)}
            return cells | {"head": model.head(x)}

        return of(model, run, x=(4,))

    def to_numpy(self, value: Any) -> Array:
        return value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)

    def state(self, model: nn.Module) -> Any:
        return {
            "tensors": {
                name: (id(value), value.numpy(force=True).tobytes(), getattr(value, "grad", None) is None)
                for name, value in model.state_dict(keep_vars=True).items()
            },
            "modules": {name: _attributes(module) for name, module in model.named_modules()},
            "random": torch.get_rng_state().tolist(),
        }

    def perturbed(self, model: nn.Module) -> Iterator[str]:
        for name, value in model.state_dict().items():
            number = value.view(-1)[-1].clone()
            value.view(-1)[-1] += 1
            yield name
            value.view(-1)[-1] = number

    def scramble(self, model: nn.Module) -> None:
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.9)

    def gradient(self, function: Callable[[Any], Any], x: Array) -> Array:
        tensor = torch.from_numpy(x).requires_grad_()
        (gradient,) = torch.autograd.grad(function(tensor).sum(), tensor)
        return gradient.numpy()

    def tamper(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = capturing.pooled
        monkeypatch.setattr(capturing, "pooled", lambda *args, **options: true(*args, **options) + 1)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """By identity, and what hangs in the dicts of hooks."""
    return {
        name: sorted(map(id, value.values())) if isinstance(value, dict) else id(value)
        for name, value in vars(module).items()
    }


# --- what the suite notices -----------------------------------------------------------------------


def _last_activations(_: Any) -> Callable[..., Any]:
    """A check that lets what an earlier pass took stand in for what is missing."""
    kept: dict[str, Tensor] = {}

    def check(capture: capturing.Capture, done: Any) -> Activations:
        kept.update(done.values)
        return Activations({point.name: kept[point.name] for point in capture.points})

    return check


def _first_call(true: Any) -> Callable[..., Any]:
    """As of a library that keeps the first call of a layer."""

    def take(capture: capturing.Capture, points: Any, value: Any, current: Any) -> None:
        for point in points:
            current.values.setdefault(point.name, value.clone())

    return take


BATCH_NORM, CHAIN = {"network": "normalised"}, {"place": "second"}
DEFECTS = {
    "no copy": (capturing, "pooled", lambda _: lambda x, *a, **k: x, "every_layer_at_once", BATCH_NORM),
    "no stop": (Tap, "_run", lambda true: lambda *a, stop: true(*a, stop=False), "computing_stops", CHAIN),
    "no eval": (
        taps,
        "quiet_pass",
        lambda true: lambda model, evaluate: true(model, evaluate=False),
        "one_row_alone",
        {},
    ),
    "flags stay down": (
        quiet,
        "_evaluating",
        lambda _: lambda model: nullcontext(model.eval()),
        "the_model_is_as_before_after_all",
        BATCH_NORM,
    ),
    "hooks stay": (
        Tap,
        "close",
        lambda _: lambda self: None,
        "the_model_is_as_before_after_all",
        {"network": "chain"},
    ),
    "stale": (capturing.Capture, "check", _last_activations, "a_layer_that_does_not_run", {}),
    "first call only": (capturing.Capture, "_take", _first_call, "calls_of_a_shared", {}),
    "no closed": (Tap, "close", lambda _: lambda self: None, "a_closed_tap", {}),
    "channels last": (
        capturing,
        "pooled",
        lambda true: lambda x, pool, *a, **k: x.mean((1, 2)),
        "pools_of_maps",
        {"pool": "avg"},
    ),
    "no detection": (taps, "compare", lambda _: lambda *a, **k: Verification(2, 0.0), "verify_detects", {}),
    "one hash": (
        backend,
        "weights_hash",
        lambda _: lambda model: "",
        "the_hash_of_the_weights",
        {"network": "chain"},
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_suite_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, attribute, defect, test, options = DEFECTS[name]
    (method,) = (getattr(TestTorch(), each) for each in dir(TestTorch) if each.startswith(f"test_{test}"))
    if "monkeypatch" in inspect.signature(method).parameters:
        options = {**options, "monkeypatch": monkeypatch}
    method(**options)
    monkeypatch.undo()
    monkeypatch.setattr(home, attribute, defect(getattr(home, attribute)))
    with pytest.raises((Exception, pytest.fail.Exception)):
        method(**options)
