"""push.sh: what it refuses, what it says, and that an interruption leaves nothing half done."""

import contextlib
import gzip
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.unit.image.conftest import IMAGE, LINE, REVISION, TAG, Programs, engine_info, inspected
from typer.testing import CliRunner

from sparkwright.cli import app
from sparkwright.cli import image as cli
from sparkwright.errors import (
    AuditFailedError,
    InputUnreadableError,
    SparkwrightError,
    UnavailableError,
    UsageError,
)
from sparkwright.image import push, record
from sparkwright.image.carry import filter_archive, layers_left_out
from sparkwright.image.docker import SSH, Docker
from sparkwright.image.listing import Held, superseded
from sparkwright.image.push import check_destinations, deliver, pushable, registry_tags
from sparkwright.image.record import Check, ImageRecord, latest_path, store
from sparkwright.paths import CHECKOUT

GOOD = ImageRecord(
    line=LINE,
    tag=TAG,
    image_id=IMAGE,
    platform="linux/arm64",
    revision=REVISION.full,
    dirty=False,
    created=REVISION.created,
    built="2026-11-21T13:00:00Z",
    seconds=1.0,
    host="",
    arguments={},
    units="native",
    size=7_700_000_000,
    layers=(),
    checks=(Check(name="audit of the installed vLLM", passed=True), Check(name="about", passed=True)),
)
DIGEST = "sha256:" + "d" * 64
PUSHED = f"0.33.0: digest: {DIGEST} size: 2000\n"


@pytest.fixture
def built(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A tested image in a Docker that answers, and a clean checkout."""
    monkeypatch.setattr(record, "BUILD", tmp_path / "build")
    monkeypatch.setattr(push, "read_revision", lambda: REVISION)
    programs.answer("docker info", out=engine_info())
    programs.answer("docker image inspect", out=json.dumps([inspected()]))
    programs.answer("docker image inspect --format", out=IMAGE)
    programs.answer("docker push", out=PUSHED)
    store(GOOD)
    return programs


@pytest.mark.usefixtures("built")
def test_a_tested_image_may_go() -> None:
    assert pushable(Docker(), LINE) == GOOD
    assert pushable(Docker(), LINE, TAG) == GOOD


def changed(**changes: object) -> Callable[[Programs, pytest.MonkeyPatch], object]:
    return lambda _programs, _monkeypatch: store(GOOD.model_copy(update=changes))


def spoilt_record(_programs: Programs, _monkeypatch: pytest.MonkeyPatch) -> None:
    latest_path(LINE).write_text("{")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda *_: latest_path(LINE).unlink(), InputUnreadableError, "no image .* was built and tested"),
        (spoilt_record, InputUnreadableError, "is not a record"),
        (changed(checks=()), UsageError, "it was not tested"),
        (changed(checks=(Check(name="about", passed=False),)), UsageError, r"its tests failed \(about\)"),
        (
            changed(checks=(Check(name="audit of the installed vLLM", passed=False, detail="sm_121"),)),
            AuditFailedError,
            "audit of its machine code failed",
        ),
        (changed(dirty=True), UsageError, "made from uncommitted files"),
        (changed(units="smoke"), UsageError, "holds only the units 'smoke'"),
        (
            lambda _, monkeypatch: monkeypatch.setattr(push, "read_revision", lambda: replace(REVISION, dirty=True)),
            UsageError,
            "the checkout has uncommitted files",
        ),
        (
            lambda programs, _: programs.answer("docker image inspect --format", out="sha256:other"),
            UsageError,
            "is not the image that was tested",
        ),
        (
            lambda programs, _: programs.answer("docker image inspect", status=1, err="Error: No such image: x"),
            UsageError,
            "no longer in Docker",
        ),
    ],
    ids=["none", "damaged", "untested", "failed", "audit", "dirty image", "smoke", "dirty tree", "other", "gone"],
)
def test_what_is_not_proven_is_refused(
    built: Programs,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Programs, pytest.MonkeyPatch], object],
    error: type[SparkwrightError],
    words: str,
) -> None:
    spoil(built, monkeypatch)
    with pytest.raises(error, match=words):
        pushable(Docker(), LINE)
    assert not built.calls("push")


@pytest.mark.parametrize("destination", ["sparkwright", "Registry/UPPER", "registry.example/name:tag", "--all", ""])
def test_what_is_no_destination_is_refused(destination: str) -> None:
    with pytest.raises(UsageError, match="is not a destination"):
        check_destinations([destination])


def test_a_registry_gets_two_tags_and_the_digest_is_told(built: Programs) -> None:
    (delivery,) = deliver(Docker(), GOOD, ["registry.example:5000/team/sparkwright"])
    assert delivery.digest == DIGEST
    assert registry_tags(GOOD) == (f"{LINE}-214-g1a2b3c4d", f"{LINE}-20261121")
    pushed = [call[-1] for call in built.calls("docker", "push")]
    assert pushed == [f"registry.example:5000/team/sparkwright:{tag}" for tag in registry_tags(GOOD)]
    assert [call[-1] for call in built.calls("rm")] == pushed, "the names for the registry do not stay here"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("denied: requested access to the resource is denied", "docker login registry.example"),
        ("unauthorized: authentication required", "docker login registry.example"),
        ("dial tcp: lookup registry.example: no such host", "nothing was published"),
        ("unexpected EOF", "unexpected EOF"),
    ],
)
def test_a_registry_that_refuses_is_told_and_leaves_no_names_behind(built: Programs, answer: str, words: str) -> None:
    built.answer("docker push", status=1, err=answer)
    (delivery,) = deliver(Docker(), GOOD, ["registry.example/sparkwright"])
    assert words in delivery.error
    assert built.calls("rm", f"registry.example/sparkwright:{LINE}-214-g1a2b3c4d")
    assert len(built.calls("docker", "push")) == 1, "the second tag is not tried"


# Run apart: what is interrupted ends everything that its own process started.
_PUSH = """
import sys
from pathlib import Path
from sparkwright.cli import app
from sparkwright.image import push, record
from tests.unit.image.conftest import REVISION
record.BUILD = Path(sys.argv[1])
push.read_revision = lambda: REVISION
app(["push", "--to", "registry.example/sparkwright"])
"""


def still_runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(60)
def test_an_interrupted_push_ends_what_it_started_and_leaves_no_names(built: Programs, tmp_path: Path) -> None:
    never_ends = built.folder / "never-ends"
    os.mkfifo(never_ends)
    built.answer("docker push", file=str(never_ends))
    pushing = psutil.Popen([sys.executable, "-c", _PUSH, tmp_path / "build"], cwd=CHECKOUT)
    started: list[psutil.Process] = []
    try:
        while not built.calls("docker", "push"):
            assert pushing.poll() is None
            time.sleep(0.01)
        started = pushing.children(recursive=True)
        assert started
        pushing.terminate()
        assert pushing.wait(20) == 130
        assert not [process for process in started if still_runs(process)]
    finally:
        for process in [pushing, *started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    assert built.calls("rm", f"registry.example/sparkwright:{LINE}-214-g1a2b3c4d")
    assert len(built.calls("docker", "push")) == 1, "the second tag is not tried"


def archive(path: Path, layers: dict[str, bytes]) -> Path:
    """A docker archive with these layers."""
    with tarfile.open(path, "w") as tar:
        contents = {f"blobs/sha256/{name}": content for name, content in layers.items()}
        for name, content in {**contents, "index.json": b"{}", "manifest.json": b"[]"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


LAYERS = [f"sha256:{letter * 64}" for letter in "123"]


@pytest.fixture
def node(built: Programs, tmp_path: Path) -> Programs:
    """A node that holds an image with the lowest two of three layers, and unpacks with zstd."""
    mine, theirs = inspected(layers=LAYERS), inspected(layers=LAYERS[:2]) | {"Id": "sha256:" + "e" * 64}
    saved = archive(tmp_path / "saved.tar", {layer[7:]: layer.encode() * 1000 for layer in LAYERS})
    built.answer("docker image inspect", out=json.dumps([mine]))
    built.answer("docker save", file=str(saved))
    built.answer("ssh", "docker image ls", out="sha256:" + "e" * 64)
    built.answer("ssh", "docker image inspect", out=json.dumps([theirs]))
    built.answer("ssh", "docker image inspect", TAG, out=json.dumps([mine]))
    built.answer("ssh", "docker load", read=-1, out="Loaded image")
    built.answer("ssh", "command -v zstd", status=1)
    return built


def test_a_node_gets_only_the_layers_that_it_lacks(node: Programs) -> None:
    (delivery,) = deliver(Docker(), GOOD, ["ssh://me@spark2"])
    assert delivery.error == ""
    assert delivery.note == "2 of 3 layers were there"
    assert names(gzip.decompress(node.received)) == [f"blobs/sha256/{LAYERS[2][7:]}", "index.json", "manifest.json"]
    assert 0 < delivery.sent == len(node.received)


def test_a_node_that_wants_all_layers_gets_them(node: Programs) -> None:
    count = node.folder / "count"
    script = f"n=$(cat {count} 2>/dev/null); echo x$n >{count}; cat >{node.folder}/received; [[ $n ]] || exit 1"
    node.answer("ssh", "docker load", pass_on=True)
    program = node.folder / "bash"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    (delivery,) = deliver(Docker(), GOOD, ["ssh://me@spark2"])
    assert delivery.error == ""
    assert delivery.note == "all 3 layers sent"
    assert len(names(gzip.decompress(node.received))) == 5


def test_a_node_that_has_the_image_gets_nothing(node: Programs) -> None:
    node.answer("ssh", "docker image inspect", out=json.dumps([inspected(layers=LAYERS)]))
    (delivery,) = deliver(Docker(), GOOD, ["ssh://me@spark2"])
    assert delivery.note == "was there already"
    assert delivery.sent == 0
    assert not node.calls("save")


def test_what_breaks_off_gets_no_name_and_does_not_stop_the_others(node: Programs) -> None:
    node.answer("ssh", "me@broken", "docker load", read=100, status=255, err="Connection reset by peer")
    broken, fine = deliver(Docker(), GOOD, ["ssh://me@broken", "ssh://me@spark2"])
    assert "broke off" in broken.error
    assert "nothing half-done can be started" in broken.error
    assert fine.error == ""
    assert not node.calls("ssh", "tag")


def test_what_arrives_changed_is_removed_there(node: Programs) -> None:
    node.answer("ssh", "docker image inspect", TAG, out=json.dumps([inspected(layers=LAYERS[:1]) | {"Id": "sha256:x"}]))
    (delivery,) = deliver(Docker(), GOOD, ["ssh://me@spark2"])
    assert "is not" in delivery.error
    assert node.calls("ssh", "rm", TAG)


def test_docker_missing_on_a_node_is_told(node: Programs) -> None:
    node.answer("ssh", "docker image ls", status=127, err="bash: docker: command not found")
    (delivery,) = deliver(Docker(), GOOD, ["ssh://me@spark2"])
    assert "Docker on me@spark2 does not answer" in delivery.error


def test_a_layer_that_comes_again_is_not_left_out() -> None:
    assert layers_left_out(["a", "b", "a"], 2) == {"b"}
    assert layers_left_out(["a", "b"], 0) == frozenset()


def test_the_filter_keeps_content_and_order(tmp_path: Path) -> None:
    saved = archive(tmp_path / "a.tar", {"x" * 64: b"one", "y" * 64: b"two" * 5000})
    out = io.BytesIO()
    filter_archive(io.BytesIO(saved.read_bytes()), out, frozenset({f"blobs/sha256/{'x' * 64}"}))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        member = tar.extractfile(f"blobs/sha256/{'y' * 64}")
        assert member is not None
        assert member.read() == b"two" * 5000
    with pytest.raises(tarfile.TarError):
        filter_archive(io.BytesIO(saved.read_bytes()[:5000]), io.BytesIO(), frozenset())


def held(number: int, identity: str = "") -> Held:
    return Held(
        reference=f"sparkwright:{number}",
        image_id=identity or str(number),
        line=LINE,
        revision="",
        created=f"2026-11-{number:02}",
        size=1,
        tested=True,
    )


def test_keep_counts_images_and_not_names() -> None:
    images = (held(5, "x"), held(4, "x"), held(3), held(2), held(1))
    assert [one.reference for one in superseded(images, keep=2)] == ["sparkwright:2", "sparkwright:1"]
    assert superseded(images, keep=9) == ()


@pytest.fixture
def three_images(built: Programs) -> Programs:
    images = []
    for number in (1, 2, 3):
        image = inspected() | {"Id": f"sha256:{number}", "RepoTags": [f"sparkwright:{LINE}-{number}"]}
        image["Config"]["Labels"]["org.opencontainers.image.created"] = f"2026-11-{number:02}T00:00:00Z"
        images.append(image)
    images[-1]["RepoTags"].append("sparkwright:latest")
    listed = "".join(f"sparkwright:{LINE}-{number}\n" for number in (1, 2, 3))
    built.answer("docker image ls", out=f"sparkwright:latest\n{listed}")
    built.answer("docker image inspect sparkwright", out=json.dumps(images))
    return built


def test_pruning_asks_and_keeps_the_newest(three_images: Programs) -> None:
    runner = CliRunner()
    asked = runner.invoke(app, ["push", "--keep", "1"])
    assert isinstance(asked.exception, UsageError), "without a terminal nobody can be asked"
    assert not three_images.calls("rm")
    shown = runner.invoke(app, ["push", "--keep", "1", "--dry-run"])
    assert shown.exit_code == 0
    assert not three_images.calls("rm")
    done = runner.invoke(app, ["push", "--keep", "1", "--yes", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["removed"] == [f"sparkwright:{LINE}-2", f"sparkwright:{LINE}-1"]


def test_an_answer_of_no_removes_nothing(three_images: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_is_asked", lambda: True)
    done = CliRunner().invoke(app, ["push", "--keep", "1"], input="n\n")
    assert done.exit_code == 1
    assert not three_images.calls("rm")


def test_an_image_in_use_stays(three_images: Programs) -> None:
    three_images.answer("docker image rm", f"{LINE}-2", status=1, err="conflict: container is using it")
    done = CliRunner().invoke(app, ["push", "--keep", "1", "--yes", "--json"])
    assert json.loads(done.stdout)["removed"] == [f"sparkwright:{LINE}-1"]


@pytest.mark.usefixtures("three_images")
def test_the_list_names_what_can_be_rolled_back_to() -> None:
    done = CliRunner().invoke(app, ["build", "--list", "--json"])
    assert done.exit_code == 0
    assert [one["reference"] for one in json.loads(done.stdout)] == [f"sparkwright:{LINE}-{n}" for n in (3, 2, 1)]


def test_the_command_ends_with_an_error_when_a_destination_failed(built: Programs) -> None:
    built.answer("docker push", status=1, err="denied: no")
    done = CliRunner().invoke(app, ["push", "--to", "registry.example/sparkwright"])
    assert isinstance(done.exception, UnavailableError)
    assert "1 of 1 destinations" in str(done.exception)


def test_a_dry_run_sends_nothing(built: Programs) -> None:
    done = CliRunner().invoke(app, ["push", "--to", "registry.example/sparkwright", "--dry-run"])
    assert done.exit_code == 0
    assert not built.calls("push")


def test_ssh_never_asks() -> None:
    assert "BatchMode=yes" in SSH
    assert not any("StrictHostKeyChecking" in word for word in SSH)
