"""Random numbers of (seed, epoch, sample id, operation) and of nothing else."""

from __future__ import annotations

import numpy as np

from spile.augmentation.randomness import Draw


def test_the_same_four_give_the_same_numbers_in_every_process() -> None:
    a = Draw(3, 1).generator("cat.jpg", "mix").random(4)
    np.testing.assert_array_equal(a, Draw(3, 1).generator("cat.jpg", "mix").random(4))


def test_each_of_the_four_changes_them() -> None:
    keys = {
        Draw(seed, epoch).key(sample, operation)
        for seed in (0, 1)
        for epoch in (0, 1)
        for sample in ("a", "b")
        for operation in ("x", "y")
    }
    assert len(keys) == 16
    assert all(0 <= key < 2**63 for key in keys)
    assert Draw(0, 1).key("1", "x") != Draw(0, 11).key("", "x")


def test_partners_follow_a_permuted_batch_and_none_is_its_own() -> None:
    ids = [f"s{i}" for i in range(9)]
    partners = Draw(0, 0).partners(ids, "partner")
    assert sorted(partners) == list(range(9))
    assert all(partner != i for i, partner in enumerate(partners))
    order = np.random.default_rng(0).permutation(9)
    shuffled = [ids[i] for i in order]
    again = Draw(0, 0).partners(shuffled, "partner")
    pairs = {ids[i]: ids[p] for i, p in enumerate(partners)}
    assert {shuffled[i]: shuffled[p] for i, p in enumerate(again)} == pairs
    assert Draw(0, 1).partners(ids, "partner") != partners
    assert Draw(0, 0).partners(["only"], "partner") == [0]
