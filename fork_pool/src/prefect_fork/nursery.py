"""A process that has loaded Prefect together with the worker, and brings up forkservers.

A forkserver that multiprocessing starts loads everything anew: half of the memory of a worker that
waits. One that is forked off this process shares what the worker has loaded, and loads what the
flows import. It can't be forked off the worker itself, which has threads.
"""

import gc
import json
import os
import signal
import socket
import traceback
from multiprocessing import connection, forkserver, util
from typing import Any, NoReturn

from .preload import adopt_environment, load, ready


def begin() -> socket.socket:
    """Forks a nursery off this process, which has loaded what is to be shared, and no thread."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()
    gc.freeze()  # a collection would write to all that is shared
    if os.fork() == 0:
        ours.close()
        bring_up(theirs)
    theirs.close()
    return ours


def bring_up(pipe: socket.socket) -> NoReturn:
    """Forks a forkserver for each message, until the worker has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    while True:
        message, fds, _, _ = socket.recv_fds(pipe, 1 << 17, 2)
        if not message:
            os._exit(0)
        try:
            pid = os.fork()
        except OSError:  # no more processes, just now
            pid = -1
        if pid == 0:
            pipe.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                serve(fds, **json.loads(message))
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)
        pipe.send(b"%d" % pid)


def serve(fds: list[int], names: list[str], environment: dict[str, str]) -> None:
    """Loads modules, and then is multiprocessing's own forkserver."""
    adopt_environment(environment)
    load(names)
    ready()
    main: Any = forkserver.main
    main(*fds, [])


class NursedForkServer(forkserver.ForkServer):
    """A forkserver that a nursery brings up."""

    _forkserver_address: Any
    _forkserver_alive_fd: Any
    _forkserver_pid: Any
    _lock: Any

    def __init__(self, nursery: socket.socket, **message: object) -> None:
        """Takes what `serve` is to be told."""
        super().__init__()
        self._nursery = nursery
        self._message = json.dumps(message).encode()

    def ensure_running(self) -> None:
        """Has it brought up unless it is there; as multiprocessing does, but for the last step."""
        with self._lock:
            if self._forkserver_pid is not None:
                if is_alive(self._forkserver_pid):
                    return
                os.close(self._forkserver_alive_fd)
                self._forkserver_pid = self._forkserver_alive_fd = None
            with socket.socket(socket.AF_UNIX) as listener:
                address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
                listener.bind(address)
                if not util.is_abstract_socket_namespace(address):
                    os.chmod(address, 0o600)
                listener.listen()
                alive_r, alive_w = os.pipe()
                socket.send_fds(self._nursery, [self._message], [listener.fileno(), alive_r])
                os.close(alive_r)
            pid = int(self._nursery.recv(64) or -1)
            if pid < 0:
                os.close(alive_w)
                raise ChildProcessError("expected a forkserver, found no process to be had for it")
            self._forkserver_pid = pid
            self._forkserver_address = address
            self._forkserver_alive_fd = alive_w


def is_alive(pid: int) -> bool:
    """Is there such a process?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
