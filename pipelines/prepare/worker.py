"""A worker of `prepare`: `python -m pipelines.prepare.worker` reads jobs and writes answers, each a line of JSON."""

import json
import os
import queue
import resource
import sys
import threading
from dataclasses import asdict
from typing import Any

from pipelines.prepare.encode import Job, encode_clip
from pipelines.videos.decode import VideoError

READY = "ready"  # what a worker says first
MEMORY = 4 << 30  # bytes of address space that a worker may take: a hostile header asks for more


def main() -> None:
    """Serve `prepare` until it closes our input, as its death does, even by SIGKILL."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    print(READY, flush=True)
    while True:
        print(json.dumps(answer(Job(**json.loads(jobs.get())))), flush=True)


def answer(job: Job) -> dict[str, Any]:
    """{"encoded": columns of the clip}, {"bad": why the video is left out} or {"fatal": why no clip can be written}."""
    try:
        return {"encoded": asdict(encode_clip(job))}
    except VideoError as error:
        return {"bad": str(error)}
    except MemoryError:
        return {"bad": f"it needs more than {MEMORY >> 30} GiB of memory"}
    except OSError as error:  # of the pack: a full or read-only disk is no fault of the video
        return {"fatal": f"{job.target} cannot be written ({error.strerror})"}


if __name__ == "__main__":
    main()
