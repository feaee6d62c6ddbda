"""push.sh's work with real engines: a registry on loopback, and a second engine behind ssh as another Spark."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.image.conftest import BUILD, Script
from tests.image.engine import STAND_IN, Engine, start
from tests.image.ssh_server import client, serve

from sparkwright.image import record as records
from sparkwright.image.build import layers
from sparkwright.image.docker import Docker
from sparkwright.image.listing import held_images, remove, superseded
from sparkwright.image.push import deliver, registry_tags
from sparkwright.image.record import RELEASED_UNITS, Check, ImageRecord, store
from sparkwright.image.reproduce import compare
from sparkwright.paths import cache
from sparkwright.pins import default_line
from sparkwright.run import run

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]

LINE = default_line()
MEGABYTE = 1 << 20
MakeImage = Callable[[str, bytes], ImageRecord]
NODE = "ssh://spark2"


@pytest.fixture
def make_image(docker: Docker, tmp_path: Path) -> Iterator[MakeImage]:
    """Images of two layers above the stand-in: a large one that stays, and a small one that is given."""
    made: list[str] = []

    def make(revision: str, content: bytes) -> ImageRecord:
        context = tmp_path / f"context-{revision}"
        context.mkdir()
        (context / "large").write_bytes(hashlib.shake_256(b"the same each time").digest(8 * MEGABYTE))
        (context / "small").write_bytes(content)
        for name in ("large", "small"):
            os.utime(context / name, (1_000_000_000, 1_000_000_000))
        (context / "Dockerfile").write_text(f"FROM {STAND_IN}\nCOPY large /\nCOPY small /\n")
        tag = f"sparkwright:{LINE}-{revision}"
        labels = {"sparkwright.line": LINE, "org.opencontainers.image.created": f"2026-11-{revision:0>2}T00:00:00Z"}
        words = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        docker.run("buildx", "build", "--load", "--provenance=false", "--tag", tag, *words, context)
        made.append(tag)
        found = docker.inspect(tag)
        return ImageRecord(
            line=LINE,
            tag=tag,
            image_id=found["Id"],
            platform="linux/amd64",
            revision=revision,
            dirty=False,
            created="2026-11-21T00:00:00Z",
            built="2026-11-21T00:00:00Z",
            seconds=1,
            host="",
            arguments={},
            units=RELEASED_UNITS,
            size=found["Size"],
            layers=(),
            checks=(Check(name="as if it had been tested", passed=True),),
        )

    yield make
    docker.run("image", "rm", "--force", *made)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Engine]:
    """Another engine, of the same programs."""
    state = tmp_path_factory.mktemp("node")
    running = start(engine.trees, state)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="module")
def ssh_configuration(tmp_path_factory: pytest.TempPathFactory, other: Engine) -> Path:
    """Of a client, for the ssh server beside the other engine."""
    return serve(other, tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def node(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: Engine,
    ssh_configuration: Path,
    docker: Docker,  # noqa: ARG001
) -> Engine:
    """The other engine with `ssh` leading to it; a file `cut` tells after how many bytes the connection breaks."""
    programs = tmp_path / "programs"
    programs.mkdir()
    client(ssh_configuration, programs, tmp_path / "cut")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return other


def ids(engine: Engine) -> dict[str, str]:
    """Name and id of the images of sparkwright that an engine holds."""
    listing = engine.docker("image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "sparkwright")
    return dict(line.split() for line in listing.splitlines())


def test_a_node_gets_the_image_and_later_only_what_changed(
    docker: Docker, node: Engine, make_image: MakeImage, tmp_path: Path
) -> None:
    first, second = make_image("1", b"one"), make_image("2", b"two")
    (delivery,) = deliver(docker, first, [NODE])
    assert delivery.error == ""
    assert delivery.note.endswith("layers were there"), "the stand-in is there already"
    assert ids(node) == {first.tag: first.image_id}
    assert delivery.sent > 8 * MEGABYTE

    # Broken off in the middle: nothing of it has a name there, and what is there goes on working.
    (tmp_path / "cut").write_text("900")
    (broken,) = deliver(docker, second, [NODE])
    assert "broke off" in broken.error
    assert "closed by remote host" in broken.error
    assert ids(node) == {first.tag: first.image_id}
    (tmp_path / "cut").unlink()

    (delivery,) = deliver(docker, second, [NODE])
    assert delivery.error == ""
    assert delivery.note == "2 of 3 layers were there"
    assert delivery.sent < MEGABYTE
    assert ids(node) == {first.tag: first.image_id, second.tag: second.image_id}
    shown = node.docker("run", "--rm", "--network", "host", second.tag, "bash", "-c", "cat /small; wc -c < /large")
    assert shown == f"two{8 * MEGABYTE}"

    (again,) = deliver(docker, second, [NODE])
    assert (again.note, again.sent) == ("was there already", 0)


@contextmanager
def registry(folder: Path, **settings: str) -> Iterator[str]:
    """Debian's docker-registry on a free port of loopback; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = registry_program()
    configuration = folder / "registry.yml"
    configuration.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/stored}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    process = subprocess.Popen(
        [program, "serve", configuration],
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the registry ended"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


def registry_program() -> Path:
    """The program, from Debian's package; it is unpacked and not installed."""
    program = cache() / "image-engine" / "registry" / "usr" / "bin" / "docker-registry"
    if not program.exists():
        folder = program.parents[2]
        folder.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", "--quiet=2", "docker-registry"], cwd=folder)
        run(["dpkg-deb", "--extract", next(folder.glob("*.deb")), folder])
    return program


def digest_of(address: str, tag: str) -> str:
    """What the registry itself says."""
    kinds = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(f"http://{address}/v2/team/sparkwright/manifests/{tag}", headers={"Accept": kinds})
    with urllib.request.urlopen(request) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def test_a_registry_holds_the_digest_that_was_printed(
    docker: Docker, make_image: MakeImage, node: Engine, tmp_path: Path
) -> None:
    record = make_image("3", b"three")
    with registry(tmp_path) as address:
        (delivery,) = deliver(docker, record, [f"{address}/team/sparkwright"])
        assert delivery.error == ""
        assert [digest_of(address, tag) for tag in registry_tags(record)] == [delivery.digest] * 2
        assert f"{address}/team/sparkwright" not in docker.run("image", "ls", "--format", "{{.Repository}}")
        pulled = f"{address}/team/sparkwright@{delivery.digest}"
        node.docker("pull", pulled)
        assert node.docker("image", "inspect", "--format", "{{.Id}}", pulled) == record.image_id


def test_a_registry_that_wants_a_login_is_told(docker: Docker, make_image: MakeImage, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("me:$2y$05$" + "a" * 53 + "\n")
    settings = {
        "REGISTRY_AUTH": "htpasswd",
        "REGISTRY_AUTH_HTPASSWD_REALM": "test",
        "REGISTRY_AUTH_HTPASSWD_PATH": str(tmp_path / "htpasswd"),
    }
    with registry(tmp_path, **settings) as address:
        (delivery,) = deliver(docker, make_image("4", b"four"), [f"{address}/team/sparkwright"])
    assert f"docker login {address}" in delivery.error
    (gone,) = deliver(docker, make_image("5", b"five"), [f"{address}/team/sparkwright"])
    assert "cannot be reached" in gone.error


def test_images_are_listed_and_pruned(docker: Docker, make_image: MakeImage) -> None:
    first, second = make_image("6", b"six"), make_image("7", b"seven")
    held = held_images(docker, line=LINE)
    assert [one.reference for one in held][:2] == [second.tag, first.tag], "newest first"
    container = docker.run("create", first.tag, "true").strip()
    assert first.tag not in remove(docker, superseded(held, keep=1)), "a container uses it"
    docker.run("rm", container)
    assert remove(docker, superseded(held_images(docker, line=LINE), keep=1)) == (first.tag,)
    assert second.tag in [one.reference for one in held_images(docker, line=LINE)]


def test_a_difference_between_two_builds_is_named(docker: Docker, make_image: MakeImage) -> None:
    one, other = make_image("8", b"eight"), make_image("9", b"nine")
    ((maker, what),) = compare(docker, one, other.tag)
    assert maker.startswith("COPY small /")
    assert what == "small"
    assert compare(docker, one, one.tag) == []
    sizes = [layer.size for layer in layers(docker, one.tag)]
    assert sizes[1] == 8 * MEGABYTE
    assert json.loads(docker.run("image", "inspect", one.tag))[0]["Size"] == sum(sizes)


def test_push_sh_publishes_carries_and_prunes(
    docker: Docker,
    script: Script,
    clone: Path,
    node: Engine,
    make_image: MakeImage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "BUILD", clone / "build")
    older, newer = make_image("11", b"eleven"), make_image("12", b"twelve")
    for one in (older, newer):
        store(one)
    with registry(tmp_path) as address:
        to = ("--to", f"{address}/team/sparkwright", "--to", NODE)
        (clone / "new-file").touch()
        assert "the checkout has uncommitted files" in script("push.sh", *to, status=64)
        (clone / "new-file").unlink()
        done = json.loads(script("push.sh", *to, "--json"))
        published, carried = done["deliveries"]
        assert (published["error"], carried["error"]) == ("", "")
        assert digest_of(address, newer.tag.rpartition(":")[2]) == published["digest"]
        assert ids(node)[newer.tag] == newer.image_id == carried["digest"]
        # An earlier revision goes by its tag, and one destination that fails does not stop the other.
        gone = ("--to", "127.0.0.1:1/team/sparkwright")
        said = script("push.sh", older.tag, *gone, "--to", NODE, status=69)
        assert "1 of 2 destinations" in said
        assert ids(node)[older.tag] == older.image_id
    listed = [one["reference"] for one in json.loads(script("build.sh", "--list", "--json")) if one["tested"]]
    assert listed == [newer.tag, older.tag]
    assert older.tag in json.loads(script("push.sh", "--keep", "1", "--yes", "--json"))["removed"]
    assert docker.image_id(older.tag) is None
    assert docker.image_id(newer.tag) == newer.image_id


def test_another_machine_is_reached_by_ssh_alone(script: Script, node: Engine, make_image: MakeImage) -> None:
    """With its engine as ours: its images are listed there; and who is not let in is told why."""
    record = make_image("13", b"thirteen")
    node.docker("tag", STAND_IN, "sparkwright:not-ours")
    (delivery,) = deliver(Docker(), record, [NODE])
    assert delivery.error == ""
    listed = json.loads(script("build.sh", "--list", "--on", "spark2", "--json"))
    assert record.tag in [one["reference"] for one in listed]
    assert "sparkwright:not-ours" not in [one["reference"] for one in listed]
    for host, cause in {
        "unknown": "the key of unknown is not known here",
        "locked": "passwords are never used",
        "nobody@no-such-host.invalid": "no host is called no-such-host.invalid",
    }.items():
        assert cause in script("build.sh", *BUILD, "--on", host, status=69)
