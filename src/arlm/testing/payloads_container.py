"""What hostile code tries that knows it is in a container: to get out, to its supervisor, to its network, to those beside it.

They are told what those of ``payloads`` are told, and ``others_socket``: where another place's handler listens, as the host knows it.
"""

from __future__ import annotations

import textwrap

from .payloads import CLONE, SYSCALL, Escape, Proof


def payload(name: str, code: str, proof: Proof = "true") -> Escape:
    """One payload."""
    return Escape(name=name, code=textwrap.dedent(code).strip(), proof=proof)


# Tries each path in turn, and returns what it got from those that let it.
EACH = """
import glob, os
got = []
for path in {paths}:
    for found in glob.glob(path) or [path]:
        try:
            {attempt}
        except OSError:
            pass
return got
"""


def payload_each(name: str, paths: str, attempt: str, proof: Proof = "true") -> Escape:
    """A payload that tries each of some paths, a list expression, in turn; ``attempt`` has one as ``found``, and adds to ``got``."""
    return payload(name, EACH.format(paths=paths, attempt=attempt), proof)


APPEND = 'with open(found, "r+b", buffering=0) as file:\n                got.append((found, file.write({data})))'
MAKE = 'with open(found + "/arlm-was-here", "w") as file:\n                got.append((found, file.write("x")))'
OPEN = "os.close(os.open(found, {flags} | os.O_NONBLOCK))\n            got.append(found)"
MEMORY = """
import re
found = []
with open(f"/proc/{{{process}}}/mem", "rb") as memory:
    for line in open(f"/proc/{{{process}}}/maps").read().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "rw" in line and end - start < 100_000_000:
            try:
                memory.seek(start)
                found += re.findall(rb"canary-[0-9a-f]{{32}}", memory.read(end - start))
            except OSError:
                pass
return found
"""
NAMESPACES = {
    "user": 0x10000000, "mount": 0x20000, "process": 0x20000000, "network": 0x40000000, "cgroup": 0x2000000, "ipc": 0x8000000, "name": 0x4000000,
}  # fmt: skip

OUT = (
    payload("mount_a_tmpfs", SYSCALL.format(x86=165, arm=40, before="import os\nos.makedirs('m', exist_ok=True)", args="b'none', b'm', b'tmpfs', 0, 0", test="== 0")),
    payload("mount_the_host_s_processes", SYSCALL.format(x86=165, arm=40, before="import os\nos.makedirs('m', exist_ok=True)", args="b'proc', b'm', b'proc', 0, 0", test="== 0")),
    payload("mount_control_groups", SYSCALL.format(x86=165, arm=40, before="import os\nos.makedirs('m', exist_ok=True)", args="b'cgroup', b'm', b'cgroup', 0, b'memory'", test="== 0")),
    payload("make_the_root_writable", SYSCALL.format(x86=165, arm=40, before="", args="b'none', b'/', None, 32, None", test="== 0")),  # MS_REMOUNT
    payload("make_the_contexts_writable", SYSCALL.format(x86=165, arm=40, before="", args="b'none', b'/arlm/contexts', None, 32 | 4096, None", test="== 0")),
    payload("take_the_mask_off_proc", SYSCALL.format(x86=166, arm=39, before="", args="b'/proc/sys', 2", test="== 0")),
    payload("open_a_tree_of_mounts", SYSCALL.format(x86=428, arm=428, before="", args="-100, b'/', 1 | 0x8000", test=">= 0")),
    payload("open_a_file_system", SYSCALL.format(x86=430, arm=430, before="", args="b'tmpfs', 0", test=">= 0")),
    payload("change_the_root", SYSCALL.format(x86=155, arm=41, before="", args="b'.', b'.'", test="== 0")),
    payload("make_the_memory_device", "import os, stat\nos.mknod('mem', 0o600 | stat.S_IFCHR, os.makedev(1, 1))\nreturn os.open('mem', os.O_RDONLY)"),
    payload("make_the_disk_s_device", """
        import glob, os, stat
        for path in glob.glob("/sys/class/block/*/dev"):
            major, minor = map(int, open(path).read().split(":"))
            os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(major, minor))
            return open("disk", "rb").read(1)
    """),
    payload_each("open_devices", '["/dev/vd*", "/dev/sd*", "/dev/nvme*", "/dev/dm-*", "/dev/loop*", "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/vsock", "/dev/vhost-vsock", "/dev/mapper/control"]', OPEN.format(flags="os.O_RDONLY")),
    payload_each("write_settings_of_the_kernel", '["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/irq/*/smp_affinity", "/proc/sys/fs/binfmt_misc/register"]', APPEND.format(data='b""')),
    payload_each("write_sys", '["/sys/kernel/uevent_helper", "/sys/module/*/parameters/*", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/fs/selinux/enforce"]', APPEND.format(data='b""')),
    payload_each("write_control_groups", '["/sys/fs/cgroup/*", "/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/*/notify_on_release", "/sys/fs/cgroup/*/*.max", "/sys/fs/cgroup/*/memory.limit_in_bytes", "/sys/fs/cgroup/*/devices.allow", "/sys/fs/cgroup/*/cgroup.procs"]', APPEND.format(data='b""')),
    payload_each("make_a_control_group", '["/sys/fs/cgroup", "/sys/fs/cgroup/*"]', 'os.mkdir(found + "/arlm-was-here")\n            got.append(found)'),
    payload_each("connect_to_the_engine", '["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"]', "import socket\n            socket.socket(socket.AF_UNIX).connect(found)\n            got.append(found)"),
    payload_each("read_what_the_engine_masks", '["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi/*", "/sys/firmware/*", "/sys/kernel/debug/*", "/sys/kernel/security/*"]', 'with open(found, "rb") as file:\n                got += [found] * bool(file.read(1))'),
    payload_each("write_the_image", '["/", "/bin", "/etc", "/usr", "/lib", "/root", "/var", "/dev"]', MAKE),
    payload_each("write_programs", '["/proc/self/exe", "/proc/1/exe", "/bin/sh", "/bin/python3", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf"]', APPEND.format(data='b""')),
    payload("open_a_file_by_its_handle", SYSCALL.format(  # as programs did that read the host's disk from within containers
        x86=304, arm=265, before="import os, struct\nmount = os.open('/arlm/contexts', os.O_RDONLY)\nhandle = struct.pack('=IiII', 8, 1, 2, 0)", args="mount, handle, 0", test=">= 0")),
    payload_each("run_set_user_id_programs", '["/bin/*", "/sbin/*", "/usr/bin/*", "/usr/local/bin/*"]', """
            import stat, subprocess
            if os.stat(found).st_mode & stat.S_ISUID and os.stat(found).st_uid != os.getuid():
                said = subprocess.run([found, "-u"], capture_output=True, text=True, timeout=5).stdout
                got += [found] * (said.strip() == "0")""".strip()),
    payload("load_a_module", SYSCALL.format(x86=175, arm=105, before="", args="b'x', 1, b''", test="== 0")),
    payload("replace_the_kernel", SYSCALL.format(x86=246, arm=104, before="", args="0, 0, None, 0", test="== 0")),
    payload("watch_the_kernel_run", SYSCALL.format(x86=298, arm=241, before="import struct\nattributes = ctypes.create_string_buffer(struct.pack('IIQ', 1, 128, 0), 128)", args="attributes, 0, -1, -1, 0", test=">= 0")),
    payload("handle_page_faults", SYSCALL.format(x86=323, arm=282, before="", args="1", test=">= 0")),
    payload("read_the_kernel_s_log", SYSCALL.format(x86=103, arm=116, before="buffer = ctypes.create_string_buffer(4096)", args="3, buffer, 4096", test="> 0")),
    payload("add_a_key", SYSCALL.format(x86=248, arm=217, before="", args="b'user', b'arlm', b'x', 1, -4", test=">= 0")),
    payload("type_into_a_terminal", "import fcntl, os\nnumber = os.open('/dev/tty', os.O_RDWR)\nfcntl.ioctl(number, 0x5412, b'x')\nreturn True"),
    payload("set_up_io_uring", SYSCALL.format(x86=425, arm=425, before="parameters = ctypes.create_string_buffer(120)", args="8, parameters", test=">= 0")),
    *(payload(f"unshare_the_{name}_namespace", f"import ctypes\nreturn ctypes.CDLL(None, use_errno=True).unshare({flag}) == 0") for name, flag in NAMESPACES.items()),
    *(payload(f"clone_into_a_{name}_namespace", CLONE.format(x86=56, arm=220, args=f"{flag} | 17, 0, 0, 0, 0")) for name, flag in NAMESPACES.items() if name != "user"),
    payload_each("enter_the_supervisor_s_namespaces", '["/proc/1/ns/*"]', "import ctypes\n            got += [found] * (ctypes.CDLL(None).setns(os.open(found, os.O_RDONLY), 0) == 0)"),
)  # fmt: skip

SUPERVISOR = (
    payload_each("read_the_supervisor_s_entries", '["/proc/1/environ", "/proc/1/maps", "/proc/1/mem", "/proc/1/task/1/environ", "/proc/1/auxv", "/proc/1/stack", "/proc/1/syscall"]', 'with open(found, "rb") as file:\n                got.append((found, file.read(1) if "mem" not in found else b""))'),
    payload("list_the_supervisor_s_descriptors", 'import os\nreturn os.listdir("/proc/1/fd")'),
    payload_each("go_through_the_supervisor_s_root", '["/proc/1/root", "/proc/1/cwd"]', "got += os.listdir(found)"),
    payload("forge_what_the_supervisor_says", """
        import os
        os.write(os.open("/proc/1/fd/1", os.O_WRONLY | os.O_NONBLOCK), b"")
        return True
    """),
    payload("hear_what_the_supervisor_is_told", 'import os\nos.open("/proc/1/fd/0", os.O_RDONLY | os.O_NONBLOCK)\nreturn True'),
    payload("speak_to_the_supervisor", 'import os\nos.open("/proc/1/fd/0", os.O_WRONLY | os.O_NONBLOCK)\nreturn True'),
    payload("put_words_into_the_supervisor_s_error_output", 'import os\nos.open("/proc/1/fd/2", os.O_WRONLY | os.O_NONBLOCK)\nreturn True'),
    payload("reopen_what_the_supervisor_was_started_with_after_chmod", """
        import os
        for number in (0, 1, 2):
            os.chmod(f"/proc/1/fd/{number}", 0o600)
        return os.open("/proc/1/fd/1", os.O_WRONLY | os.O_NONBLOCK) >= 0
    """),
    payload("attach_to_the_supervisor", "import ctypes\nreturn ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) == 0"),
    payload("seize_the_supervisor", "import ctypes\nreturn ctypes.CDLL(None, use_errno=True).ptrace(0x4206, 1, 0, 0) == 0"),
    payload("read_the_supervisor_s_memory", SYSCALL.format(
        x86=310, arm=270, before="import struct\nlocal = ctypes.create_string_buffer(64)\niov = struct.pack('QQ', ctypes.addressof(local), 8)\n"
        "remote = struct.pack('QQ', int(open('/proc/self/maps').read().split('-')[0], 16), 8)",
        args="1, iov, 1, remote, 1, 0", test="> 0")),
    payload("write_the_supervisor_s_memory", SYSCALL.format(
        x86=311, arm=271, before="import struct\nlocal = ctypes.create_string_buffer(64)\niov = struct.pack('QQ', ctypes.addressof(local), 8)",
        args="1, iov, 1, iov, 1, 0", test="> 0")),
    payload("take_the_supervisor_s_output", SYSCALL.format(x86=438, arm=438, before="import os\npidfd = os.pidfd_open(1)", args="pidfd, 1, 0", test=">= 0")),
    payload("lower_the_supervisor_s_limits", "import resource\nreturn resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)) is not None"),
    payload("have_the_supervisor_killed_first", 'return open("/proc/1/oom_score_adj", "w").write("1000")'),
    *(payload(f"send_the_supervisor_signal_{number}", f"import os\nos.kill(1, {number})", "killed") for number in (1, 2, 6, 9, 11, 15, 19, 20)),
    payload("signal_everybody", "import os\nos.kill(-1, 15)", "killed"),
    # The tracer of one that asks for it is its parent: the supervisor, which then waits for a process that has not ended.
    payload("be_traced_by_the_supervisor", "import ctypes, os\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0:\n    os.kill(os.getpid(), 19)", "killed"),
    payload_each("write_what_the_host_shares", '["/arlm", "/arlm/guest", "/arlm/contexts", "/arlm/socket"]', MAKE),
    payload_each("change_what_the_host_shares", '["/arlm/guest/*.py", "/arlm/contexts/*", "/arlm/socket/*"]', APPEND.format(data='b""')),
    payload_each("remove_what_the_host_shares", '["/arlm/guest/*.py", "/arlm/contexts/*", "/arlm/socket/*"]', "os.rename(found, found + '-')\n            got.append(found)"),
    payload("take_the_socket_s_place", 'import os, socket\nos.unlink("/arlm/socket/h")\nsocket.socket(socket.AF_UNIX).bind("/arlm/socket/h")\nreturn True'),
    payload("listen_beside_the_socket", 'import socket\nsocket.socket(socket.AF_UNIX).bind("/arlm/socket/i")\nreturn True'),
    payload("connect_to_another_place", 'import socket\nsocket.socket(socket.AF_UNIX).connect(t["others_socket"])\nreturn True'),
    # Its own token, as its own memory has it, and those of others that the supervisor's memory had when it was forked.
    payload("use_a_token_again", """
        import gc, json, re, socket, struct
        found = {word for it in gc.get_objects() for word in re.findall(r"[\\w-]{40,50}", repr(it)[:20_000])}
        for token in found:
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(1)
            s.connect(t["handler"])
            frame = json.dumps({"hello": 1, "token": token}).encode()
            s.send(struct.pack(">I", len(frame)) + frame)
            if b"functions" in s.recv(100_000):
                return True
    """),
)  # fmt: skip

NETWORK = (
    *(payload(f"connect_to_{name}", f"import socket\nsocket.create_connection(({host!r}, {port}), 1)\nreturn True") for name, host, port in (
        ("the_cloud_s_metadata", "169.254.169.254", 80), ("the_engine_s_gateway", "172.17.0.1", 22), ("the_engine_s_names", "127.0.0.11", 53),
        ("the_host_by_name", "host.docker.internal", 80), ("a_resolver", "8.8.8.8", 53),
    )),
    payload("resolve_a_name", 'import socket\nreturn socket.gethostbyname("example.com")'),
    payload("reach_the_hypervisor", 'import socket\ns = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\ns.settimeout(1)\ns.connect((2, 22))\nreturn True'),
    payload("have_an_interface", 'import socket\nreturn [name for _, name in socket.if_nameindex() if name != "lo"]'),
    payload("configure_an_interface", 'import fcntl, socket, struct\nfcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0))\nreturn True'),
    payload("use_the_kernel_s_ciphers", "import socket\nreturn bool(socket.socket(38, socket.SOCK_SEQPACKET))"),
    payload("use_a_packet_socket", "import socket\nreturn bool(socket.socket(17, socket.SOCK_RAW))"),
    payload("ping", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).sendto(b'\\x08' + bytes(7), ('127.0.0.1', 0))\nreturn True"),
)  # fmt: skip

BESIDE = (
    payload_each("read_a_neighbour_s_folder", '[t["folder"] + "/*", "/work/w*/*"]', "if os.path.dirname(found) != os.getcwd():\n                got.append(open(found, 'rb').read(1))"),
    payload_each("write_a_neighbour_s_folder", '[t["folder"]]', MAKE),
    payload("list_neighbours", 'import os\nreturn [name for name in os.listdir(os.path.dirname(os.getcwd())) if name != os.path.basename(os.getcwd())]'),
    payload("plant_a_module", 'open(t["folder"] + "/json.py", "w").write("x")\nreturn True'),
    payload_each("read_a_neighbour_s_entries", "[f\"/proc/{t['neighbour']}/{name}\" for name in ('environ', 'maps', 'fd/*', 'mem')]", "os.close(os.open(found, os.O_RDONLY | os.O_NONBLOCK))\n            got.append(found)"),
    payload("read_a_neighbour_s_memory", MEMORY.format(process="t['neighbour']"), "canary"),
    payload_each("write_a_neighbour_s_output", "[f\"/proc/{t['neighbour']}/fd/1\"]", OPEN.format(flags="os.O_WRONLY")),
    payload("attach_to_a_neighbour", "import ctypes\nreturn ctypes.CDLL(None).ptrace(0x4206, t['neighbour'], 0, 0) == 0"),
    payload("kill_a_neighbour", "import os\nos.kill(t['neighbour'], 9)", "killed"),
    payload("stop_a_neighbour", "import os\nos.kill(t['bystander'], 19)", "killed"),
    payload("enter_a_neighbour_s_folder_by_a_link", 'import os\nos.symlink(t["folder"], "n")\nreturn os.listdir("n")'),
    # What a worker has relayed for it goes through the supervisor, of which later workers are copies.
    payload("find_a_neighbour_s_words_in_one_s_own_memory", MEMORY.format(process="'self'"), "canary"),
)  # fmt: skip

CONTAINER: tuple[Escape, ...] = OUT + SUPERVISOR + NETWORK + BESIDE
