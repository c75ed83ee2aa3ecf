"""Processes on this machine; clusters are in test_cluster.py, deaths in test_faults.py."""

import operator

from joblib import Parallel, delayed

from mt3data.engine import LOCAL, run


def test_results_come_as_they_are_done_and_joblib_can_use_processes_afterwards() -> None:
    told: list[str] = []
    jobs = [(n, 10) for n in range(5)]
    assert sorted(run(LOCAL, 2, operator.mul, jobs, told.append)) == [0, 10, 20, 30, 40]
    # Rendering pieces after a build in the same process: joblib has one pool for all.
    assert Parallel(n_jobs=2)(delayed(operator.neg)(n) for n in range(3)) == [0, -1, -2]
    assert list(run(LOCAL, 2, operator.mul, [(3, 4)], told.append)) == [12]
    assert told == []
