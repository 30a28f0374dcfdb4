"""Which system calls checked code may make, and why; every other one is refused.

`ALLOWED` is the list that holds. `REFUSED` names what an attacker would miss most and why it is not there; it has no
effect of its own, and a test makes each of those calls to see it refused.
"""

from dataclasses import dataclass

EPERM, ENOSYS = 1, 38


@dataclass(frozen=True, slots=True)
class Condition:
    """A call is allowed if argument `argument` is among `values`, or, with `mask`, if it has none of those bits."""

    argument: int
    values: tuple[int, ...] = ()
    mask: int = 0


ALLOWED: dict[str, str] = {
    **dict.fromkeys(
        ["brk", "mmap", "munmap", "mprotect", "mremap", "madvise", "membarrier"],
        "memory of its own; the address space has a limit",
    ),
    **dict.fromkeys(
        [
            "read",
            "readv",
            "pread64",
            "preadv",
            "lseek",
            "close",
            "close_range",
            "dup",
            "dup2",
            "dup3",
            "fcntl",
            "flock",
        ],
        "descriptors that it has",
    ),
    **dict.fromkeys(
        ["open", "openat", "stat", "fstat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"],
        "imports; what there is to open is the mount namespace's and Landlock's to say",
    ),
    **dict.fromkeys(
        ["readlink", "readlinkat", "getdents64", "getcwd", "chdir", "fchdir", "statfs", "fstatfs"],
        "looking round in a file system that holds the interpreter and nothing else",
    ),
    **dict.fromkeys(
        ["write", "writev", "pwrite64", "pwritev", "ftruncate", "truncate", "fsync", "fdatasync", "fallocate"],
        "output, and files in its own folder, which has a limit",
    ),
    **dict.fromkeys(
        [
            "creat",
            "rename",
            "renameat",
            "renameat2",
            "mkdir",
            "mkdirat",
            "rmdir",
            "unlink",
            "unlinkat",
            "link",
            "linkat",
        ],
        "files in its own folder",
    ),
    **dict.fromkeys(
        ["symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "utimensat", "umask", "sendfile", "copy_file_range"],
        "files in its own folder; links are resolved inside the same walls, set-id bits mean nothing there",
    ),
    **dict.fromkeys(
        ["poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait"],
        "waiting for its own descriptors",
    ),
    **dict.fromkeys(["epoll_pwait", "eventfd2", "pipe", "pipe2"], "threads and loops that talk among themselves"),
    **dict.fromkeys(
        ["clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times"],
        "reading the clock and sleeping; the deadline is outside",
    ),
    **dict.fromkeys(["getitimer", "setitimer", "alarm", "pause"], "alarms of its own"),
    **dict.fromkeys(["clone", "fork", "vfork"], "threads and processes, no namespaces; their number has a limit"),
    **dict.fromkeys(
        ["exit", "exit_group", "wait4", "waitid", "getpid", "getppid", "gettid", "getpgrp", "getpgid", "getsid"],
        "processes of its own",
    ),
    **dict.fromkeys(
        ["getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "capget", "uname", "sysinfo"],
        "asking who and where it is",
    ),
    **dict.fromkeys(
        ["set_tid_address", "set_robust_list", "rseq", "futex", "arch_prctl", "restart_syscall", "getcpu"],
        "what the C library needs for threads",
    ),
    **dict.fromkeys(
        ["sched_yield", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "getpriority"],
        "asking about the scheduler, not telling it",
    ),
    **dict.fromkeys(["getrusage", "getrlimit", "setrlimit"], "limits can be read and lowered, not raised"),
    "prlimit64": "the same, of itself alone",
    "getrandom": "random numbers",
    **dict.fromkeys(
        ["rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigtimedwait", "rt_sigsuspend"],
        "handling signals",
    ),
    "sigaltstack": "handling signals",
    **dict.fromkeys(["kill", "tgkill", "tkill"], "signals; nobody else is in the pid namespace"),
    "socketpair": "asyncio wakes itself up over one; it has no name, so nobody else can reach it",
    **dict.fromkeys(
        ["sendto", "recvfrom", "shutdown", "getsockopt", "getsockname", "getpeername"], "the two ends of that pair"
    ),
    "ioctl": "is it a terminal, how much can be read, do not block",
    "prctl": "names of threads and of memory",
}

EXECUTE = {"execve": "a program named by `argv` starts; the root holds no other than the interpreter"}
"""Allowed in addition when the check is a program file."""

WORKER = {
    "memfd_create": "hands programs to a sandbox",
    "sendmsg": "hands descriptors to a sandbox",
    "recvmsg": "talks to a sandbox",
}
"""Allowed in addition to a worker, whose code is ours and whose input is not."""

NAMESPACES = 0x7E020000 | 0x00002000 | 0x00008000
"""CLONE_NEW… of every kind, CLONE_PTRACE and CLONE_PARENT."""

CONDITIONS: dict[str, Condition] = {
    "clone": Condition(0, mask=NAMESPACES),
    "socketpair": Condition(0, values=(1,)),  # AF_UNIX
    "prlimit64": Condition(0, values=(0,)),  # of itself
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: not TIOCSTI, nothing of any device
    "ioctl": Condition(1, values=(0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_VMA
    "prctl": Condition(0, values=(15, 16, 3, 0x53564D41)),
}

SIGNALS = ("kill", "tgkill", "tkill")
"""Refused where there is no pid namespace to keep them inside."""

UNKNOWN: dict[str, str] = {
    "clone3": "its flags lie in memory that a filter cannot read; the C library falls back on clone",
    "openat2": "the C library falls back on openat",
}
"""Refused as if the kernel had never heard of them, so that libraries use the older call."""

REFUSED: dict[str, str] = {
    **dict.fromkeys(["socket", "connect", "bind", "listen", "accept", "accept4"], "no network, no named sockets"),
    **dict.fromkeys(["sendmsg", "recvmsg"], "descriptors could be passed"),
    **dict.fromkeys(["ptrace", "process_vm_readv", "process_vm_writev", "kcmp"], "other processes' memory"),
    **dict.fromkeys(["pidfd_open", "pidfd_getfd", "pidfd_send_signal"], "other processes' descriptors"),
    **dict.fromkeys(["mount", "umount2", "pivot_root", "chroot", "fsopen", "fsmount", "fsconfig"], "the file system"),
    **dict.fromkeys(["open_tree", "move_mount", "mount_setattr", "swapon", "quotactl"], "the file system"),
    **dict.fromkeys(["unshare", "setns"], "namespaces; the user namespace is where kernel bugs are found"),
    **dict.fromkeys(
        ["setuid", "setgid", "setreuid", "setresuid", "setresgid", "setgroups", "setfsuid", "capset"], "who it is"
    ),
    **dict.fromkeys(["chown", "fchown", "lchown", "setxattr", "mknod", "mknodat"], "whose a file is, and devices"),
    **dict.fromkeys(
        ["open_by_handle_at", "name_to_handle_at"], "files by number, past every path: the way out of chroots"
    ),
    **dict.fromkeys(["io_uring_setup", "io_uring_enter", "io_uring_register"], "system calls that no filter sees"),
    **dict.fromkeys(["bpf", "perf_event_open", "userfaultfd"], "helpers of kernel exploits"),
    **dict.fromkeys(["keyctl", "add_key", "request_key"], "keyrings are shared with the host"),
    **dict.fromkeys(["init_module", "finit_module", "delete_module", "kexec_load", "reboot"], "the kernel itself"),
    **dict.fromkeys(["ioperm", "iopl", "personality", "seccomp", "syslog", "vhangup"], "the machine"),
    **dict.fromkeys(["clock_settime", "clock_adjtime"], "the host's clock"),
    **dict.fromkeys(["memfd_create", "memfd_secret", "mlock"], "memory past the limits"),
    **dict.fromkeys(["shmget", "semget", "msgget", "mq_open"], "memory and queues that outlive a process"),
    **dict.fromkeys(["splice", "tee", "vmsplice"], "pages of files spliced into pipes: a family of kernel bugs"),
    **dict.fromkeys(["setsid", "setpgid"], "leaving the process group that is killed"),
    **dict.fromkeys(["sched_setaffinity", "sched_setscheduler", "setpriority"], "the other checks' time"),
    **dict.fromkeys(["mbind", "migrate_pages", "move_pages", "set_mempolicy"], "where memory lies: of no use here"),
    **dict.fromkeys(["inotify_init1", "fanotify_init"], "watching files"),
    **dict.fromkeys(["execve", "execveat"], "there is nothing to execute"),
    **dict.fromkeys(["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"], "the walls stand"),
    "setsockopt": "the socket pair needs none",
    "sync": "the host's disks",
    "rt_sigqueueinfo": "signals with a forged sender",
}
