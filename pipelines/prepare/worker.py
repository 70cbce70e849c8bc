"""A worker process of `prepare`, which reads jobs from stdin and writes answers to stdout, one line of JSON each."""

import json
import resource
import sys
from dataclasses import asdict
from typing import Any

from kernels.program import die_with_parent
from pipelines.prepare.encode import Job, encode_clip
from pipelines.videos.container import VideoError

READY = "ready"  # the first line that a worker writes
MEMORY = 4 << 30  # bytes of address space that a worker may use; a hostile header can ask for much more


def main() -> None:
    """Answer jobs until `prepare`, whose process number is the only argument, has ended for any reason."""
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(READY, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(Job(**json.loads(line)))), flush=True)


def answer(job: Job) -> dict[str, Any]:
    """Do a job. The answer is one of the following dicts.

    {"encoded": the fields of EncodedClip}
    {"bad": the reason why this video cannot be used}
    {"fatal": the reason why no clip at all can be written}
    """
    try:
        return {"encoded": asdict(encode_clip(job))}
    except VideoError as error:
        return {"bad": str(error)}
    except MemoryError:
        return {"bad": f"encoding the video needs more than {MEMORY >> 30} GiB of memory"}
    except OSError as error:  # the pack cannot be written, for example because the disk is full
        return {"fatal": f"{job.target} cannot be written ({error.strerror})"}


if __name__ == "__main__":
    main()
