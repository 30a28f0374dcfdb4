"""Attacks on other processes, on the kernel, and on what the process is allowed to be."""

# ruff: noqa: F821, SIM115, RUF059
# mypy: ignore-errors

from attacks import attack


@attack("got nothing")
def reads_the_environment():
    """Keys and tokens are handed around in environments."""
    start = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    return dict(os.environ) or (bool(start) and start[0])


@attack("got nothing")
def finds_a_secret_in_its_memory():
    """What the zygote once held is still in the memory that a fork copies."""
    import gc

    secret = "-".join(["a", "secret", "of", "the", "host", "5f0c1e"])
    texts = [item for item in gc.get_objects() if isinstance(item, dict)]
    return [1 for each in texts for value in list(each.values()) if isinstance(value, str) and value == secret]


@attack("got nothing")
def finds_the_program_of_an_earlier_check():
    """All programs pass through one zygote: its memory must hold none of them."""
    needle = "".join(["canary-", "of-an-", "earlier-check"]).encode()
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    libc.sbrk.argtypes = [ctypes.c_long]
    end = libc.sbrk(0)
    here = ctypes.addressof(ctypes.create_string_buffer(1)) & ~4095
    heap = ctypes.string_at(here, max(0, min(end - here, 2**24))) if here < end else b""
    return heap.count(needle) > 1


@attack("got nothing")
def sees_other_processes():
    """By asking for every number."""
    seen = []
    for pid in range(2, 40000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        seen.append(pid)
    return seen


@attack("got nothing|ESRCH")
def kills_everybody():
    """kill(-1) reaches all that it may signal."""
    os.kill(-1, signal.SIGKILL)
    return


@attack("", ended=("exit", "signal"))
def kills_its_process_group():
    """The zygote and the service, if it were in their group."""
    os.killpg(0, signal.SIGKILL)
    return


@attack("", ended=("exit", "signal"))
def kills_its_parent():
    """In a new pid namespace getppid() is 0, and kill(0) is the whole process group."""
    os.kill(os.getppid(), signal.SIGKILL)
    return


@attack("", ended=("wall", "exit", "signal"), wall_seconds=0.5)
def stops_its_process_group():
    """A stopped zygote would hold everybody up."""
    os.killpg(0, signal.SIGSTOP)
    time.sleep(5)
    return


@attack("ESRCH")
def signals_the_group_of_every_number():
    """Groups outside are not to be found."""
    for group in range(2, 20000):
        try:
            os.killpg(group, signal.SIGKILL)
            return group
        except ProcessLookupError:
            continue
    raise ProcessLookupError(3, "none")


@attack()
def traces_its_parent():
    """ptrace(PTRACE_ATTACH)."""
    return system_call("ptrace", 16, os.getppid() or 1, 0, 0) == 0


@attack()
def asks_to_be_traced():
    """ptrace(PTRACE_TRACEME): the parent would have to deal with it."""
    return system_call("ptrace", 0, 0, 0, 0) == 0


@attack()
def reads_another_processs_memory():
    """process_vm_readv(2)."""
    return system_call("process_vm_readv", 1, None, 0, None, 0, 0) == 0


@attack()
def takes_another_processs_descriptor():
    """pidfd_open(2), then pidfd_getfd(2)."""
    return system_call("pidfd_getfd", system_call("pidfd_open", 1, 0), 1, 0)


@attack()
def leaves_its_session():
    """setsid(2), so that killing the group does not reach it."""
    if os.fork() == 0:
        os.setsid()
        os._exit(0)
    os.setsid()
    return "left"


@attack()
def becomes_root():
    """setuid(0)."""
    os.setuid(0)
    return "root"


@attack()
def becomes_another_user():
    """setresuid(2) to the neighbour's id."""
    os.setresuid(1001, 1001, 1001)
    return "another"


@attack()
def joins_groups():
    """setgroups(2): disk, docker, …"""
    os.setgroups([0, 6, 999])
    return "joined"


@attack()
def takes_capabilities():
    """capset(2) with everything."""
    header = ctypes.create_string_buffer(b"\x22\x05\x08\x20" + bytes(4), 8)
    return system_call("capset", header, ctypes.create_string_buffer(b"\xff" * 24, 24)) == 0


@attack("got nothing")
def holds_a_capability():
    """capget(2): whatever was forgotten."""
    header = ctypes.create_string_buffer(b"\x22\x05\x08\x20" + bytes(4), 8)
    data = ctypes.create_string_buffer(24)
    system_call("capget", header, data)
    return any(data.raw)


@attack()
def makes_a_user_namespace():
    """Root in there, and a view of kernel code that was never meant for it."""
    return system_call("unshare", 0x10000000) == 0


@attack()
def makes_a_mount_namespace():
    """unshare(CLONE_NEWNS)."""
    return system_call("unshare", 0x00020000) == 0


@attack()
def clones_into_namespaces():
    """clone(CLONE_NEWUSER): the same by another name."""
    child = system_call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return child


@attack()
def clones_all_namespaces_at_once():
    """Each flag by itself, and all together."""
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000, 0x7E020000):
        try:
            if system_call("clone", flag | signal.SIGCHLD, 0, 0, 0, 0) == 0:
                os._exit(0)
            return hex(flag)
        except PermissionError:
            continue
    raise PermissionError(1, "all refused")


@attack("ENOSYS")
def clones_by_a_structure():
    """clone3(2): its flags are out of a filter's sight."""
    arguments = ctypes.create_string_buffer(b"\x00\x00\x00\x10" + bytes(60), 64)
    return system_call("clone3", arguments, 64)


@attack()
def enters_a_namespace():
    """setns(2)."""
    return system_call("setns", 0, 0) == 0


@attack("EPERM|ENOENT|EACCES")
def starts_a_shell():
    """There is none, and nothing may be executed."""
    return os.execv("/bin/sh", ["sh", "-c", "id"])


@attack("EPERM|EACCES")
def starts_another_interpreter():
    """With the walls' own interpreter as the only program in sight."""
    return os.execv(os.path.realpath(sys.executable), ["python"])


@attack("EPERM|EACCES|ENOENT|ENOEXEC")
def starts_a_set_user_id_program():
    """One that it made itself."""
    open("mine", "w").write("#!/bin/sh\nid\n")
    os.chmod("mine", 0o6755)
    return os.execv("mine", ["mine"])


@attack()
def executes_from_memory():
    """memfd_create(2), then fexecve: a program that was never a file."""
    return os.memfd_create("program")


@attack()
def sets_up_a_ring_of_system_calls():
    """io_uring: calls that no filter sees."""
    return system_call("io_uring_setup", 8, ctypes.create_string_buffer(120))


@attack()
def reads_the_keyring():
    """keyctl(2): keys are the user's, not the namespace's."""
    return system_call("keyctl", 0, -3, 1) >= 0


@attack()
def leaves_a_key():
    """add_key(2): a channel to the next check."""
    return system_call("add_key", b"user", b"left", b"data", 4, -3) >= 0


@attack()
def loads_a_kernel_program():
    """bpf(2)."""
    return system_call("bpf", 0, ctypes.create_string_buffer(72), 72) >= 0


@attack()
def counts_events_of_the_processor():
    """perf_event_open(2): timing others, and a history of bugs."""
    return system_call("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0) >= 0


@attack()
def handles_its_own_page_faults():
    """userfaultfd(2): stops the kernel in the middle of a copy."""
    return system_call("userfaultfd", 0) >= 0


@attack()
def loads_a_kernel_module():
    """init_module(2)."""
    return system_call("init_module", b"", 0, b"") == 0


@attack()
def loads_another_kernel():
    """kexec_load(2)."""
    return system_call("kexec_load", 0, 0, None, 0) == 0


@attack()
def restarts_the_machine():
    """reboot(2)."""
    return system_call("reboot", 0xFEE1DEAD, 672274793, 0x1234567, None) == 0


@attack()
def changes_its_personality():
    """personality(READ_IMPLIES_EXEC | ADDR_NO_RANDOMIZE)."""
    return system_call("personality", 0x0440000) >= 0


@attack()
def sets_the_clock():
    """The host's."""
    time.clock_settime(time.CLOCK_REALTIME, 0)
    return "set"


@attack("", ended="signal")
def calls_by_the_old_gate():
    """int 0x80 on x86-64: another table of numbers, which a filter by number would misread."""
    import mmap
    import platform

    if platform.machine() != "x86_64":
        os.kill(os.getpid(), signal.SIGSEGV)
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


@attack("", ended="signal")
def calls_by_the_other_numbers():
    """x32 numbers on x86-64: each call once more, with bit 30."""
    return ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))


@attack()
def puts_characters_into_a_terminal():
    """ioctl(TIOCSTI): the next shell would read them as typed."""
    import fcntl

    return fcntl.ioctl(0, 0x5412, b"x")


@attack()
def hands_itself_a_descriptor():
    """sendmsg(2) with SCM_RIGHTS: the way descriptors travel."""
    import array

    one, other = socket.socketpair()
    return one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])


@attack("ValueError|EPERM")
def raises_its_limits():
    """More memory than it was given."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "raised"


@attack()
def takes_the_other_core():
    """sched_setaffinity(2)."""
    os.sched_setaffinity(0, {0})
    return "taken"


@attack()
def schedules_itself_first():
    """SCHED_FIFO: nobody else would run."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return "first"


@attack()
def renices_itself():
    """setpriority(2)."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "first"


@attack()
def makes_system_v_memory():
    """shmget(2): outlives the process."""
    return system_call("shmget", 1, 4096, 0o1666)


@attack()
def makes_system_v_semaphores():
    """semget(2)."""
    return system_call("semget", 1, 1, 0o1666)


@attack()
def makes_a_message_queue():
    """mq_open(2)."""
    return system_call("mq_open", b"left", 0o102, 0o666, None)


@attack()
def splices_pages():
    """splice(2): Dirty Pipe wrote into read-only files with it."""
    reader, writer = os.pipe()
    return system_call("splice", os.open(os.__file__, os.O_RDONLY), None, writer, None, 10, 0)


@attack("EPERM|MemoryError|OSError|ENOMEM")
def locks_memory():
    """mlock(2): memory that the host cannot take back."""
    return system_call("mlock", ctypes.create_string_buffer(4096), 4096) == 0
