"""One hostile client, with every kind of attack that tests/load/attacker has, takes nothing from honest clients."""

from __future__ import annotations

import hostile
import programs
import pytest


@pytest.fixture(scope="module", autouse=True)
def built():
    programs.build()


def test_every_attack_kind_gets_its_expected_statuses():
    assert set(hostile.KINDS) == set(hostile.ANSWERS)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_honest_clients_are_answered(kind):
    result = hostile.measure(kind, seconds=3, calm_seconds=1)
    print(result.row())
    assert result.alive
    assert result.attacked.answered >= 0.99, result.row()
    assert result.peak_bytes < hostile.LIMIT, result.row()
    assert set(result.answers) <= hostile.ANSWERS[kind], result.row()
