"""Processes on this machine; clusters are in test_cluster.py, deaths in test_faults.py."""

import operator
import signal

import needs
from joblib import Parallel, delayed

from mt3data.build.executor import LOCAL, run


def test_results_come_as_they_are_done_and_joblib_can_use_processes_afterwards() -> None:
    told: list[str] = []
    jobs = [(n, 10) for n in range(5)]
    assert sorted(run(LOCAL, 2, operator.mul, jobs, told.append)) == [0, 10, 20, 30, 40]
    # Rendering pieces after a build in the same process: joblib has one pool for all.
    assert Parallel(n_jobs=2)(delayed(operator.neg)(n) for n in range(3)) == [0, -1, -2]
    assert list(run(LOCAL, 2, operator.mul, [(3, 4)], told.append)) == [12]
    assert told == []


@needs.posix
def test_ctrl_c_is_no_matter_of_workers_from_their_first_moment_on() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    jobs = [(signal.SIG_BLOCK, ())] * 3  # which signals are blocked there?
    blocked = list(run(LOCAL, 2, signal.pthread_sigmask, jobs, print))
    assert [signal.SIGINT in there for there in blocked] == [True] * 3
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.SIGINT not in before
