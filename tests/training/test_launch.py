"""A launcher named by NEOBERT_LAUNCH gets each signal once, and does not outlive the stage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGE = "from neobert.config.runtime import DistributedConfig\nfrom neobert.training.launch import on_all_devices\n"
STAGE += "on_all_devices('any', DistributedConfig())"
LAUNCHER = """
import signal, sys, time
from pathlib import Path
out, got = Path(sys.argv[1]), []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))
(out / "ready").touch()
end = time.monotonic() + 30
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)  # a second one would have come by then
(out / "got.part").write_text(" ".join(got))
(out / "got.part").rename(out / "got")
"""


def wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("send", "number", "expected"),
    [
        (os.killpg, signal.SIGINT, "SIGINT"),  # Ctrl-C in a terminal: the whole foreground group
        (os.killpg, signal.SIGTERM, "SIGTERM"),
        (os.killpg, signal.SIGHUP, "SIGHUP"),  # the terminal is closed
        pytest.param(
            *(os.kill, signal.SIGKILL, "SIGTERM"),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death"),
        ),
    ],
)
def test_the_launcher_gets_each_signal_once(tmp_path, send, number, expected):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    launch = f"{sys.executable} {tmp_path / 'launcher.py'} {tmp_path}"
    environment = {**os.environ, "NEOBERT_LAUNCH": launch, "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    stage = subprocess.Popen([sys.executable, "-c", STAGE], cwd=ROOT, env=environment, start_new_session=True)
    try:
        wait_for(tmp_path / "ready")
        send(stage.pid, number)
        wait_for(tmp_path / "got")
        assert (tmp_path / "got").read_text() == expected
    finally:
        stage.kill()
        stage.wait()
