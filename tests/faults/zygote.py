"""Starts stages by forking a process that has already imported everything: a fault test then takes about a second.

Reads a line of JSON on stdin, {"module", "cwd", "env", "log", "largest_file"}, and answers {"pid"}; when a child ends,
{"pid", "status"}. A child leads a process group of its own.
"""

import json
import os
import resource
import runpy
import selectors
import signal
import sys

import accelerate
import datasets
import matplotlib.pyplot
import polars
import torch
import torch.distributed.checkpoint.hf_storage
import transformers

import neobert.training.phase

PRELOADED = (accelerate, datasets, matplotlib, polars, torch, transformers, neobert)


def child(order: dict) -> None:
    """Become a stage."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["largest_file"]:
        # A write beyond it fails with EFBIG, as one on a full disk fails with ENOSPC; no mount and no root needed.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], order["largest_file"]))
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.argv = [order["module"]]
    status = 1
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    torch.set_num_threads(1)
    answer = sys.stdout
    print(json.dumps({"ready": True}), flush=True)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    running: set[int] = set()
    while True:
        if selector.select(timeout=0.02):
            line = sys.stdin.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                child(json.loads(line))
            running.add(pid)
            print(json.dumps({"pid": pid}), file=answer, flush=True)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"pid": pid, "status": code}), file=answer, flush=True)


if __name__ == "__main__":
    main()
