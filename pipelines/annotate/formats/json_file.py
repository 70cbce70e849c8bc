"""Reads JSON files with poses."""

from pathlib import Path
from typing import Any

from kernels.json_files import read_json
from kernels.program import UserError

MAX_BYTES = 1 << 30


def load_json(file: Path) -> Any:
    """The content of a JSON file of at most MAX_BYTES. Raises UserError if the file cannot be used."""
    try:
        return read_json(file, MAX_BYTES)
    except OSError as error:
        raise UserError(f"{file} cannot be opened ({error.strerror})") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file} is not JSON of poses ({error}); write it again with the pose estimator") from None
