"""The governor, on machines that are simulated: how long a turn takes is made up here."""

import itertools

import numpy as np
import pytest

from sparsecore.compiled.team import Governor

ALONE, TEAM = 0.8e-3, 0.48e-3


def drive(governor, n_turns, seconds):
    """Let it govern for so many turns; return, for each unit of work, who did it and how long."""
    turns = []
    for _ in range(n_turns):
        members, units = governor.members, governor.units(10**6)
        turns.append((members, seconds(members), units))
        governor.took(turns[-1][1])
    members, spent, units = zip(*turns, strict=True)
    return np.repeat(members, units), np.repeat(spent, units)


def test_a_team_that_is_faster_works():
    members, spent = drive(Governor(2), 1500, lambda members: TEAM if members == 2 else ALONE)
    assert members[0] == 2
    assert 0 < np.mean(members == 1) < 0.01
    assert spent.sum() < 1.01 * len(spent) * TEAM


def test_a_team_that_is_slower_rests():
    members, spent = drive(Governor(2), 1500, lambda members: 1e-3 if members == 2 else ALONE)
    assert spent.sum() < 1.01 * len(spent) * ALONE
    assert (members == 2).any()


def test_it_follows_a_machine_that_changes():
    busy = [False]

    def seconds(members):
        return ALONE if members == 1 else 0.97e-3 if busy[0] else TEAM

    governor = Governor(2)
    drive(governor, 1000, seconds)
    for state, choice in ((True, 1), (False, 2), (True, 1), (False, 2)):
        busy[0] = state
        # A trial comes after 128 turns at the latest, about eight seconds.
        members, spent = drive(governor, 1000, seconds)
        assert np.mean(members[np.cumsum(spent) > 9] == choice) > 0.97


def test_a_team_that_comes_back_may_begin_on_one_core():
    together = [0]  # turns since it came back

    def seconds(members):
        together[0] = together[0] + 1 if members == 2 else 0
        return ALONE if members == 1 else 2 * ALONE if together[0] <= 2 else TEAM

    governor = Governor(2)
    drive(governor, 60, lambda members: 2 * ALONE if members == 2 else ALONE)
    assert governor.members == 1
    members, _ = drive(governor, 200, seconds)
    assert np.mean(members[len(members) // 2 :] == 2) > 0.97


def test_turns_that_are_interrupted_do_not_decide():
    rng = np.random.default_rng(0)

    def seconds(members):
        usual = TEAM if members == 2 else ALONE
        return usual * (10 if rng.random() < 0.1 else rng.normal(1, 0.05))

    members, _ = drive(Governor(2), 1500, seconds)
    assert np.mean(members == 2) > 0.97


@pytest.mark.parametrize("pace", [1e-6, 1e-3, 1.0])
def test_a_turn_is_some_milliseconds_long(pace):
    governor = Governor(3)
    assert governor.units(1000) == 1, "nothing is known yet"
    governor.took(pace)
    assert governor.units(10**6) == pytest.approx(max(1, 64e-3 / pace), rel=0.03)
    assert governor.units(1) == 1
    assert governor.units(0) == 0


def test_one_member_alone_is_tried_for_a_short_while():
    governor = Governor(2)
    while governor.members == 2:
        governor.units(10**6)
        governor.took(TEAM)
    assert governor.units(10**6) == pytest.approx(16e-3 / TEAM, rel=0.1)


def test_turns_are_equal_so_that_none_is_hardly_more_than_its_start():
    governor, pace, left, taken = Governor(2), 1.49e-3, 110, []
    governor.took(pace)
    while left:
        taken.append(governor.units(left))
        left -= taken[-1]
    assert sum(taken) == 110 and max(taken) - min(taken) <= 1
    assert 32e-3 < min(taken) * pace and max(taken) * pace < 96e-3


def test_one_thread_alone_is_not_interrupted():
    governor = Governor(1)
    for number, n in itertools.product(range(50), (1, 10**6)):
        assert (governor.units(n), governor.members) == (n, 1), number
        governor.took(ALONE)
