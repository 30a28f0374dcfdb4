"""Attacks on the host's time, memory, disk and patience."""

# ruff: noqa: F821, RUF059, BLE001
# mypy: ignore-errors

from attacks import attack


@attack("", ended=("cpu", "wall"), cpu_seconds=0.3)
def computes_for_ever():
    """The plain loop."""
    while True:
        pass


@attack("", ended=("cpu", "wall"), cpu_seconds=0.3)
def computes_in_one_long_step():
    """Inside one operation of the C library, where Python looks at no signal."""
    return len(str(9 ** (9**9)))


@attack("", ended=("cpu", "wall"), cpu_seconds=0.3)
def ignores_every_signal():
    """And takes no exception for an answer."""
    for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue


@attack("", ended="wall", wall_seconds=0.5)
def sleeps_for_ever():
    """Costs no CPU, holds a place."""
    time.sleep(1e6)


@attack("", ended="wall", wall_seconds=0.5)
def reads_from_a_pipe_that_nobody_writes():
    """A wait that no signal of its own ends."""
    reader, writer = os.pipe()
    os.read(reader, 1)


@attack("", ended=("wall", "exit"), wall_seconds=0.5)
def stops_itself():
    """SIGSTOP: neither running nor dead."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(5)


@attack("EAGAIN|MemoryError|ENOMEM", ended=("exit", "memory", "wall"))
def forks_without_end():
    """The fork bomb."""
    while True:
        if os.fork() == 0:
            while True:
                try:
                    os.fork()
                except OSError:
                    time.sleep(30)


@attack("EAGAIN|RuntimeError", ended=("exit", "wall", "memory"))
def starts_threads_without_end():
    """The same with threads."""
    import threading

    while True:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


@attack("EAGAIN|got nothing", ended=("exit", "wall"))
def floods_with_zombies():
    """Children that nobody buries keep their numbers."""
    for _ in range(5000):
        if os.fork() == 0:
            os._exit(0)


@attack("got nothing")
def leaves_a_daemon():
    """Forks twice and hopes to live on."""
    if os.fork() == 0:
        if os.fork() == 0:
            os.close(0)
            os.close(1)
            os.close(2)
            time.sleep(600)
        os._exit(0)


@attack("got nothing")
def leaves_a_child_that_holds_the_pipes():
    """Whoever waits for the end of the output would wait for ever."""
    if os.fork() == 0:
        time.sleep(600)


@attack("MemoryError", ended=("exit", "memory"))
def takes_all_memory():
    """The plain memory bomb."""
    kept = []
    while True:
        kept.append(bytearray(16 * 2**20))


@attack("MemoryError|OverflowError", ended=("exit", "memory"))
def takes_all_memory_at_once():
    """In one step."""
    return len(bytearray(2**40))


@attack("MemoryError|OSError|ENOMEM", ended=("exit", "memory"))
def maps_shared_memory():
    """Not its heap, and still memory."""
    import mmap

    kept = []
    while True:
        kept.append(mmap.mmap(-1, 2**24))
        kept[-1][:] = b"x" * 2**24


@attack("", ended=("exit", "memory", "wall"))
def takes_memory_in_many_processes():
    """Each below its own limit."""
    for _ in range(10):
        try:
            if os.fork() == 0:
                kept = bytearray(b"x") * (48 * 2**20)
                time.sleep(1 + len(kept) * 0)
                os._exit(0)
        except OSError:
            break
    time.sleep(1.0)


@attack("ENOSPC|EFBIG|ENOMEM", ended=("exit", "memory"))
def fills_the_disk():
    """Many files, each below the limit of one."""
    for number in range(10000):
        with open(str(number), "wb") as file:
            file.write(b"x" * 2**20)


@attack("EFBIG", ended=("exit", "signal"))
def makes_one_huge_file():
    """Sparse: it costs nothing to promise."""
    with open("huge", "wb") as file:
        file.truncate(2**40)
    return os.stat("huge").st_size


@attack("ENOSPC")
def uses_up_all_inodes():
    """Empty files."""
    for number in range(10**6):
        os.close(os.open(str(number), os.O_CREAT))


@attack("EMFILE|ENFILE")
def opens_descriptors_without_end():
    """The table of open files is the host's."""
    while True:
        os.dup(0)


@attack("", ended="output")
def writes_without_end():
    """To stdout."""
    while True:
        sys.stdout.write("x" * 65536)


@attack("", ended="output")
def complains_without_end():
    """To stderr."""
    while True:
        os.write(2, b"x" * 65536)


@attack("", ended=("output", "cpu", "wall"))
def writes_from_many_processes():
    """All at once."""
    for _ in range(5):
        os.fork()
    while True:
        os.write(1, b"x" * 65536)


@attack("EPERM|EBUSY")
def asks_for_huge_pipes():
    """The host's memory for pipes."""
    import fcntl

    kept = [os.pipe() for _ in range(20)]
    sizes = [fcntl.fcntl(writer, 1031, 2**24) for _, writer in kept]
    return sum(sizes) > 2**27


@attack("", ended="signal")
def crashes():
    """A null pointer."""
    ctypes.string_at(0)


@attack("RecursionError", ended=("exit", "signal"))
def recurses_without_end():
    """Python's own stack."""

    def deeper():
        return deeper()

    return deeper()


@attack("", ended=("signal", "exit"))
def exhausts_the_stack():
    """The machine's stack, by way of the parser."""
    sys.setrecursionlimit(10**9)
    return eval("(" * 10**5 + ")" * 10**5)


@attack("", ended=("signal", "exit"))
def aborts():
    """SIGABRT, and a core dump if there were any."""
    os.abort()


@attack("", ended=("exit",))
def closes_everything_and_goes_well():
    """An exit status of 0 without a word."""
    os.closerange(0, 4096)
    os._exit(0)
