"""Supports srun: gives the tasks of a SLURM job step the environment variables that torchrun would set."""

import os
import re

RUN_ID = "srun "  # prefix of the IDs of runs that were started by srun


def describe_task() -> None:
    """If srun has started this process as one of several tasks, make it a rank of a run with that many ranks.

    MASTER_ADDR and MASTER_PORT keep their values if the user has set them. srun's manual page describes SLURM's
    variables under "OUTPUT ENVIRONMENT VARIABLES".
    """
    task = os.environ
    if int(task.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "TORCHELASTIC_RUN_ID" in task:
        return
    job, step = int(task["SLURM_JOB_ID"]), int(task.get("SLURM_STEP_ID", "0"))
    for name, value in {
        "TORCHELASTIC_RUN_ID": f"{RUN_ID}{job}.{step}",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "RANK": task["SLURM_PROCID"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(tasks_of_nodes(task["SLURM_STEP_TASKS_PER_NODE"])[int(task["SLURM_NODEID"])]),
        "MASTER_ADDR": first_host(task["SLURM_STEP_NODELIST"]),
        # a port that is the same on all nodes, and rarely the port of another job
        "MASTER_PORT": str(10000 + (job + step) % 20000),
    }.items():
        if not (name.startswith("MASTER_") and name in task):
            task[name] = value


def tasks_of_nodes(text: str) -> list[int]:
    """The number of tasks on each node: [4, 4, 2] for SLURM's 4(x2),2."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def first_host(hosts: str) -> str:
    """The first name of SLURM's list of hosts: gpu01 for gpu[01-04,09],fat2."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts).split(",")[0]
