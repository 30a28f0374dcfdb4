"""Attacks on the host's files, on what other checks will read, and on the walls round the file system."""

# Every function here runs inside the sandbox, where the prelude of `attacks` has imported what they use.
# ruff: noqa: F821, SIM115
# mypy: ignore-errors

from attacks import attack


@attack("ENOENT")
def reads_the_password_file():
    """The classic: /etc/passwd."""
    return open("/etc/passwd").read()


@attack("ENOENT")
def reads_the_shadow_file():
    """Password hashes, as root could."""
    return open("/etc/shadow").read()


@attack("ENOENT")
def reads_process_ones_environment():
    """A launcher's secrets lie in /proc/1/environ."""
    return open("/proc/1/environ").read()


@attack("ENOENT")
def reads_its_own_memory_map():
    """Addresses for further attacks, and paths of the host."""
    return open("/proc/self/maps").read()


@attack("ENOENT")
def writes_its_own_memory():
    """Past every protection of pages."""
    return open("/proc/self/mem", "r+b")


@attack("ENOENT")
def points_the_core_pattern_at_a_program():
    """The kernel would run it as root on the host."""
    return open("/proc/sys/kernel/core_pattern", "w").write("|/box/x")


@attack("ENOENT")
def looks_round_in_sysfs():
    """Devices, control groups, modules."""
    return os.listdir("/sys")


@attack("got nothing")
def finds_files_that_are_not_the_interpreters():
    """Walks everything that it can see: secrets, sources of the verifier, homes, run data."""
    allowed = ("/dev", "/etc/ld.so.cache", "/usr/lib", "/lib", sys.base_prefix)
    found = []
    for folder, folders, files in os.walk("/", followlinks=False):
        path = [os.path.join(folder, name) for name in files]
        found += [name for name in path if not name.startswith(allowed)]
        folders[:] = [name for name in folders if not os.path.join(folder, name).startswith(allowed)]
    return found


@attack("ModuleNotFoundError")
def finds_the_verifiers_sources():
    """The checker's code would say what it looks at."""
    import verifier

    return verifier.__path__ and os.listdir(verifier.__path__[0])


@attack("got nothing")
def finds_a_file_of_another_check():
    """A folder that checks shared would be a channel between them."""
    mine = os.listdir(".")
    open("left-behind", "w").write("for the next one")
    return mine


@attack("EROFS|EACCES")
def poisons_the_standard_library():
    """The next check would import it."""
    return open(os.__file__, "a").write("import evil")


@attack("EROFS|EACCES")
def plants_a_module_before_the_standard_librarys():
    """A new file in a folder that is searched for modules."""
    return open(os.path.join(os.path.dirname(os.__file__), "evil.py"), "w").write("x = 1")


@attack("EROFS|EACCES|EPERM")
def removes_a_library():
    """Nobody would import anything any more."""
    os.unlink(os.__file__)
    return "removed"


@attack("EROFS|EACCES|EPERM")
def makes_a_file_in_the_root():
    """Outside its own folder."""
    return open("/evil", "w").write("x")


@attack("ENOENT")
def reads_through_a_symbolic_link():
    """A link is resolved by the kernel: inside the same walls."""
    os.symlink("/etc/passwd", "link")
    return open("link").read()


@attack("EXDEV|EPERM|EACCES")
def writes_through_a_hard_link():
    """A name in its own folder for a file that is the host's."""
    os.link(os.__file__, "hard")
    return open("hard", "a").write("import evil")


@attack("got nothing")
def climbs_above_the_root():
    """`..` from every folder that it can hold."""
    seen = set()
    for start in ("/", "/tmp", os.getcwd()):
        os.chdir(start)
        for _ in range(40):
            os.chdir("..")
        seen |= set(os.listdir("."))
    return seen - {"box", "tmp", "dev", "usr", "lib", "lib32", "lib64", "bin", "etc", sys.base_prefix.split("/")[1]}


@attack()
def leaves_by_chroot():
    """The way out of a chroot: another chroot with a descriptor held."""
    held = os.open("/", os.O_RDONLY)
    os.mkdir("inner")
    os.chroot("inner")
    os.fchdir(held)
    return "out"


@attack()
def mounts_over_the_library():
    """A tmpfs of its own in place of the standard library."""
    return system_call("mount", b"tmpfs", b"/usr", b"tmpfs", 0, None) == 0


@attack()
def mounts_the_process_file_system():
    """It would show processes, and a way to their memory."""
    os.mkdir("proc")
    return system_call("mount", b"proc", b"proc", b"proc", 0, None) == 0


@attack()
def uncovers_what_is_mounted_over():
    """Below its folder lies the host's, if the mount can be taken away."""
    return system_call("umount2", b"/box", 2) == 0


@attack()
def makes_its_mounts_writable():
    """Remounting without `read-only`."""
    return system_call("mount", None, b"/", None, 32, None) == 0


@attack()
def opens_a_new_mount_interface():
    """fsopen(2), which filters of old have never heard of."""
    return system_call("fsopen", b"tmpfs", 0)


@attack()
def clones_a_mount_tree():
    """open_tree(2), the other one."""
    return system_call("open_tree", -100, b"/", 1)


@attack()
def moves_the_root():
    """pivot_root(2)."""
    return system_call("pivot_root", b"/box", b"/box") == 0


@attack()
def opens_a_file_by_its_number():
    """open_by_handle_at(2) knows no paths, and so no root: how containers were escaped in 2014."""
    handle = ctypes.create_string_buffer(b"\x08\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00", 16)
    return system_call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)


@attack()
def makes_a_device():
    """A name for the host's disk."""
    os.mknod("disk", 0o60666, os.makedev(254, 0))
    return "made"


@attack("ENOENT")
def reads_the_machines_memory():
    """/dev/mem."""
    return os.open("/dev/mem", os.O_RDWR)


@attack("ENOENT")
def reads_the_hosts_disk():
    """Any device that is not one of the five."""
    return os.open("/dev/vda", os.O_RDONLY)


@attack("got nothing")
def finds_descriptors_left_open():
    """Of the host's files, of sockets to the service, of other checks."""
    found = []
    for descriptor in range(3, 4096):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    return found


@attack("got nothing")
def writes_to_every_descriptor():
    """One of them might be the channel on which verdicts go."""
    taken = []
    for descriptor in range(3, 4096):
        try:
            os.write(descriptor, b'["ended", {"ended": "exit", "exit": 0}]')
        except OSError:
            continue
        taken.append(descriptor)
    return taken


@attack("ENOENT|EACCES|EROFS|EPERM")
def leaves_something_in_shared_memory():
    """/dev/shm is shared by everybody on a host."""
    return os.open("/dev/shm/left", os.O_CREAT | os.O_RDWR)


@attack("ENOENT|EPERM|ENOSYS")
def makes_a_shared_memory_block():
    """The same by Python's own module."""
    from multiprocessing import shared_memory

    return shared_memory.SharedMemory(create=True, size=4096).name


@attack("EPERM")
def takes_over_a_file():
    """chown(2) in its own folder."""
    open("mine", "w").close()
    os.chown("mine", 0, 0)
    return os.stat("mine").st_uid == 0


@attack("EPERM")
def watches_files():
    """inotify shows what others open."""
    return system_call("inotify_init1", 0)
