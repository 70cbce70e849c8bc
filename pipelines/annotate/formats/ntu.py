"""NTU RGB+D's own .skeleton files: 25 joints of the Kinect, with their positions in the colour image.

Source: docs/sources.md, "Formats of poses". The score of a joint is 1 if the Kinect tracked it, 0.5 if it inferred the
position, and 0 if it did not see the joint.
"""

import numpy as np

from kernels.program import UserError
from pipelines.annotate.formats.recording import Recording

SIZE = (1080, 1920)  # (height, width) of the colour image
JOINTS = 25
BODY = 10  # how many numbers a body has: its id, six whole numbers, lean in x and y, tracking state
JOINT = 12  # how many numbers a joint has; colour x and y are the sixth and seventh, the tracking state is the last
SCORES = {0: 0.0, 1: 0.5, 2: 1.0}


def read(text: str) -> Recording | None:
    """The poses in the text of a .skeleton file, or None for another format. Raises UserError if the text is cut."""
    words = iter(text.split())
    recording = Recording("NTU .skeleton, colour coordinates", "ntu25", complete=True, size=SIZE)
    try:
        num_frames = int(next(words))
        for frame in range(num_frames):
            recording.frames.add(frame)
            for _ in range(int(next(words))):
                body = [next(words) for _ in range(BODY)]
                if int(next(words)) != JOINTS:
                    return None
                values = np.array([[float(next(words)) for _ in range(JOINT)] for _ in range(JOINTS)])
                joints = np.stack(
                    [values[:, 5], values[:, 6], [SCORES.get(int(v), 0.0) for v in values[:, 11]]], axis=1
                )
                joints[~np.isfinite(joints).all(axis=1)] = 0
                recording.add(frame, joints, None, body[0])
    except StopIteration:
        raise UserError("the file ends in the middle of a frame; download it again") from None
    except ValueError:
        return None
    return recording
