"""A process that looks at the files of jobs.

A line of JSON comes in (a spec and roots), a line goes out (problems and what was seen, or the fault of a plug-in). It
ends when its input does. An empty line is answered at once.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import Any

from accord.config.files import Roots
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.errors import PluginError, SpecError

log = logging.getLogger("accord.preflight")

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a plug-in prints is no answer, and would be taken for that of the next question
        for line in sys.stdin.buffer:
            answers.write(json.dumps(look(json.loads(line)) if line.strip() else {}) + "\n")
            answers.flush()


def look(question: dict[str, Any]) -> dict[str, Any]:
    """Check one job."""
    allowed, refused = question["roots"]
    try:
        seen = preflight(JobSpec.parse(question["spec"]), Roots(tuple(allowed), tuple(refused)))
    except SpecError as error:
        return {"problems": error.problems, "seen": {}}
    except PluginError as error:
        return {"fault": str(error)}
    except MemoryError:
        why = f"the files that the job names need more than {MEMORY_BYTES >> 30} GiB of memory to be checked"
        return {"problems": [["", why]], "seen": {}}
    return {"problems": [], "seen": seen}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    main()
