"""Holds an embedded Ray: starts it and publishes its address in `<folder>/address`.

It ends on SIGTERM, and when a part of Ray dies. Started by embedded.py as
`python -m services.node.ray_holder FOLDER CPUS`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from accord.disk import write_whole
from services import processes
from services.signals import Signals

MARK = "ACCORD_RAY_DIR"
"""Environment variable that every process of an embedded Ray carries: its folder."""
OBJECT_STORE_BYTES = 512 * 2**20


def main(folder: Path, cpus: int) -> int:
    """Run until told to stop (0) or until the head processes are not complete any more (1)."""
    signals = Signals().install()
    ray: Any = import_module("ray")
    context = ray.init(
        num_cpus=cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=str(folder),
        _node_ip_address="127.0.0.1",
    )
    signals.install()  # again: Ray puts handlers of its own in their place
    write_whole(folder / "address", str(context.address_info["gcs_address"]))
    head = [child for child in psutil.Process().children() if child.name() in {"gcs_server", "raylet"}]
    while not signals.stop.wait(0.5):
        if not all(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in head):
            return 1
    return 0


def clean(folder: Path) -> None:
    """End everything of a Ray that nobody holds any more, and remove its folder."""
    processes.end_all(MARK, str(folder))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    ray_folder = Path(sys.argv[1])
    if sys.argv[2:] == ["clean"]:
        clean(ray_folder)
        sys.exit(0)
    status = main(ray_folder, int(sys.argv[2]))
    # This process is a driver and dies with the raylet, so another one cleans up, outside of this Ray by its mark.
    # An orderly ray.shutdown() takes seconds and adds nothing.
    outside = {name: value for name, value in os.environ.items() if name != MARK}
    subprocess.Popen(
        [sys.executable, "-m", "services.node.ray_holder", str(ray_folder), "clean"], env=outside,
        start_new_session=True,
    )  # fmt: skip
    os._exit(status)
