"""Identifiers. A job id sorts by creation time and is unguessable; a file is known by the digest of its bytes."""

import hashlib
import re
import secrets
import time
from pathlib import Path
from typing import NewType

JobId = NewType("JobId", str)
PolicyVersion = NewType("PolicyVersion", int)
"""Version n = the weights after optimizer step n; 0 = as loaded."""

JOB_ID = re.compile(r"job-[0-9a-z]{1,40}")
"""What a job id can look like: part of keys, addresses and names of folders, so it holds nothing that means something
there."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_job_id() -> JobId:
    """Return `job-` + 9 characters of milliseconds (base 32, sortable) + 16 random characters (80 bits)."""
    return JobId(job_id_stamp(time.time()) + _base32(secrets.randbits(80), 16))


def job_id_stamp(at: float) -> str:
    """The beginning of the ids made at a Unix time: smaller than all of them and greater than all before."""
    return "job-" + _base32(int(at * 1000), 9)


def _base32(number: int, digits: int) -> str:
    return "".join([_ALPHABET[(number >> shift) & 31] for shift in range(5 * digits - 5, -1, -5)])


def file_sha256(path: Path) -> str:
    """Return the digest of a file in hexadecimal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
