"""What hostile code tries that knows it is behind a broker: to have the host's token, to speak for the host, to stop what carries others.

They are told what those of ``payloads`` are told, and ``broker`` (its process), ``port`` (its own), ``sandbox`` (the folder that the host
writes to), ``begins`` (with what the host's token begins), ``epoch``; a neighbour's ``folder`` for those of NEIGHBOUR.
"""

from __future__ import annotations

from .payloads import SYSCALL
from .payloads_container import APPEND, MAKE, OPEN, payload, payload_each

# In its own memory: what it was forked from may have had it.
IN_MEMORY = """
import re
found = []
with open("/proc/self/mem", "rb") as memory:
    for line in open("/proc/self/maps").read().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "r" in line.split()[1] and end - start < 200_000_000:
            try:
                memory.seek(start)
                found += re.findall(t["begins"].encode() + rb"[A-Za-z0-9_-]{20,}", memory.read(end - start))
            except (OSError, ValueError):
                pass
return found
"""

# Requests of every kind with every token that a cell can have; returns those that were not refused.
AS_HOST = """
import http.client, os
own = open(".enqueue").read().split()[1] if os.path.exists(".enqueue") else ""
got = []
for token in {tokens}:
    for method, path in (("GET", "/health"), ("GET", "/pending?wait=0"), ("GET", f"/pending?wait=0&after=9&epoch={{t['epoch']}}"), ("POST", "/respond")):
        asked = http.client.HTTPConnection("127.0.0.1", t["port"], timeout=5)
        asked.request(method, path, body=b"{{}}" if method == "POST" else None, headers={{"x-arlm-token": token}})
        answer = asked.getresponse()
        if answer.status != 401 or answer.read() != b'{{"error": {{"type": "Refused", "message": "the token is not valid here"}}}}':
            got.append((method, path, answer.status))
        asked.close()
return got
"""

BROKER = (
    payload_each("read_the_broker_s_entries", "[f\"/proc/{t['broker']}/{name}\" for name in ('environ', 'maps', 'mem', 'fd/*', 'task/*/environ', 'cmdline')]", "got.append(open(found, 'rb').read(1))"),
    payload_each("open_the_broker_s_pipes", "[f\"/proc/{t['broker']}/fd/{number}\" for number in range(20)]", OPEN.format(flags="os.O_RDWR")),
    payload("attach_to_the_broker", "import ctypes\nreturn ctypes.CDLL(None, use_errno=True).ptrace(0x4206, t['broker'], 0, 0) == 0"),
    payload("read_the_broker_s_memory", SYSCALL.format(
        x86=310, arm=270, before="import struct\nlocal = ctypes.create_string_buffer(64)\niov = struct.pack('QQ', ctypes.addressof(local), 8)\n"
        "remote = struct.pack('QQ', int(open('/proc/self/maps').read().split('-')[0], 16), 8)",
        args="t['broker'], iov, 1, remote, 1, 0", test="> 0")),
    payload("take_the_broker_s_descriptors", SYSCALL.format(x86=438, arm=438, before="import os\npidfd = os.pidfd_open(t['broker'])", args="pidfd, 1, 0", test=">= 0")),
    payload("lower_the_broker_s_limits", "import resource\nreturn resource.prlimit(t['broker'], resource.RLIMIT_NOFILE, (3, 3)) is not None"),
    payload("have_the_broker_killed_first", "return open(f\"/proc/{t['broker']}/oom_score_adj\", 'w').write('1000')"),
    *(payload(f"send_the_broker_signal_{number}", f"import os\nos.kill(t['broker'], {number})\nreturn True") for number in (1, 2, 9, 15, 19)),
    payload("send_the_broker_s_group_a_signal", "import os\nos.killpg(t['broker'], 15)\nreturn True"),
    payload("have_the_host_s_token_in_memory", IN_MEMORY),
    payload_each("read_the_archive", '[t["sandbox"] + "/*.pyz"]', "got.append(open(found, 'rb').read(1))"),
    payload_each("change_the_archive", '[t["sandbox"] + "/*.pyz", t["sandbox"] + "/arlm/guest/*.py"]', APPEND.format(data="b''")),
    payload_each("plant_a_module_beside_the_guest", '[t["sandbox"], t["sandbox"] + "/arlm/guest", t["sandbox"] + "/contexts"]', MAKE),
    payload_each("write_contexts", '[t["sandbox"] + "/contexts/*"]', APPEND.format(data="b''")),
    payload_each("remove_contexts", '[t["sandbox"] + "/contexts/*"]', "os.rename(found, found + '-')\n            got.append(found)"),
)  # fmt: skip

# For cells without a network; with one, it is there for them.
REACH = (
    payload("connect_to_the_broker", "import socket\nsocket.create_connection(('127.0.0.1', t['port']), 1)\nreturn True"),
)  # fmt: skip

SPEAK = (
    payload("speak_for_the_host", AS_HOST.format(tokens='(own, "", own[:-1], own + "x", t["begins"], "a" * 60_000)')),
    payload("say_two_tokens", """
import socket
own = open(".enqueue").read().split()[1]
s = socket.create_connection(("127.0.0.1", t["port"]), 5)
s.sendall(f"GET /health HTTP/1.1\\r\\nHost: x\\r\\nx-arlm-token: {own}\\r\\nx-arlm-token: x\\r\\nX-ARLM-Token:  {own}\\r\\nConnection: close\\r\\n\\r\\n".encode())
return b" 200 " in s.recv(1000).split(b"\\r\\n")[0]
"""),
)  # fmt: skip

NEIGHBOUR = (
    payload_each("read_a_neighbour_s_door", '[t["folder"] + "/.enqueue"]', "got.append(open(found).read())"),
    payload_each("find_another_s_door", '[t["sandbox"] + "/*/.enqueue", t["sandbox"] + "/*/*/.enqueue", os.path.dirname(os.getcwd()) + "/*/.enqueue"]', "if os.path.dirname(found) != os.getcwd():\n                got.append(open(found).read())"),
)  # fmt: skip
