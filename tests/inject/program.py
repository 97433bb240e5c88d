"""The programs that tests attach to: `program.py MODE COUNTERS [ARGUMENT]`, on any CPython from 3.9 on.

COUNTERS is a file of 16 little-endian u64, which the program maps and counts in: number 0 is set to 1 when it
is ready, number 15 counts what a program must never see (EINTR, an early return); the text of it goes to
stderr.
"""

import ctypes
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import tracemalloc

READY, WRONG = 0, 15
TIMEOUT_S = 0.15
EARLY_S = 0.002  # timers of poll and epoll count in milliseconds
libc = ctypes.CDLL(None, use_errno=True)

with open(sys.argv[2], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 128)


def count(number, by=1):
    struct.pack_into("<Q", memory, 8 * number, struct.unpack_from("<Q", memory, 8 * number)[0] + by)


def wrong(text):
    count(WRONG)
    print(text, file=sys.stderr, flush=True)


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


def timespec(seconds):
    return ctypes.byref(Timespec(int(seconds), int(seconds % 1 * 1e9)))


def raw(call, *arguments):
    """(result, errno) of a system call, with no retry of Python's."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(call), *arguments)
    return result, ctypes.get_errno()


def long(value):
    return ctypes.c_long(value)


def make_waits():
    """Name to (function that waits TIMEOUT_S, the (result, errno) of a wait that ran out)."""
    epoll = select.epoll()
    left, _right = socket.socketpair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, int(TIMEOUT_S * 1e6)))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", 0, int(TIMEOUT_S * 1e6)))
    room = ctypes.create_string_buffer(4096)
    word, mutex = ctypes.c_uint32(0), ctypes.c_uint32(2)
    semaphore = libc.semget(0, 1, 0o1600)
    operation = ctypes.create_string_buffer(struct.pack("HhH", 0, -1, 0))
    libc.semctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    milliseconds = long(int(TIMEOUT_S * 1000))
    none = ctypes.c_void_p()
    usr2 = ctypes.byref(ctypes.c_uint64(1 << (signal.SIGUSR2 - 1)))
    timeval = lambda: ctypes.byref(Timespec(0, int(TIMEOUT_S * 1e6)))  # noqa: E731
    until = lambda: timespec(time.clock_gettime(time.CLOCK_MONOTONIC) + TIMEOUT_S)  # noqa: E731
    fd, ten, eight = long(epoll.fileno()), long(10), long(8)
    lost = (-1, errno.EAGAIN)
    waits = {
        "poll": (lambda: raw(7, none, long(0), milliseconds), (0, 0)),
        "ppoll": (lambda: raw(271, none, long(0), timespec(TIMEOUT_S), none, long(0)), (0, 0)),
        "select": (lambda: raw(23, long(0), none, none, none, timeval()), (0, 0)),
        "pselect6": (lambda: raw(270, long(0), none, none, none, timespec(TIMEOUT_S), none), (0, 0)),
        "nanosleep": (lambda: raw(35, timespec(TIMEOUT_S), none), (0, 0)),
        "clock_nanosleep": (lambda: raw(230, long(1), long(0), timespec(TIMEOUT_S), none), (0, 0)),
        "clock_nanosleep until": (lambda: raw(230, long(1), long(1), until(), none), (0, 0)),
        "futex": (
            lambda: raw(202, ctypes.byref(word), long(128), long(0), timespec(TIMEOUT_S)),
            (-1, errno.ETIMEDOUT),
        ),
        "futex until": (
            lambda: raw(202, ctypes.byref(word), long(137), long(0), until(), none, long(0xFFFFFFFF)),
            (-1, errno.ETIMEDOUT),
        ),
        "mutex": (
            lambda: raw(202, ctypes.byref(mutex), long(128), long(2), timespec(TIMEOUT_S)),
            (-1, errno.ETIMEDOUT),
        ),
        "epoll_wait": (lambda: raw(232, fd, room, ten, milliseconds), (0, 0)),
        "epoll_pwait": (lambda: raw(281, fd, room, ten, milliseconds, usr2, eight), (0, 0)),
        "epoll_pwait2": (lambda: raw(441, fd, room, ten, timespec(TIMEOUT_S), none, eight), (0, 0)),
        "semtimedop": (lambda: raw(220, long(semaphore), operation, long(1), timespec(TIMEOUT_S)), lost),
        "rt_sigtimedwait": (lambda: raw(128, usr2, none, timespec(TIMEOUT_S), eight), lost),
        "recvfrom": (lambda: raw(45, long(left.fileno()), room, ten, long(0), none, none), lost),
        "accept": (lambda: raw(43, long(listener.fileno()), none, none), lost),
    }
    return waits, lambda: libc.semctl(semaphore, 0, 0), (epoll, left, _right, listener)


def wait(name):
    """A thread waits again and again, by the raw call `name`, until its time runs out. Counts in 1; its id in
    2.
    """
    waits, remove, _keep = make_waits()
    function, expected = waits[name]

    def loop():
        count(2, threading.get_native_id())
        while True:
            start = time.monotonic()
            outcome = function()
            elapsed = time.monotonic() - start
            if outcome != expected or elapsed < TIMEOUT_S - EARLY_S:
                wrong(f"{name}: {outcome}, expected {expected}, after {elapsed:.4f} s")
            count(1)

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    threading.Thread(target=loop, daemon=True).start()
    count(READY)
    sys.stdin.read()
    remove()


def interruptible():
    """A thread in an endless raw epoll_wait, which a handler of ours for SIGUSR1 ends with EINTR, counted in
    1.
    """
    signal.signal(signal.SIGUSR1, lambda *_: None)
    epoll = select.epoll()
    room = ctypes.create_string_buffer(4096)

    def loop():
        count(2, threading.get_native_id())
        while True:
            outcome = raw(232, long(epoll.fileno()), room, long(10), long(-1))
            count(1) if outcome == (-1, errno.EINTR) else wrong(f"epoll_wait: {outcome}")

    threading.Thread(target=loop, daemon=True).start()
    count(READY)
    sys.stdin.read()


def blocked(how):
    """The main thread, the only one, blocked or busy in `how`."""
    r, w = os.pipe()
    lock = threading.Lock()
    lock.acquire()
    left, _right = socket.socketpair()
    epoll = select.epoll()
    poller = select.poll()
    poller.register(r, select.POLLIN)
    ways = {
        "sleep": lambda: time.sleep(600),
        "lock": lock.acquire,
        "lock with timeout": lambda: lock.acquire(timeout=600),
        "epoll": epoll.poll,
        "poll": poller.poll,
        "select": lambda: select.select([r], [], []),
        "recv": lambda: left.recv(1),
        "read": lambda: os.read(r, 1),
        "C code": lambda: libc.usleep(600_000_000),
        "write": lambda: [os.write(w, bytes(65536)) for _ in range(100)],
    }
    count(READY)
    ways[how]()


def spinning():
    """Only bytecode, in the main thread alone. What it computes goes through the vector registers."""
    count(READY)
    while True:
        total = 0.0
        for number in range(100):
            total += number * 0.5
        if total != 2475.0:
            wrong(f"the sum was {total}")
        count(1)


def holding_the_gil():
    """A C call that keeps the GIL, until a byte arrives at a pipe whose number is in counter 1."""
    holds = ctypes.PyDLL(None)
    r, w = os.pipe()
    count(1, w)
    room = ctypes.create_string_buffer(1)
    count(READY)
    holds.read(r, room, 1)
    while True:
        time.sleep(0.01)
        count(2)


def tracing_memory():
    """tracemalloc is on, a C call holds the GIL as in `holding_the_gil`, a thread waits in nanosleep."""

    def loop():
        while True:
            outcome = raw(35, timespec(20 * TIMEOUT_S), ctypes.c_void_p())
            if outcome != (0, 0):
                wrong(f"nanosleep: {outcome}")
            count(3)

    tracemalloc.start()
    threading.Thread(target=loop, daemon=True).start()
    holding_the_gil()


CALLS = {"mmap": 9, "socket": 41, "ptrace": 101}


def confine(call, answer):
    """Have a seccomp filter answer a call of this thread with a number; of mmap, where it maps executable memory."""
    allow, load, equal, bit, give = 0x7FFF0000, 0x20, 0x15, 0x45, 0x06
    steps = [(load, 0, 0, 0), (equal, 0, 1, CALLS[call]), (give, 0, 0, int(answer, 0))]
    if call == "mmap":
        steps[1:2] = [(equal, 0, 3, 9), (load, 0, 0, 32), (bit, 0, 1, 4)]
    code = b"".join(struct.pack("HBBI", *step) for step in [*steps, (give, 0, 0, allow)])
    room = ctypes.create_string_buffer(code, len(code))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps) + 1, ctypes.addressof(room)), 16)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter_, 0, 0):
        sys.exit("prctl failed")


def confined(call, answer):
    """All of it under a filter. Counts in 1."""
    confine(call, answer)
    count(READY)
    while True:
        time.sleep(0.005)
        count(1)


def confined_thread(call, answer):
    """A thread that sleeps under a filter of its own, and the main one, which sleeps under none. Counts in 1."""

    def sleep():
        confine(call, answer)
        count(READY)
        time.sleep(600)

    threading.Thread(target=sleep, daemon=True).start()
    while True:
        time.sleep(0.005)
        count(1)


def tortured():
    """Threads in every state at once. Counters 1 to 9 count what they do."""

    def fight(number):
        while True:
            sum(range(200))
            count(number)

    def sleep():
        while True:
            start = time.monotonic()
            time.sleep(0.02)
            if time.monotonic() - start < 0.02:
                wrong("sleep returned early")
            count(3)

    condition, turns = threading.Condition(), [0]

    def take_turns(me):
        while True:
            with condition:
                condition.wait_for(lambda: turns[0] % 2 == me)
                turns[0] += 1
                condition.notify()
            count(4 + me)
            time.sleep(0.001)

    def wait_raw():
        epoll, room = select.epoll(), ctypes.create_string_buffer(256)
        while True:
            start = time.monotonic()
            outcome = raw(232, long(epoll.fileno()), room, long(10), long(30))
            if outcome != (0, 0) or time.monotonic() - start < 0.03 - EARLY_S:
                wrong(f"epoll_wait: {outcome} after {time.monotonic() - start:.4f} s")
            count(6)

    def allocate():
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        size = 1
        while True:
            blocks = [libc.malloc(size * 37 % 70_000 + 1) for size in range(size, size + 100)]
            kept = [bytes(1000) for _ in range(100)]
            for block in blocks:
                libc.free(block)
            size = (size + len(kept)) % 100_000
            count(7)

    def fork():
        """glibc holds the locks of all of malloc's arenas while it forks."""
        while True:
            child = os.fork()
            if child == 0:
                os._exit(len([bytes(100) for _ in range(100)]) - 100)
            if os.waitpid(child, 0)[1] != 0:
                wrong("a forked child failed")
            count(8)
            time.sleep(0.02)

    loops = [lambda: fight(1), lambda: fight(2), sleep, lambda: take_turns(0), lambda: take_turns(1)]
    for loop in [*loops, wait_raw, allocate, allocate, fork]:
        threading.Thread(target=loop, daemon=True).start()
    count(READY)
    while True:
        try:
            os.write(1, b"")
            time.sleep(0.05)
        except InterruptedError:
            wrong("EINTR in the main thread")
        count(9)


def booby_trapped():
    """A breakpoint instruction, as a killed debugger leaves, on the function that starts threads. Counts in
    1.
    """
    function = ctypes.cast(ctypes.pythonapi.PyThread_start_new_thread, ctypes.c_void_p).value
    page = function & ~4095
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.mprotect(page, 8192, 7) != 0:
        sys.exit("mprotect failed")
    ctypes.memset(function, 0xCC, 1)
    count(READY)
    while True:
        time.sleep(0.005)
        count(1)


def stuck():
    """Wait uninterruptibly, as a parent does for a vforked child that sleeps."""
    stack = ctypes.create_string_buffer(65536)
    top = ctypes.c_void_p(ctypes.addressof(stack) + 65520)
    clone_vm, clone_vfork = 0x100, 0x4000
    count(READY)
    libc.clone(
        ctypes.cast(libc.sleep, ctypes.c_void_p), top, clone_vm | clone_vfork | 17, ctypes.c_void_p(600)
    )


MODES = {
    "wait": wait,
    "interruptible": interruptible,
    "blocked": blocked,
    "spinning": spinning,
    "holding_the_gil": holding_the_gil,
    "tortured": tortured,
    "booby_trapped": booby_trapped,
    "stuck": stuck,
    "tracing_memory": tracing_memory,
    "confined": confined,
    "confined_thread": confined_thread,
}
MODES[sys.argv[1]](*sys.argv[3:])
