"""Deploying over a real ``sshd``."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecsi.bundle import Bundle, parse_manifest
from edgecsi.cli import main
from edgecsi.deploy import ROOT, deploy, destination, rollback, status
from edgecsi.errors import ConnectionLost, DeviceError, UsageError
from tests import _tiny
from tests._sshd import Sshd, running, serving, until
from tests._sshd import sshd as sshd
from tests.deploy.conftest import active
from tests.deploy.faults import count

pytestmark = pytest.mark.needs("sshd")


def test_deploy_status_and_rollback_from_end_to_end(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    for bundle in bundles[:2]:
        assert main(["deploy", str(bundle.path), sshd.spec]) == 0
    assert "activated" in capsys.readouterr().out
    assert active(sshd.home) == bundles[1].manifest.digest
    there = destination(sshd.spec)
    (found,) = status(there.connection, there.root)
    assert (found.name, found.build_number, found.deploying) == ("tiny-net", 2, "")
    assert found.current is not None
    assert found.current.digest == bundles[1].manifest.digest
    assert not found.current.drift

    back = rollback(there.connection, "tiny-net")
    assert (back.digest, back.previous) == (bundles[0].manifest.digest, bundles[1].manifest.digest)
    assert active(sshd.home) == bundles[0].manifest.digest
    there.connection.close()


def test_the_second_deployment_sends_nothing(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(bundles[0].path), sshd.spec]) == 0
    capsys.readouterr()
    assert main(["deploy", str(bundles[0].path), sshd.spec, "--json", "-"]) == 0
    (done,) = json.loads(capsys.readouterr().out)
    assert (done["action"], done["sent_bytes"]) == ("already active", 0)


def test_a_changed_byte_on_the_device_is_seen_and_mended(bundles: list[Bundle], sshd: Sshd) -> None:
    there = destination(sshd.spec)
    for bundle in bundles[:2]:
        deploy(bundle, there.connection)
    library = sshd.home / ROOT / "tiny-net" / "current" / "libtiny-net.so"
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.write_bytes(data)
    (found,) = status(there.connection, there.root)
    assert found.current is not None
    assert found.current.drift == ("libtiny-net.so was changed",)
    deploy(bundles[1], there.connection)
    assert active(sshd.home) == bundles[1].manifest.digest
    assert active(sshd.home, "previous") == bundles[0].manifest.digest
    there.connection.close()


@pytest.mark.parametrize(
    "folder", ["with space", "quo'te\"s", "semi;touch x", "$HOME", "-rf", "ü*?", "new\nline"]
)
def test_any_folder_name_is_only_a_name(bundles: list[Bundle], sshd: Sshd, folder: str) -> None:
    root = f"{sshd.folder}/{folder}"
    assert main(["deploy", str(bundles[0].path), sshd.spec, "--root", root]) == 0
    assert (Path(root) / "tiny-net" / "current" / "manifest.json").is_file()
    assert not (sshd.home / "x").exists()


def test_a_home_folder_may_have_a_space(bundles: list[Bundle], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 8), np.float32))
    enter = (
        'cd "{home}/my home" && HOME="{home}/my home" && export HOME && exec sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    with serving(command=f'mkdir -p "{{home}}/my home" && {enter}') as sshd:
        for bundle in bundles[:2]:
            assert main(["deploy", str(bundle.path), sshd.spec]) == 0
        home = sshd.home / "my home"
        assert active(home) == bundles[1].manifest.digest
        files = ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]
        assert main(["run", str(bundles[1].path), *files, "--device", sshd.spec]) == 0
        assert main(["device", "rollback", sshd.spec]) == 0
        assert active(home) == bundles[0].manifest.digest
        assert main(["device", "clean", sshd.spec, "--bundles"]) == 0
        assert not list(home.iterdir())
        assert list(sshd.home.iterdir()) == [home]


def _message(capsys: pytest.CaptureFixture[str], bundle: Bundle, spec: str, code: int = 5) -> str:
    """What a deployment that fails says: three lines, and no traceback."""
    capsys.readouterr()
    assert main(["deploy", str(bundle.path), spec]) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 3, said
    assert "Traceback" not in said
    return said


def test_every_way_not_to_get_there_has_its_own_message(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(bundles[0].path), sshd.spec]) == 0
    said = {}
    sshd.stop()
    said["server down"] = _message(capsys, bundles[1], sshd.spec)
    sshd.start("other_host")
    said["host key changed"] = _message(capsys, bundles[1], sshd.spec)
    sshd.stop()
    sshd.start()
    sshd.known_hosts.write_text("")
    said["unknown host"] = _message(capsys, bundles[1], sshd.spec)
    sshd.trust("host")
    sshd.configure(key="stranger")
    said["not let in"] = _message(capsys, bundles[1], sshd.spec)
    sshd.configure()
    said["no such host"] = _message(capsys, bundles[1], "ssh://no-such-host.invalid")
    said["a host that looks like an option"] = _message(capsys, bundles[1], "ssh://-oProxyCommand=x", 2)
    assert len({text.splitlines()[0] for text in said.values()}) == len(said)
    assert active(sshd.home) == bundles[0].manifest.digest
    assert main(["deploy", str(bundles[1].path), sshd.spec]) == 0
    assert active(sshd.home) == bundles[1].manifest.digest
    for _ in said:
        count("no way to the device, over sshd")


@pytest.mark.parametrize("step", ["lock", "stage", "receive", "verify", "settle", "run", "activate", "prune"])
def test_the_network_goes_away_at_a_step(bundles: list[Bundle], sshd: Sshd, step: str) -> None:
    there = destination(sshd.spec)
    deploy(bundles[0], there.connection)
    run, cut = there.connection.run, False

    def dropping(argv: list[str], **named: object) -> object:
        nonlocal cut
        if step in argv[:5] and not cut:
            cut = True
            threading.Timer(0.5, sshd.drop).start()
            # Nobody there knows: the step is done all the same, while the next deployment goes on.
            argv = ["sh", "-c", 'sleep 1.5; exec "$@"', "late", *argv]
        return run(argv, **named)

    there.connection.run = dropping
    with pytest.raises(ConnectionLost):
        deploy(bundles[1], there.connection)
    assert active(sshd.home) in {bundle.manifest.digest for bundle in bundles[:2]}
    deploy(bundles[1], there.connection)  # connects anew, and needs no help
    assert active(sshd.home) == bundles[1].manifest.digest
    assert active(sshd.home, "previous") == bundles[0].manifest.digest
    there.connection.close()
    count("connection cut at a step, over sshd")


def test_several_devices_have_a_table_and_one_failure_stops_the_rest(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = f"{sshd.spec}{sshd.folder}/one", f"{sshd.spec}{sshd.folder}/two"
    bad = "ssh://no-such-host.invalid"
    assert main(["deploy", str(bundles[0].path), first, second, "--parallel", "2"]) == 0
    assert capsys.readouterr().out.count("activated") == 2
    arguments = ["--parallel", "1", "--json", "-"]
    assert main(["deploy", str(bundles[1].path), bad, first, second, *arguments]) == 5
    out, err = capsys.readouterr()
    tried = [entry["deployed"] is not None or entry["error"] is not None for entry in json.loads(out)]
    assert tried == [True, False, False]
    assert "1 of 3 devices failed; 2 not tried" in err
    assert main(["deploy", str(bundles[1].path), bad, first, second, "--max-failures", "1"]) == 5
    assert capsys.readouterr().out.count("activated") == 2


def test_status_and_rollback_are_verbs_of_device(
    bundles: list[Bundle], sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "rollback", sshd.spec]) == 2  # nothing is deployed
    for bundle in bundles[:2]:
        assert main(["deploy", str(bundle.path), sshd.spec]) == 0
    capsys.readouterr()
    assert main(["device", "status", sshd.spec]) == 0
    assert "as it was deployed" in capsys.readouterr().out
    begin = time.monotonic()
    assert main(["device", "rollback", sshd.spec, "tiny-net"]) == 0
    assert time.monotonic() - begin < 5  # a second where nothing else runs
    assert active(sshd.home) == bundles[0].manifest.digest
    (sshd.home / ROOT / "tiny-net" / "current" / "tiny-net.h").write_text("changed")
    assert main(["device", "status", sshd.spec]) == 6
    assert "tiny-net.h was changed" in capsys.readouterr().out


def test_a_rollback_is_one_message(
    bundles: list[Bundle], sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = destination(sshd.spec)
    for bundle in bundles[:2]:
        deploy(bundle, there.connection)
    sent, run = [], there.connection.run

    def counting(argv: list[str], **named: object) -> object:
        sent.append(argv)
        return run(argv, **named)

    monkeypatch.setattr(there.connection, "run", counting)
    assert rollback(there.connection, "tiny-net").digest == bundles[0].manifest.digest
    assert len(sent) == 1
    back = rollback(there.connection)  # the one there is
    assert (back.digest, back.place) == (bundles[1].manifest.digest, f"{ROOT}/tiny-net")
    assert len(sent) == 2
    with pytest.raises(DeviceError, match="has no previous release"):
        rollback(there.connection, "another")
    (sshd.home / ROOT / "another" / "releases").mkdir(parents=True)
    with pytest.raises(UsageError, match="has 2 bundles, not one") as caught:
        rollback(there.connection)
    assert "another, tiny-net" in caught.value.why
    assert active(sshd.home) == bundles[1].manifest.digest
    there.connection.close()


def test_a_rollback_is_quick(bundles: list[Bundle], sshd: Sshd, tmp_path: Path) -> None:
    """Nothing is loaded that it does not need, and there are two processes of ssh: the connection and its message.
    Counted, for a time says nothing where others work as well."""
    for bundle in bundles[:2]:
        assert main(["deploy", str(bundle.path), sshd.spec]) == 0
    counted, ssh = tmp_path / "counted", tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho >>"{counted}"\nexec {shutil.which("ssh")} "$@"\n')
    ssh.chmod(0o755)
    command = [sys.executable, "-X", "importtime", "-m", "edgecsi", "device", "rollback", sshd.spec]
    path = f"{ssh.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert active(sshd.home) == bundles[0].manifest.digest
    assert len(counted.read_text().splitlines()) == 2
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "edgecsi.deploy.deploy" in loaded
    assert not loaded & {"numpy", "torch", "tvm", "rich", "scipy"}


def test_ctrl_c_with_several_devices_ends_all_of_them_quickly(
    bundles: list[Bundle], sshd: Sshd, libraries: Callable[..., Path], tmp_path: Path
) -> None:
    """While two of three are being tried, with a library that never ends."""
    hanging = dataclasses.replace(_tiny.manifest(), build_number=7)
    bad = _tiny.make_bundle(tmp_path / "bad", libraries(_tiny.HOST, "-DHANG"), hanging)
    homes = [sshd.folder / name for name in ("one", "two", "three")]
    devices = [f"{sshd.spec}{home}" for home in homes]
    assert main(["deploy", str(bundles[0].path), *devices]) == 0
    command = [sys.executable, "-m", "edgecsi", "deploy", str(bad.path), *devices, "--parallel", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(running(sshd.folder, " run ")) >= 4)  # each is a process and its watch
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = said.strip().splitlines()
    assert line.startswith("interrupted: each device has the old release or the new one, whole")
    assert time.monotonic() - begin < 10
    until(lambda: not running(sshd.folder, " run "))
    for home in homes:
        manifest = home / "bundles" / "tiny-net" / "current" / "manifest.json"
        assert parse_manifest(manifest.read_bytes(), "m").digest == bundles[0].manifest.digest
    assert main(["deploy", str(bundles[1].path), *devices]) == 0
    count("Ctrl-C with several devices")


def test_what_is_put_on_the_device_is_small(bundles: list[Bundle], sshd: Sshd) -> None:
    assert main(["deploy", str(bundles[0].path), sshd.spec]) == 0
    ours = [path for path in (sshd.home / ".edgecsi").rglob("*") if path.is_file() and not path.is_symlink()]
    release = (sshd.home / ROOT / "tiny-net" / "current").resolve()
    assert sum(path.stat().st_size for path in ours if release not in path.parents) < 1 << 20
