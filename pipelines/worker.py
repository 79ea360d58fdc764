"""A worker process of the local runner: Beam's SDK harness, which ends when the launcher ends.

The launcher holds the other end of this process's standard input and writes nothing to it. However the launcher ends,
SIGKILL included, the kernel closes that end, a thread here reads end-of-file, and the process exits at once: no worker
goes on writing for a run that is over.
"""

import os
import signal
import sys
import threading

from pipelines import logs


def _exit_at_end_of_file(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Runs Beam's SDK harness as `apache_beam.runners.worker.sdk_worker_main` does."""
    # Ctrl-C reaches the whole process group; the launcher alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_exit_at_end_of_file, args=(lifeline,), daemon=True, name="lifeline").start()
    logs.configure(as_records=True)

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
