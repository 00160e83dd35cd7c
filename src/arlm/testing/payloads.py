"""What hostile code in a cell tries, one payload each; ``escapes`` makes the attempts.

A payload is the body of a function of ``t``, a dict of targets, run in a cell. It returns what it got; its ``proof`` says what counts as an
escape. An error is a refusal, and so is a thing that this system does not have.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

Proof = Literal["canary", "contact", "killed", "file", "true"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Escape:
    """A payload.

    Attributes:
        name: what it tries, as an identifier.
        code: the function's body.
        proof: what shows that it worked: ``"canary"`` (the secret is in what it returned), ``"contact"`` (a listener heard it),
            ``"killed"`` (a process it must not reach ended or stopped), ``"file"`` (``t["outside"]`` holds something new), ``"true"`` (it
            returned something true).
    """

    name: str
    code: str
    proof: Proof


def _escape(name: str, proof: Proof, code: str) -> Escape:
    return Escape(name=name, code=textwrap.dedent(code).strip(), proof=proof)


READ = """
import glob, os
out = []
for path in {paths}:
    for found in glob.glob(path) or [path]:
        try:
            out.append(open(found, "rb").read(100_000).decode("latin-1"))
        except OSError as error:
            out.append(repr(error))
return "\\n".join(out)
"""

SYSCALL = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
number = {{"x86_64": {x86}, "aarch64": {arm}}}[platform.machine()]
{before}
return libc.syscall(number, {args}) {test}
"""

READING = (
    _escape("read_host_environ", "canary", READ.format(paths='[f"/proc/{t[\'host\']}/environ"]')),
    _escape("read_supervisor_environ_and_parent_chain", "canary", READ.format(paths='[f"/proc/{p}/environ" for p in (t["supervisor"], os.getppid(), 1)]')),
    _escape("read_every_environ", "canary", READ.format(paths='["/proc/[0-9]*/environ"]')),
    _escape("read_every_task_environ", "canary", READ.format(paths='["/proc/[0-9]*/task/*/environ"]')),
    _escape("read_host_command_line", "canary", READ.format(paths='["/proc/[0-9]*/cmdline"]')),
    _escape("read_credentials_in_home", "canary", READ.format(paths='[t["home"] + "/.aws/credentials", t["home"] + "/.netrc", t["home"] + "/.ssh/id_rsa"]')),
    _escape("read_home_by_symlink", "canary", 'import os\nos.symlink(t["home"], "link")\n' + READ.format(paths='["link/.aws/credentials"]').strip()),
    _escape("read_home_by_hardlink", "canary", 'import os\nos.link(t["home"] + "/.aws/credentials", "hard")\nreturn open("hard").read()'),
    _escape("read_home_by_dotdot", "canary", READ.format(paths='["../" * 20 + t["home"] + "/.aws/credentials"]')),
    _escape("read_home_by_proc_root", "canary", READ.format(paths='["/proc/self/root" + t["home"] + "/.aws/credentials", f"/proc/{t[\'host\']}/root" + t["home"] + "/.aws/credentials"]')),
    _escape("read_home_by_host_cwd", "canary", READ.format(paths='[f"/proc/{t[\'host\']}/cwd/.aws/credentials"]')),
    _escape("read_host_descriptors", "canary", READ.format(paths='[f"/proc/{t[\'host\']}/fd/*"]')),
    _escape("read_inherited_descriptors", "canary", """
        import os
        out = []
        for number in range(3, 1024):
            try:
                os.lseek(number, 0, 0)
                out.append(os.read(number, 100_000).decode("latin-1"))
            except OSError:
                pass
        return "".join(out)
    """),
    _escape("read_by_subprocess", "canary", 'import subprocess\nreturn subprocess.run(["cat", t["home"] + "/.aws/credentials"], capture_output=True, text=True).stdout'),
    _escape("read_by_shell_glob", "canary", 'import subprocess\nreturn subprocess.run("cat " + t["home"] + "/.*/*", shell=True, capture_output=True, text=True).stdout'),
    _escape("read_by_fresh_python", "canary", 'import subprocess, sys\nreturn subprocess.run([sys.executable, "-c", f"print(open({t[\'home\'] + \'/.aws/credentials\'!r}).read())"], capture_output=True, text=True).stdout'),
    _escape("read_by_mmap_of_ctypes_open", "canary", """
        import ctypes, os
        libc = ctypes.CDLL(None)
        number = libc.open((t["home"] + "/.aws/credentials").encode(), 0)
        return os.read(number, 1000).decode()
    """),
    _escape("read_another_runs_folder", "canary", READ.format(paths='[t["sibling"] + "/*", t["sibling"] + "/*/*"]')),
    _escape("list_other_runs", "true", """
        import glob, os
        mine = os.path.dirname(os.getcwd())
        return [path for path in glob.glob(os.path.dirname(mine) + "/arlm-*") if path != mine and os.listdir(path)]
    """),
    _escape("read_shadow", "true", 'return open("/etc/shadow").read()'),
    _escape("read_host_memory", "canary", """
        maps = open(f"/proc/{t['host']}/maps").read().splitlines()
        memory = open(f"/proc/{t['host']}/mem", "rb")
        found = []
        for line in maps:
            if "[heap]" in line:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(start)
                found.append(memory.read(end - start).decode("latin-1"))
        return "".join(found)
    """),
    _escape("read_host_memory_by_process_vm_readv", "true", SYSCALL.format(
        x86=310, arm=270, before="import struct\nlocal = ctypes.create_string_buffer(64)\niov = struct.pack('QQ', ctypes.addressof(local), 8)\n"
        "remote = struct.pack('QQ', int(open('/proc/self/maps').read().split('-')[0], 16), 8)",
        args="t['host'], iov, 1, remote, 1, 0", test="> 0")),
    _escape("take_a_descriptor_of_the_host", "true", SYSCALL.format(
        x86=438, arm=438, before="import os\npidfd = os.pidfd_open(t['host'])", args="pidfd, 0, 0", test=">= 0")),
    _escape("environment_holds_a_key", "canary", "import os\nreturn repr(dict(os.environ))"),
    _escape("own_start_environment_holds_a_key", "canary", READ.format(paths='["/proc/self/environ"]')),
    _escape("modules_of_the_worker_hold_a_key", "canary", """
        import gc
        return "".join(repr(thing)[:2000] for thing in gc.get_objects() if isinstance(thing, (dict, list, tuple)))[:5_000_000]
    """),
    _escape("keys_in_kernel_keyring", "true", SYSCALL.format(x86=250, arm=219, before="", args="6, -4, 0, 0, 0", test=">= 0")),
)  # fmt: skip

REACHING = (
    _escape("connect_tcp", "contact", 'import socket\nsocket.create_connection(("127.0.0.1", t["tcp"]), 1).send(b"x")'),
    _escape("connect_tcp6", "contact", 'import socket\nsocket.create_connection(("::ffff:127.0.0.1", t["tcp"]), 1).send(b"x")'),
    _escape("connect_tcp_by_bash", "contact", 'import subprocess\nsubprocess.run(["bash", "-c", f"echo x > /dev/tcp/127.0.0.1/{t[\'tcp\']}"], capture_output=True, timeout=5)'),
    _escape("connect_tcp_by_asyncio", "contact", """
        import asyncio
        async def main():
            _, writer = await asyncio.open_connection("127.0.0.1", t["tcp"])
            writer.write(b"x")
            await writer.drain()
        asyncio.run(main())
    """),
    _escape("connect_tcp_by_fast_open", "contact", """
        import socket
        s = socket.socket()
        s.sendto(b"x", 0x20000000, ("127.0.0.1", t["tcp"]))
    """),
    _escape("send_udp", "contact", 'import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", t["udp"]))'),
    _escape("send_udp_connected", "contact", 'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(("127.0.0.1", t["udp"]))\ns.send(b"x")'),
    _escape("send_udp_by_bash", "contact", 'import subprocess\nsubprocess.run(["bash", "-c", f"echo x > /dev/udp/127.0.0.1/{t[\'udp\']}"], capture_output=True, timeout=5)'),
    _escape("send_dns", "contact", """
        import socket, struct
        query = struct.pack(">HHHHHH", 1, 256, 1, 0, 0, 0) + b"\\x01x\\x00\\x00\\x01\\x00\\x01"
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(query, ("127.0.0.1", t["udp"]))
    """),
    _escape("raw_socket", "true", "import socket\nreturn bool(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))"),
    _escape("packet_socket", "true", "import socket\nreturn bool(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))"),
    _escape("netlink_socket", "true", "import socket\nreturn bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))"),
    _escape("vsock_socket", "true", "import socket\nreturn bool(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))"),
    _escape("listen_tcp", "true", 'import socket\ns = socket.socket()\ns.bind(("127.0.0.1", 0))\ns.listen()\nreturn True'),
    _escape("connect_unix", "contact", 'import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect(t["unix"])\ns.send(b"x")'),
    _escape("send_unix_datagram", "contact", 'import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", t["unix_datagram"])'),
    _escape("send_unix_datagram_by_pair", "contact", 'import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b"x", t["unix_datagram"])'),
    _escape("connect_abstract", "contact", 'import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect("\\0" + t["abstract"])\ns.send(b"x")'),
    _escape("connect_docker", "true", 'import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect("/var/run/docker.sock")\nreturn True'),
    _escape("connect_by_io_uring", "true", SYSCALL.format(x86=425, arm=425, before="params = ctypes.create_string_buffer(120)", args="8, params", test=">= 0")),
    _escape("connect_as_32_bit", "contact", """
        # connect() through the x32 table, which has other numbers
        import ctypes, platform, socket, struct
        if platform.machine() != "x86_64":
            raise OSError("no x32 here")
        s = socket.socket()
        address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", t["tcp"]) + bytes([127, 0, 0, 1]) + bytes(8)
        if ctypes.CDLL(None).syscall(0x40000000 | 42, s.fileno(), address, 16) == 0:
            s.send(b"x")
    """),
    _escape("guess_a_token", "true", """
        import json, socket, struct
        s = socket.socket(socket.AF_UNIX)
        s.connect(t["handler"])
        frame = json.dumps({"hello": 1, "token": "guess"}).encode()
        s.send(struct.pack(">I", len(frame)) + frame)
        return b"functions" in s.recv(100_000)
    """),
)  # fmt: skip

HARMING = (
    _escape("kill_host", "killed", 'import os\nos.kill(t["bystander"], 9)'),
    _escape("stop_host", "killed", 'import os, signal\nos.kill(t["bystander"], signal.SIGSTOP)'),
    _escape("kill_by_group", "killed", 'import os\nos.killpg(os.getpgid(t["bystander"]), 9)'),
    _escape("kill_by_pidfd", "killed", 'import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(t["bystander"]), 9)'),
    _escape("kill_by_sigqueue", "killed", 'import ctypes\nctypes.CDLL(None).sigqueue(t["bystander"], 9, ctypes.c_void_p(0))'),
    _escape("kill_by_subprocess", "killed", 'import subprocess\nsubprocess.run(["bash", "-c", f"kill -9 {t[\'bystander\']}"], capture_output=True)'),
    _escape("kill_after_setsid_and_double_fork", "killed", """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                try:
                    os.kill(t["bystander"], 9)
                finally:
                    os._exit(0)
            os._exit(0)
        os.wait()
        time.sleep(0.2)
    """),
    _escape("kill_the_supervisor", "killed", 'import os\nos.kill(t["supervisor"], 9)'),
    _escape("ptrace_host", "true", 'import ctypes\nreturn ctypes.CDLL(None, use_errno=True).ptrace(16, t["bystander"], 0, 0) == 0'),
    _escape("write_host_memory", "true", "return bool(open(f\"/proc/{t['bystander']}/mem\", 'r+b'))"),
    _escape("write_host_oom_score", "true", "return open(f\"/proc/{t['bystander']}/oom_score_adj\", 'w').write('1000')"),
    _escape("move_host_to_another_core", "true", "import os\nos.sched_setaffinity(t['bystander'], {0})\nreturn True"),
    _escape("slow_host_down", "true", "import os\nos.setpriority(os.PRIO_PROCESS, t['bystander'], 19)\nreturn True"),
    _escape("lower_host_limits", "true", "import resource\nreturn resource.prlimit(t['bystander'], resource.RLIMIT_CORE, (0, 0)) is not None"),
    _escape("write_outside", "file", 'open(t["outside"] + "/x", "w").write("x")'),
    _escape("write_outside_by_subprocess", "file", 'import subprocess\nsubprocess.run(["touch", t["outside"] + "/x"], capture_output=True)'),
    _escape("write_outside_by_rename", "file", 'import os\nopen("x", "w").write("x")\nos.rename("x", t["outside"] + "/x")'),
    _escape("write_outside_by_symlink", "file", 'import os\nos.symlink(t["outside"], "out")\nopen("out/x", "w").write("x")'),
    _escape("write_outside_by_ld_preload", "file", """
        import os, subprocess
        open("run.c", "w").write('#include <stdio.h>\\n__attribute__((constructor)) void f(){fopen("%s/x","w");}' % t["outside"])
        subprocess.run(["cc", "-shared", "-fPIC", "-o", "run.so", "run.c"], capture_output=True)
        subprocess.run(["true"], env={**os.environ, "LD_PRELOAD": os.path.abspath("run.so")}, capture_output=True)
    """),
    _escape("make_a_setuid_file_outside", "file", 'import os, shutil\nshutil.copy("/bin/true", t["outside"] + "/x")\nos.chmod(t["outside"] + "/x", 0o4755)'),
    _escape("change_the_context_file", "true", "return open(t['context'], 'r+b').write(b'x')"),
    _escape("mount_something", "true", SYSCALL.format(x86=165, arm=40, before="", args="b'none', b'/mnt', b'tmpfs', 0, 0", test="== 0")),
    _escape("new_user_namespace", "true", "import ctypes\nreturn ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0"),
    _escape("change_root", "true", 'import os\nos.chroot(".")\nreturn True'),
    _escape("become_another_user", "true", "import os\nos.setuid(12345)\nreturn True"),
    _escape("regain_privileges_by_sudo", "true", 'import subprocess\nreturn subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0'),
    _escape("make_a_device", "true", 'import os, stat\nos.mknod("dev", 0o600 | stat.S_IFBLK, os.makedev(254, 0))\nreturn open("dev", "rb").read(1)'),
    _escape("load_bpf", "true", SYSCALL.format(x86=321, arm=280, before="attr = ctypes.create_string_buffer(128)", args="0, attr, 128", test=">= 0")),
    _escape("set_the_clock", "true", "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\nreturn True"),
    _escape("change_the_host_name", "true", "import socket\nsocket.sethostname('x')\nreturn True"),
    _escape("write_kernel_settings", "true", 'return open("/proc/sys/kernel/core_pattern", "w").write("|/bin/true") and False'),
)  # fmt: skip

METADATA = (
    _escape("chmod", "true", 'import os\nos.chmod(t["file"], 0o4777)\nreturn os.stat(t["file"]).st_mode & 0o4000'),
    _escape("chmod_by_subprocess", "true", 'import os, subprocess\nsubprocess.run(["chmod", "4777", t["file"]])\nreturn os.stat(t["file"]).st_mode & 0o4000'),
    _escape("chmod_by_descriptor_for_reading", "true", """
        import os
        os.fchmod(os.open(t["context"], os.O_RDONLY), 0o4777)
        return os.stat(t["context"]).st_mode & 0o4000
    """),
    _escape("chmod_by_descriptor_for_nothing", "true", """
        import ctypes, os
        number = os.open(t["file"], os.O_PATH)
        ctypes.CDLL(None).syscall(452, number, b"", 0o4777, 0x1000)  # fchmodat2 with AT_EMPTY_PATH
        return os.stat(t["file"]).st_mode & 0o4000
    """),
    _escape("chmod_by_proc_self_fd", "true", """
        import os
        os.chmod(f"/proc/self/fd/{os.open(t['file'], os.O_PATH)}", 0o4777)
        return os.stat(t["file"]).st_mode & 0o4000
    """),
    _escape("change_times", "true", 'import os\nos.utime(t["file"], (1, 1))\nreturn os.stat(t["file"]).st_mtime == 1'),
    _escape("change_times_by_descriptor", "true", 'import os\nos.utime(os.open(t["context"], os.O_RDONLY), (1, 1))\nreturn os.stat(t["context"]).st_mtime == 1'),
    _escape("change_times_by_old_calls", "true", """
        import ctypes, os, platform, struct
        if platform.machine() != "x86_64":
            raise OSError("only there")
        libc, path = ctypes.CDLL(None), t["file"].encode()
        libc.syscall(132, path, struct.pack("qq", 1, 1))
        libc.syscall(235, path, struct.pack("qqqq", 1, 0, 1, 0))
        libc.syscall(261, -100, path, struct.pack("qqqq", 1, 0, 1, 0))
        return os.stat(t["file"]).st_mtime == 1
    """),
    _escape("chown", "true", 'import os\nos.chown(t["file"], 12, 34)\nreturn os.stat(t["file"]).st_uid == 12'),
    _escape("set_an_attribute", "true", 'import os\nos.setxattr(t["file"], "user.x", b"1")\nreturn True'),
    _escape("set_an_attribute_by_descriptor", "true", 'import os\nos.setxattr(os.open(t["context"], os.O_RDONLY), "user.x", b"1")\nreturn True'),
    _escape("set_file_flags", "true", """
        import fcntl, os, struct
        number = os.open(t["context"], os.O_RDONLY)
        flags, = struct.unpack("l", fcntl.ioctl(number, 0x80086601, bytes(8)))
        fcntl.ioctl(number, 0x40086602, struct.pack("l", flags | 0x40))  # not to be dumped
        return True
    """),
    _escape("lease_a_file", "true", 'import fcntl, os\nfcntl.fcntl(os.open(t["context"], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)\nreturn True'),
    _escape("watch_a_closed_folder", "true", 'import ctypes\nlibc = ctypes.CDLL(None)\nreturn libc.inotify_add_watch(libc.inotify_init1(0), t["home"].encode(), 0xFFF) > 0'),
)  # fmt: skip

CLONE = """
import ctypes, os, platform, struct
libc = ctypes.CDLL(None)
number = {{"x86_64": {x86}, "aarch64": {arm}}}[platform.machine()]
pid = libc.syscall(number, {args})
if pid == 0:
    libc._exit(0)
return pid > 0
"""

KERNEL_OBJECTS = (
    _escape("memory_in_a_memfd", "true", "import os\nreturn os.memfd_create('x') >= 0"),
    _escape("memory_of_system_v", "true", "import ctypes\nlibc = ctypes.CDLL(None)\nnumber = libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600)\nlibc.shmctl(number, 0, 0)\nreturn number >= 0"),
    _escape("queue_of_system_v", "true", "import ctypes\nlibc = ctypes.CDLL(None)\nnumber = libc.msgget(0, 0o1600)\nlibc.msgctl(number, 0, 0)\nreturn number >= 0"),
    _escape("semaphore_of_system_v", "true", "import ctypes\nlibc = ctypes.CDLL(None)\nnumber = libc.semget(0, 1, 0o1600)\nlibc.semctl(number, 0, 0)\nreturn number >= 0"),
    _escape("queue_of_posix", "true", """
        import ctypes, os, platform
        libc = ctypes.CDLL(None)
        opening, unlinking = {"x86_64": (240, 241), "aarch64": (180, 181)}[platform.machine()]
        name = b"arlm-%d" % os.getpid()
        number = libc.syscall(opening, name, os.O_CREAT | os.O_RDWR, 0o600, 0)
        libc.syscall(unlinking, name)
        return number >= 0
    """),
    _escape("slow_everything_of_the_user_down", "true", """
        import os
        if "Seccomp:\t0" in open("/proc/self/status").read():
            return "nothing would stop it"
        os.setpriority(os.PRIO_USER, 0, 1)
        return True
    """),
    _escape("slow_a_group_down", "true", "import os\nos.setpriority(os.PRIO_PGRP, 0, os.getpriority(os.PRIO_PROCESS, 0))\nreturn True"),
    _escape("order_disk_access_of_the_user", "true", SYSCALL.format(x86=251, arm=30, before="", args="3, 0, (2 << 13) | 4", test="== 0")),
    _escape("new_user_namespace_by_clone", "true", CLONE.format(x86=56, arm=220, args="0x10000000 | 17, 0, 0, 0, 0")),
    _escape("new_user_namespace_by_clone3", "true", CLONE.format(x86=435, arm=435, args='struct.pack("8Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64')),
    _escape("child_of_the_supervisor", "true", CLONE.format(x86=56, arm=220, args="0x8000 | 17, 0, 0, 0, 0")),
    _escape("orphans_out_of_the_tree", "true", "import ctypes\nreturn ctypes.CDLL(None).prctl(36, 0, 0, 0, 0) == 0"),
)  # fmt: skip

CORPUS: tuple[Escape, ...] = READING + REACHING + HARMING + METADATA + KERNEL_OBJECTS
