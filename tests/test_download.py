"""Fetching the archive from a server on the loopback that behaves well, badly, and not at all."""

import hashlib
import io
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import fastrnn
from fastrnn import cli
from fastrnn.data import download, prepare_data
from tests.datasets import write_coco

pytest.importorskip("pooch")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A data directory with the published files alone."""
    directory = tmp_path_factory.mktemp("published")
    prepare_data(directory / "data", **write_coco(directory / "coco"), min_count=1)
    (directory / "data" / "references.json").unlink()
    for split in ("train", "val"):  # as a PCA's
        (directory / "data" / f"{split}2014_vgg16_fc7.h5").rename(
            directory / "data" / f"{split}2014_vgg16_fc7_pca.h5"
        )
    return directory / "data"


def zipped(directory, extra=(), without=()):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in directory.iterdir():
            if path.name not in without:
                archive.write(path, f"coco_captioning/{path.name}")
        for name, data in extra:
            archive.writestr(name, data)
    return content.getvalue()


def patched(archive, **fields):
    """An archive whose first member says that it is encrypted, or compressed by another method."""
    content = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        starts = {"flags": 6, "method": 8}
        for name, value in fields.items():
            local, central = opened.infolist()[0].header_offset, opened.start_dir
            for place in (local + starts[name], central + starts[name] + 2):
                content[place : place + 2] = value.to_bytes(2, "little")
    return bytes(content)


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; ``cuts`` says after how many bytes the next answers break off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cuts, self.asked = {}, [], []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path[1:])
        content = self.server.files.get(self.path[1:])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cuts:
            self.wfile.write(content[: self.server.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(published, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as server:
        server.files["coco.zip"] = zipped(published)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Between attempts, some seconds otherwise."""
    pooch_core = pytest.importorskip("pooch.core")
    monkeypatch.setattr(pooch_core.time, "sleep", lambda seconds: None)


def nothing_left(tmp_path):
    return list(tmp_path.iterdir()) == []


def test_success(server, published, tmp_path, capsys):
    checksum = hashlib.sha256(server.files["coco.zip"]).hexdigest()
    arguments = ["data", "download", str(tmp_path / "data"), "--url", server.url("coco.zip")]
    assert cli.main([*arguments, "--sha256", checksum.upper()]) == 0
    captured = capsys.readouterr()
    assert f"the data set is in {tmp_path / 'data'}" in captured.out
    assert "note: coco2014_captions.h5 has " in captured.out
    assert "bytes, the published one 42922600" in captured.out
    assert "100%" in captured.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == {
        path.name: path.read_bytes() for path in published.iterdir()
    }
    assert cli.main(arguments) == 2
    assert "data: exists already" in capsys.readouterr().err
    assert server.asked == ["coco.zip"]


@pytest.mark.parametrize("cuts", [[1000], [0, 500]])
def test_a_connection_that_breaks(server, published, tmp_path, cuts):
    """It is tried again, from the beginning."""
    server.cuts = list(cuts)
    fastrnn.data.download_data(tmp_path / "data", [server.url("coco.zip")])
    assert len(server.asked) == len(cuts) + 1
    np.testing.assert_array_equal(
        fastrnn.open_data(tmp_path / "data").train.captions, fastrnn.open_data(published).train.captions
    )


def test_a_connection_that_breaks_again_and_again(server, tmp_path, capsys):
    server.cuts = [100] * 9
    assert cli.main(["data", "download", str(tmp_path / "data"), "--url", server.url("coco.zip")]) == 2
    error = capsys.readouterr().err
    assert "fastrnn: could not download: http://127.0.0.1" in error
    assert "other places can be given by --url" in error
    assert len(server.asked) == download.ATTEMPTS
    assert nothing_left(tmp_path)


def test_mirrors(server, tmp_path):
    """The first that has it with the right checksum; some that answer have something else."""
    server.files["other.zip"] = b"other"
    checksum = hashlib.sha256(server.files["coco.zip"]).hexdigest()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}/coco.zip"
        urls = [
            nobody,
            server.url("gone.zip"),
            server.url("other.zip"),
            server.url("coco.zip"),
            "http://never",
        ]
        fastrnn.data.download_data(tmp_path / "data", urls, sha256=checksum)
    assert server.asked == ["gone.zip"] * 3 + ["other.zip", "coco.zip"]
    server.files["damaged.zip"] = server.files["coco.zip"].replace(b"PK\x03\x04", b"PK\x00\x00", 1)
    urls = [server.url(name) for name in ("other.zip", "damaged.zip", "coco.zip")]
    fastrnn.data.download_data(tmp_path / "again", urls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "data"]


def test_a_wrong_checksum(server, tmp_path, capsys):
    arguments = ["data", "download", str(tmp_path / "data"), "--url", server.url("coco.zip"), "--sha256"]
    assert cli.main([*arguments, "0" * 64]) == 2
    error = capsys.readouterr().err
    found = hashlib.sha256(server.files["coco.zip"]).hexdigest()
    assert f"coco.zip: expected the SHA-256 checksum {'0' * 64}, got {found}" in error
    for wrong in ("abc", "g" * 64):
        assert cli.main([*arguments, wrong]) == 2
        assert "sha256: expected 64 hexadecimal digits" in capsys.readouterr().err
    assert server.asked == ["coco.zip"]
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.zip", "http://", "no url", "file:///etc/passwd"])
def test_offline_and_other_places(tmp_path, capsys, url, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    assert cli.main(["data", "download", str(tmp_path / "data"), "--url", url]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"fastrnn: could not download: {url}: ")
    assert "other places can be given by --url" in line
    assert nothing_left(tmp_path)


def test_nothing_climbs_out(server, published, tmp_path):
    """Only the published files, by their own names, wherever the archive says they belong."""
    inside = tmp_path / "inside"
    inside.mkdir()
    absolute = tmp_path / "evil"
    outside = [("../evil.txt", "x"), (str(absolute), "x"), ("a/../../evil", "x"), ("readme.txt", "x")]
    moved = ("../../coco2014_vocab.json", (published / "coco2014_vocab.json").read_bytes())
    server.files["evil.zip"] = zipped(published, [*outside, moved], without=["coco2014_vocab.json"])
    fastrnn.data.download_data(inside / "data", [server.url("evil.zip")])
    assert {path.name for path in (inside / "data").iterdir()} == {path.name for path in published.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert [path.name for path in inside.iterdir()] == ["data"]


def test_archives_that_are_none(server, published, tmp_path):
    good = zipped(published)
    spoilt = bytearray(good)
    spoilt[len(good) // 2] ^= 0xFF
    for content, message in (
        (b"hello", "not a whole zip archive"),
        (good[: len(good) // 2], "not a whole zip archive"),
        (bytes(spoilt), "not a whole zip archive"),
        (
            zipped(published, without=["val2014_urls.txt"]),
            "does not hold the data set: val2014_urls.txt: no such",
        ),
        (
            zipped(published, [("coco2014_captions.h5", b"x")], without=["coco2014_captions.h5"]),
            "does not hold the data set: coco2014_captions.h5: not a whole HDF5 file",
        ),
        (
            zipped(published, [("other/coco2014_captions.h5", b"x")]),
            "the archive has coco2014_captions.h5 twice",
        ),
        (patched(good, flags=1), "the archive cannot be unpacked: .* encrypted"),
        (
            patched(good, method=99),
            "the archive cannot be unpacked: That compression method is not supported",
        ),
    ):
        server.files["coco.zip"] = content
        with pytest.raises(ValueError, match=message):
            fastrnn.data.download_data(tmp_path / "data", [server.url("coco.zip")])
        assert nothing_left(tmp_path)


@pytest.mark.parametrize("when", ["download", "unpack"])
def test_a_full_disk(server, tmp_path, monkeypatch, capsys, when):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    if when == "download":
        monkeypatch.setattr("pooch.HTTPDownloader.__call__", full)
    else:
        monkeypatch.setattr(download.shutil, "copyfileobj", full)
    assert cli.main(["data", "download", str(tmp_path / "data"), "--url", server.url("coco.zip")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in line
    assert str(tmp_path / "data") in line
    assert nothing_left(tmp_path)


def test_a_write_that_really_fails(server, tmp_path):
    """The system refuses to let files grow: as on a full disk, in the middle of the archive."""
    code = f"""
import resource, signal, sys
from fastrnn import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
sys.exit(cli.main(["data", "download", {str(tmp_path / "data")!r}, "--url", {server.url("coco.zip")!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "File too large" in result.stderr.splitlines()[-1]
    assert nothing_left(tmp_path)


def test_without_pooch(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert cli.main(["data", "download", str(tmp_path / "data")]) == 2
    assert "pip install 'fastrnn[download]'" in capsys.readouterr().err
    assert nothing_left(tmp_path)
