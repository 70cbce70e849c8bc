"""Videos as they lie on a disk: found, looked at, decoded."""
