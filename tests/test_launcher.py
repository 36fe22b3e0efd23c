"""Where a process stands among others, as torchrun, Slurm and MPI say it."""

from __future__ import annotations

import pytest

from unveil.runs.launcher import ALONE, Place, first_host, place, unheeded_tasks

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "99"}
SLURM = {
    **{"SLURM_JOB_ID": "70000", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "2"},
    **{"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[07-08]"},
}


def test_without_a_launcher_a_process_is_alone():
    assert place({}) == ALONE
    assert place({"RANK": "3"}) == ALONE
    assert place({"WORLD_SIZE": "1", "RANK": "0"}) == ALONE


def test_torchrun_goes_before_the_srun_that_started_it():
    assert place(SLURM | TORCHRUN) == Place(3, 4, 1, "a", 99, "torchrun")


def test_tasks_of_srun_are_ranks_that_meet_on_the_first_node():
    task = place(SLURM)
    assert (task.rank, task.size, task.local_rank, task.host, task.launcher) == (3, 4, 1, "gpu07", "Slurm")
    assert 1024 < task.port < 32768
    assert place(SLURM | {"SLURM_PROCID": "0"}).port == task.port
    assert place(SLURM | {"SLURM_STEP_ID": "3"}).port != task.port
    assert place(task.variables) == Place(3, 4, 1, "gpu07", task.port, "torchrun")
    given = place(SLURM | {"MASTER_ADDR": "b", "MASTER_PORT": "1234"})
    assert (given.host, given.port) == ("b", 1234)


def test_a_batch_script_is_one_process_whatever_its_tasks():
    script = {name: value for name, value in SLURM.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert place(script) == ALONE


@pytest.mark.parametrize(("rank", "size"), [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")])
def test_tasks_of_mpirun_are_ranks_where_they_know_a_place_to_meet(rank, size):
    env = {rank: "1", size: "2"}
    with pytest.raises(ValueError, match="MPI has started task 1 of 2, and MASTER_ADDR and MASTER_PORT do not say"):
        place(env)
    assert place(env | {"MASTER_ADDR": "a", "MASTER_PORT": "99"}) == Place(1, 2, 0, "a", 99, "MPI")


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node[03-05,8],gpu1", "node03"),
        ("a1,a2", "a1"),
        ("rack[1-2]-node", "rack1-node"),
        ("", "localhost"),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_a_torchrun_of_one_process_in_each_task_is_noticed():
    assert unheeded_tasks(SLURM | {"WORLD_SIZE": "1"}) == "Slurm has started task 3 of 4"
    assert unheeded_tasks({"PMI_RANK": "1", "PMI_SIZE": "2", "WORLD_SIZE": "1"}) == "MPI has started task 1 of 2"
    assert unheeded_tasks({"WORLD_SIZE": "1"}) is None
    assert unheeded_tasks(SLURM) is None
