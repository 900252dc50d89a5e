"""Commands and files over a real sshd, and every way in which the connection fails."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgecsi.device.ssh import Address, Ssh
from edgecsi.errors import ConnectionLost, DeviceError, ToolchainError, Unreachable, UsageError
from tests._sshd import Sshd, serving

pytestmark = pytest.mark.needs("ssh", "sshd")

NASTY = [
    "",
    " ",
    "a b",
    "'",
    '"',
    "$HOME",
    "`id`",
    "; exit 3",
    "\\",
    "new\nline",
    "*",
    "-n",
    "é",
    "#",
    "a'b\"c",
]


@pytest.fixture
def ssh(sshd: Sshd) -> Iterator[Ssh]:
    with Ssh(Address.parse(sshd.spec), connect_seconds=10) as connection:
        yield connection


@pytest.mark.parametrize(
    ("text", "host", "user", "port", "folder"),
    [
        ("ssh://pi", "pi", None, None, ".edgecsi"),
        ("ssh://pi@raspberrypi", "raspberrypi", "pi", None, ".edgecsi"),
        ("ssh://pi@10.0.0.7:2222", "10.0.0.7", "pi", 2222, ".edgecsi"),
        ("ssh://[fe80::1%eth0]:22", "fe80::1%eth0", None, 22, ".edgecsi"),
        ("ssh://pi/opt/my csi/", "pi", None, None, "/opt/my csi"),
    ],
)
def test_addresses(text: str, host: str, user: str, port: Any, folder: str) -> None:
    address = Address.parse(text)
    assert (address.host, address.user, address.port, address.folder) == (host, user, port, folder)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://-oProxyCommand=id", "ssh://-x@pi", "ssh://pi:0", "ssh://pi:99999", "ssh://a b", "ssh://a@b@c",
     "pi", "rpc://pi:1", "ssh://pi\n", "ssh://pi:ssh", "ssh://a\x00"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SSH address"):
        Address.parse(text)


def test_words_arrive_as_they_are(ssh: Ssh) -> None:
    done = ssh.run(["printf", "%s\\0", *NASTY])
    assert done.code == 0
    assert done.stdout.decode().split("\0")[:-1] == NASTY


def test_exit_codes_and_both_streams(ssh: Ssh) -> None:
    done = ssh.run(["sh", "-c", "echo out; echo first >&2; echo last >&2; exit 255"])
    assert (done.code, done.text, done.said) == (255, "out", "last")
    assert ssh.run(["sh", "-c", "kill -9 $$"]).code in (137, 255)
    assert ssh.run(["no-such-program"]).code == 127


def test_one_connection_for_everything(ssh: Ssh, sshd: Sshd) -> None:
    for _ in range(5):
        ssh.run(["true"])
    log = (sshd.folder / "log").read_text()
    assert log.count("Accepted publickey") == 1


def test_files_go_there_and_back_unchanged(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    for remote in ("a", "with space 'and quote", "new\nline"):
        ssh.push(tmp_path / "a", remote, mode=0o755)
        assert (sshd.home / remote).read_bytes() == content
        assert (sshd.home / remote).stat().st_mode & 0o777 == 0o755
        ssh.pull(remote, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == content
    ssh.push(b"", "empty")
    assert (sshd.home / "empty").read_bytes() == b""


def test_a_file_that_cannot_be_written_or_read(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no/such/folder"):
        ssh.push(b"x", "no/such/folder/file")
    with pytest.raises(DeviceError, match="missing"):
        ssh.pull("missing", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_copy_cut_short_leaves_the_old_file(ssh: Ssh, sshd: Sshd, tmp_path: Path) -> None:
    ssh.push(b"old", "file")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(1 << 30)

    def cut():
        _wait_for(sshd.home / "file.part")
        sshd.drop()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(ConnectionLost):
        ssh.push(tmp_path / "large", "file")
    cutter.join()
    time.sleep(0.3)
    assert (sshd.home / "file").read_bytes() == b"old"
    ssh.push(b"new", "file")
    assert (sshd.home / "file").read_bytes() == b"new"


def test_talking_to_a_command(ssh: Ssh) -> None:
    session = ssh.start(["cat"])
    for word in (b"one\n", b"two\n"):
        session.stdin.write(word)
        assert session.stdout.read(4) == word
    assert session.finish(10).code == 0
    session = ssh.start(["sh", "-c", "cat >&2; exit 4"])
    session.stdin.write(b"why\n")
    done = session.finish(10)
    assert (done.code, done.said) == (4, "why")


def test_a_killed_session_ends_its_command(ssh: Ssh, sshd: Sshd) -> None:
    session = ssh.start(["sh", "-c", "echo up; cat; touch ended"])
    assert session.stdout.read(3) == b"up\n"
    session.kill()
    _wait_for(sshd.home / "ended")


def test_a_command_without_end_is_given_up_in_time(ssh: Ssh) -> None:
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="sleep did not end on board"):
        ssh.run(["sleep", "1000"], timeout=1)
    assert time.monotonic() - begin < 5
    assert ssh.run(["true"]).code == 0


def test_a_lost_connection_is_named_and_the_next_command_works(ssh: Ssh, sshd: Sshd) -> None:
    assert ssh.run(["true"]).code == 0
    threading.Timer(0.5, sshd.drop).start()
    begin = time.monotonic()
    with pytest.raises(ConnectionLost, match="lost"):
        ssh.run(["sleep", "1000"])
    assert time.monotonic() - begin < 10
    assert ssh.run(["true"]).code == 0


def test_the_connection_ends_with_us(ssh: Ssh, sshd: Sshd) -> None:
    ssh.run(["true"])
    ssh.close()
    time.sleep(0.5)
    assert sshd.drop() == 0


def failure(sshd, seconds=5.0):
    begin = time.monotonic()
    with (
        Ssh(Address.parse(sshd.spec), connect_seconds=seconds) as connection,
        pytest.raises(Unreachable) as caught,
    ):
        connection.run(["touch", "was-here"])
    assert time.monotonic() - begin < seconds + 5
    assert not (sshd.home / "was-here").exists()
    assert len(str(caught.value).splitlines()) == 3
    return str(caught.value)


def works(sshd):
    with Ssh(Address.parse(sshd.spec)) as connection:
        return connection.run(["true"]).code == 0


def test_an_unknown_host(sshd: Sshd) -> None:
    sshd.configure(host="no-such-host.invalid")
    assert "there is no host board" in failure(sshd)
    sshd.configure()
    assert works(sshd)


def test_no_server_there(sshd: Sshd) -> None:
    sshd.stop()
    assert "its SSH server is not" in failure(sshd)
    sshd.start()
    assert works(sshd)


def test_a_host_that_does_not_answer(sshd: Sshd) -> None:
    """The port accepts, and nothing follows: a machine that hangs."""
    sshd.stop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + 10
        while True:
            try:
                deaf.bind(("127.0.0.1", sshd.port))
                break
            except OSError:  # what sshd left behind is still closing
                assert time.monotonic() < deadline
                time.sleep(0.1)
        deaf.listen()
        assert "does not answer" in failure(sshd, seconds=2)
    sshd.start()
    assert works(sshd)


def test_a_key_that_is_not_accepted(sshd: Sshd) -> None:
    sshd.configure(key="stranger")
    message = failure(sshd)
    assert "does not let us in" in message
    assert "ssh-copy-id" in message


def test_a_changed_host_key_is_a_hard_stop(sshd: Sshd) -> None:
    sshd.stop()
    sshd.start("other_host")
    message = failure(sshd)
    assert "another host key" in message
    assert "ssh-keygen -R" in message


def test_a_host_key_never_seen(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    assert "not among the known hosts" in failure(sshd)


def test_a_shell_that_talks_is_named() -> None:
    with serving(command='echo "Welcome!"; exec sh -c "$SSH_ORIGINAL_COMMAND"') as sshd:
        assert "Welcome!" in failure(sshd)


def test_a_shell_that_ends_at_once() -> None:
    with serving(command="exit 1") as sshd:
        assert "ended the connection" in failure(sshd)


def test_the_configuration_of_the_user_holds(sshd: Sshd) -> None:
    """Interactive comforts that would break commands are switched off, the rest is kept."""
    sshd.configure(more=" RemoteCommand tmux\n RequestTTY force\n ControlMaster auto\n ControlPath /nowhere/%C\n"
                   " ForwardAgent yes\n LocalForward 1 127.0.0.1:1\n SetEnv LC_BOARD=7\n")  # fmt: skip
    with Ssh(Address.parse(sshd.spec)) as connection:
        assert connection.run(["echo", "hello"]).stdout == b"hello\n"


def test_a_missing_ssh_says_how_to_install_it(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="openssh-client"):
        works(sshd)


def _wait_for(path):
    for _ in range(250):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path.name} did not come")
