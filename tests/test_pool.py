"""Pools: names, fingerprints, and which pool fits which layout."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spile.errors import PoolError
from spile.pool import NAMES, Pool, parse, settle

few = settings(derandomize=True, max_examples=100, deadline=None)

FIXED = [name for name in NAMES if name != "grid:N"]


def refusal(pool: Any) -> str:
    with pytest.raises(PoolError) as caught:
        parse(pool)
    return str(caught.value)


# --------------------------------------------------------------------------------------------- names


@few
@given(
    st.sampled_from([*FIXED, "none"])
    | st.integers(1, 9999).map("grid:{}".format)
    | st.floats(0, exclude_min=True, allow_infinity=False).map("gem:{!r}".format)
)
def test_a_pool_prints_as_a_name_that_parses_back_to_it(name: str) -> None:
    assert parse(str(parse(name))) == parse(name)


@pytest.mark.parametrize(
    ("given_as", "canonical"),
    [(None, "none"), ("gem:3", "gem"), ("gem:4.50", "gem:4.5"), ("grid:2", "grid:2"), (Pool("cls"), "cls")],
)
def test_canonical_names(given_as: Any, canonical: str) -> None:
    assert str(parse(given_as)) == canonical


@few
@given(st.text(max_size=8) | st.text("gridem:avgcls+0123.-", max_size=8))
def test_garbage_is_a_pool_error_or_a_pool(text: str) -> None:
    with contextlib.suppress(PoolError):
        assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ("avgg", "unknown pool 'avgg': did you mean 'avg'? Pools: auto, avg, max, gem, grid:N, flatten, cls"),
        ("avg:", "unknown pool 'avg:': did you mean 'avg'?"),
        ("grid", "pool 'grid' needs the number of cells a side: write 'grid:2'"),
        ("grid:0", "needs the number of cells a side"),
        ("grid:N", "needs the number of cells a side"),
        ("grid:99999", "needs the number of cells a side"),
        ("gem:", "pool 'gem:' needs a positive exponent: write 'gem' (3) or 'gem:4'"),
        ("gem:-1", "needs a positive exponent"),
        ("gem:nan", "needs a positive exponent"),
        ("gem:inf", "needs a positive exponent"),
        (2, "2 is no pool: give one of auto, avg, max"),
        (True, "True is no pool"),
    ],
)
def test_what_is_no_pool_says_why(pool: Any, says: str) -> None:
    assert says in refusal(pool)


# -------------------------------------------------------------------------------------- fingerprints


def first_token(x: Any) -> Any:
    return x[:, 0]


def token(index: int) -> Callable[[Any], Any]:
    return lambda x: x[:, index]


class Power:
    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def __call__(self, x: Any) -> Any:
        return x**self.exponent

    def doubled(self, x: Any) -> Any:
        return 2 * x**self.exponent

    def __repr__(self) -> str:
        return f"Power({self.exponent})"


def typed(code: str) -> Any:
    return eval(compile(code, "<stdin>", "eval"))


def fingerprint(pool: Any) -> str:
    return parse(pool).fingerprint()


def test_the_fingerprint_of_a_named_pool_is_its_canonical_name() -> None:
    assert fingerprint("gem:3.0") == "gem"
    assert fingerprint("grid:2") == "grid:2"


def test_a_callable_shows_its_name_and_a_hash() -> None:
    assert str(parse(first_token)) == "callable:first_token"
    assert fingerprint(first_token).startswith("callable:first_token:")


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (token(0), token(0), token(1)),
        (functools.partial(max, key=abs), functools.partial(max, key=abs), functools.partial(max, key=len)),
        (functools.partial(token(0), 1), functools.partial(token(0), 1), functools.partial(token(1), 1)),
        (Power(2), Power(2), Power(3)),
        (Power(2).doubled, Power(2).doubled, Power(3).doubled),
        (Power(2).doubled, Power(2).doubled, Power(2)),
        (lambda x, n=1: x[n], lambda x, n=1: x[n], lambda x, n=2: x[n]),
        (typed("lambda x: x[0]"), typed("lambda x: x[0]"), typed("lambda x: x[1]")),
        (typed("lambda x: x.a()"), typed("lambda x: x.a()"), typed("lambda x: x.b()")),
        (max, max, min),
    ],
    ids=["closure", "partial", "partial closure", "object", "method", "no method", "default", "constant",
         "attribute", "builtin"],
)  # fmt: skip
def test_a_callables_fingerprint_follows_its_behaviour(one: Any, same: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)


def weights(changed: bool) -> Any:
    """4,000 numbers, the middle of which ``repr`` leaves out."""
    values = np.zeros((4, 1000), np.float32)
    values[2, 500] = changed
    return values


def halves(changed: bool) -> Any:
    return torch.from_numpy(weights(changed)).bfloat16()


def parameter(changed: bool) -> Any:
    return torch.nn.Parameter(torch.from_numpy(weights(changed)))


def things(changed: bool) -> Any:
    return weights(changed).astype(object)


def sparse(changed: bool) -> Any:
    return torch.from_numpy(weights(changed)).to_sparse()


def layers(changed: bool) -> Any:
    linear = torch.nn.Linear(1000, 4)
    torch.nn.init.zeros_(linear.bias)
    linear.weight.data = torch.from_numpy(weights(changed))
    return torch.nn.Sequential(torch.nn.Sequential(linear))


def holding(held: Any) -> dict[str, Any]:
    def default(x: Any, *, by: Any = held) -> Any:
        return x * by

    return {
        "closure": lambda x: x * held,
        "nested": (lambda several: lambda x: x * several["a"][0])({"a": [(held,)]}),
        "default": default,
        "object": Power(held),
        "method": Quiet(held).doubled,
        "partial": functools.partial(max, held, key=held),
        "partial of a method": functools.partial(Quiet(held).doubled, 1),
    }


class Quiet(Power):
    def __repr__(self) -> str:
        return "Quiet()"


@pytest.mark.parametrize("make", [weights, parameter, halves, sparse, things, layers])
def test_a_fingerprint_follows_every_number_of_an_array_that_a_callable_holds(make: Any) -> None:
    one, same, other = (holding(make(changed)) for changed in (False, False, True))
    for name, pool in one.items():
        assert fingerprint(pool) == fingerprint(same[name]), name
        assert fingerprint(pool) != fingerprint(other[name]), name


def test_arrays_of_other_shapes_and_types_are_told_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    several = [
        zeros,
        zeros.T,
        zeros.astype(np.int32),
        np.asfortranarray([[0, 1], [2, 3]]),
        np.array([[0, 2], [1, 3]]),
    ]
    assert len({fingerprint(Power(held)) for held in several}) == len(several)


def test_a_module_of_pytorch_as_a_pool_is_told_by_its_weights() -> None:
    assert fingerprint(layers(False)) == fingerprint(layers(False))
    assert fingerprint(layers(False)) != fingerprint(layers(True))


def test_a_fingerprint_holds_no_memory_address() -> None:
    def near(anything: Any) -> Any:
        return lambda x: (x, anything)

    assert fingerprint(near(object())) == fingerprint(near(object()))


# ------------------------------------------------------------------------------ which pool fits what

MAPS = ["BCYX", "BYXC", "BCZYX", "BZYXC", "CBYX"]
TOKENS = ["BTC", "BCT", "TBC"]
VECTORS = ["BC", "CB", "B"]
ODD = ["B???", "BTTC", "B?C", "BYX"]


def settled(pool: Any, layout: str | None, prefix_tokens: int | None = 1, **options: bool) -> str:
    chosen = settle(parse(pool), layout, place="layer1", prefix_tokens=prefix_tokens, **options)
    return str(chosen)


def misfit(pool: Any, layout: str | None, prefix_tokens: int | None = 1) -> str:
    with pytest.raises(PoolError) as caught:
        settled(pool, layout, prefix_tokens)
    return str(caught.value)


@pytest.mark.parametrize("layout", [*MAPS, *TOKENS, *VECTORS, *ODD])
def test_what_every_pool_becomes_on_every_layout(layout: str) -> None:
    spatial, tokens, vector = layout in MAPS, layout in TOKENS, layout in VECTORS
    expected = {
        None: "none",
        first_token: "callable:first_token",
        "flatten": "flatten",
        "auto": "avg" if spatial else "cls+mean" if tokens else "flatten" if vector else None,
    }
    expected |= {
        name: name if spatial else "flatten" if vector else None for name in ("avg", "max", "gem", "grid:2")
    }
    expected |= {
        name: name if tokens else "flatten" if vector else None
        for name in ("mean", "cls", "cls+mean", "last")
    }
    for pool, becomes in expected.items():
        if becomes is None:
            misfit(pool, layout)
        else:
            assert settled(pool, layout) == becomes, (pool, layout)


@pytest.mark.parametrize("pool", ["auto", "avg", "flatten", "mean"])
@pytest.mark.parametrize("layout", [None, "CYX"])
def test_without_a_samples_axis_only_the_whole_tensor_can_be_kept(pool: str, layout: str | None) -> None:
    assert misfit(pool, layout) == (
        f"layer1 has no axis for the samples, so pool {pool!r} cannot be applied: use pool=None"
    )
    assert settled(None, layout) == "none"
    assert settled(first_token, layout) == "callable:first_token"


@pytest.mark.parametrize(
    ("prefix", "options"), [(0, {}), (None, {}), (1, {"text": True}), (4, {"class_token": False})]
)
def test_the_default_of_tokens_without_a_class_token_is_their_mean(prefix: Any, options: Any) -> None:
    assert settled("auto", "BTC", prefix, **options) == "mean"
    assert settled("auto", "BTC", 1) == "cls+mean"


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_a_class_token_must_exist(pool: str) -> None:
    assert settled(pool, "BTC", 2) == pool
    assert settled(pool, "BTC", 0, text=True) == pool
    assert misfit(pool, "BTC", 0) == (
        "layer1 has no class token: use pool='mean', or a callable such as lambda x: x[:, 0]"
    )
    assert misfit(pool, "BTC", None).startswith("layer1 has tokens whose class token could not be found: use")


def test_a_pool_for_something_else_is_answered_with_one_that_fits() -> None:
    assert misfit("avg", "BTC") == (
        "layer1 is no map but has axes 'BTC'; pool 'avg' is for maps: use pool='mean', 'cls' or 'auto'"
    )
    assert misfit("cls", "BCYX") == (
        "layer1 is no sequence but has axes 'BCYX'; pool 'cls' is for tokens: use pool='avg' or 'auto'"
    )
    assert misfit("max", "B???").endswith("use pool='flatten', None or a callable")
    assert misfit("auto", "B???") == (
        "layer1 has axes 'B???', which 'auto' does not cover: use pool='flatten', None or a callable"
    )
