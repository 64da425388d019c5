"""Two hosts on one machine: network namespaces joined by a virtual cable, for root on Linux."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parents[3]
PREFIX = "rlbatch-"
ADDRESS = "10.77.0."
LINK_BYTES_A_SECOND = 62.5e3
SLOW_LINK = ("tbf", "rate", "500kbit", "burst", "4kb", "latency", "400ms")
"""A token bucket in place of netem, which few kernels of containers have."""


class NoHostsError(Exception):
    """This process may not make hosts here."""


class TwoHosts:
    """The hosts; the first has 10.77.0.1, the second 10.77.0.2."""

    def __init__(self) -> None:
        self.names = [f"{PREFIX}{os.getpid()}{end}" for end in "ab"]

    def make(self) -> None:
        """Make both.

        Raises:
            NoHostsError: A tool or a right is missing.
        """
        if not (shutil.which("ip") and shutil.which("tc")):
            raise NoHostsError("needs ip and tc (Debian: apt install iproute2)")
        _remove_left_behind()
        first, second = self.names
        for name in self.names:
            _call("ip", "netns", "add", name)
        _call(*f"ip link add eth0 netns {first} type veth peer name eth0 netns {second}".split())
        for number, name in enumerate(self.names, start=1):
            _call(*f"ip -n {name} addr add {ADDRESS}{number}/24 dev eth0".split())
            _call(*f"ip -n {name} link set eth0 up".split())
            _call(*f"ip -n {name} link set lo up".split())
            _call("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", *SLOW_LINK)
            _call("tc", "-n", name, "qdisc", "del", "dev", "eth0", "root")  # it can be had

    def _end_processes(self) -> None:
        """End what still runs on the hosts: ranks have sessions of their own."""
        for name in self.names:
            with suppress(NoHostsError):
                _end_all(name)

    def remove(self) -> None:
        """Take both away; the cable goes with them."""
        self._end_processes()
        for name in self.names:
            with suppress(NoHostsError):
                _call("ip", "netns", "del", name)

    def torchrun(self, program: Path, *arguments: str, seconds: float = 240.0) -> None:
        """Run a program on two ranks of each host to its end, with up to three restarts."""
        end = time.monotonic() + seconds
        with TemporaryFile("w+") as first, TemporaryFile("w+") as second:
            errors = (first, second)
            launchers = [
                self._launcher(number, [str(program), *arguments], file)
                for number, file in enumerate(errors, start=1)
            ]
            try:
                for launcher in launchers:
                    launcher.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass  # said below, by a code that is not 0
            finally:
                self._end_processes()
            codes = [launcher.wait() for launcher in launchers]
            said = [_written(file) for file in errors]
        assert codes == [0, 0], f"exit codes {codes}\n" + "\n".join(said)

    def _launcher(self, number: int, program: list[str], errors: IO[str]) -> subprocess.Popen[str]:
        torchrun = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "3"),
            *("--monitor-interval", "0.5", "--rdzv-backend", "c10d", "--rdzv-id", "hosts"),
            *("--rdzv-endpoint", f"{ADDRESS}1:29500", "--local-addr", f"{ADDRESS}{number}"),
            *("--rdzv-conf", f"is_host={int(number == 1)}"),  # both have this machine's name
        ]
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            # A store that outlives a restart still has the addresses of the ranks before it, and
            # who comes first calls those (https://github.com/pytorch/pytorch/issues/135712).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number - 1], *torchrun, *program],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )


def _written(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


@contextmanager
def slow_cable() -> Generator[None]:
    """For a block, let this process's host send `LINK_BYTES_A_SECOND` at most."""
    _call("tc", "qdisc", "add", "dev", "eth0", "root", *SLOW_LINK)
    yield
    _call("tc", "qdisc", "del", "dev", "eth0", "root")


@contextmanager
def two_hosts() -> Generator[TwoHosts]:
    """Run a block with two hosts, which are taken away whatever happens.

    Raises:
        NoHostsError: They cannot be made here.
    """
    hosts = TwoHosts()
    try:
        hosts.make()
        yield hosts
    finally:
        if shutil.which("ip"):
            hosts.remove()


def _remove_left_behind() -> None:
    """Take away the hosts of test runs that were killed, with what still runs in them."""
    for line in _call("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.strip() else ""
        owner = name.removeprefix(PREFIX)[:-1]
        if name.startswith(PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _end_all(name)
            _call("ip", "netns", "del", name)


def _end_all(name: str) -> None:
    for process in _call("ip", "netns", "pids", name).split():
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHostsError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
