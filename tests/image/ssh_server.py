"""An ssh server in the tree of an engine, on loopback, and a client that is led to it: a second Spark."""

import os
import socket
import time
from pathlib import Path

from tests.image.engine import Engine

from sparkwright.run import run

_SERVER = (
    *("/usr/sbin/sshd", "-h", "/state/host_key", "-o", "ListenAddress=127.0.0.1", "-o", "PidFile=none"),
    *("-o", "AuthorizedKeysFile=/state/authorized_keys", "-o", "StrictModes=no", "-o", "UsePAM=no"),
)


def serve(engine: Engine, folder: Path) -> Path:
    """Start the server, which ends with the engine; the client's configuration, with these hosts.

    `spark2`: all is well. `unknown`: its host key was never seen. `locked`: it does not know the key of this user.
    """
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", engine.state / "host_key"])
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"])
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "other_key"])
    (engine.state / "authorized_keys").write_bytes((folder / "key.pub").read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine.inside("mkdir", "-p", "/run/sshd")
    engine.inside(*_SERVER, "-p", str(port))
    host_key = (engine.state / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    common = f"HostName 127.0.0.1\nPort {port}\nUser root\nIdentitiesOnly yes\nGlobalKnownHostsFile /dev/null\n"
    hosts = {"spark2": ("key", "known_hosts"), "unknown": ("key", "nothing"), "locked": ("other_key", "known_hosts")}
    configuration = folder / "config"
    configuration.write_text(
        "".join(
            f"Host {name}\n{common}IdentityFile {folder / key}\nUserKnownHostsFile {folder / known}\n"
            for name, (key, known) in hosts.items()
        )
    )
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return configuration
        time.sleep(0.1)
    raise AssertionError("the ssh server does not answer")


def client(configuration: Path, folder: Path, cut: Path) -> None:
    """`ssh` in a folder for PATH: the machine's own, with that configuration.

    While the file `cut` is there, the connection breaks after as many bytes of an image as it says.
    """
    real = run(["which", "ssh"], env={"PATH": os.defpath}).strip()
    program = folder / "ssh"
    program.write_text(
        f"""#!/usr/bin/env bash
set -Eeuo pipefail
ssh=({real} -F {configuration} "$@")
if [[ -e {cut} && $* == *"docker load"* ]]; then
	head -c "$(cat {cut})" | "${{ssh[@]}}" || true
	echo 'Connection to spark2 closed by remote host.' >&2
	exit 255
fi
exec "${{ssh[@]}}"
"""
    )
    program.chmod(0o755)
