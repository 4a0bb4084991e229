"""Reading pictures, from files and from a server on this machine."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

import fastrnn
from fastrnn import images


def png(width=6, height=4):
    stream = io.BytesIO()
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue(), pixels


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write({"/picture.png": png()[0], "/text": b"hello"}.get(self.path, b"x" * 2000))

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_image_from_url(server, capsys):
    np.testing.assert_array_equal(fastrnn.image_from_url(f"{server}/picture.png"), png()[1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("path", ["missing", "text"])
def test_no_picture_is_none_with_a_word(server, path, capsys):
    assert fastrnn.image_from_url(f"{server}/{path}") is None
    assert f"{server}/{path}: no picture" in capsys.readouterr().out


def test_a_huge_file_and_a_dead_host(server, monkeypatch, capsys):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert fastrnn.image_from_url(f"{server}/huge") is None
    assert "larger than" in capsys.readouterr().out
    assert fastrnn.image_from_url("http://127.0.0.1:9/x.png") is None
    assert fastrnn.image_from_url("not a url") is None
    assert capsys.readouterr().out.count("no picture") == 2


def test_load_image(tmp_path):
    content, pixels = png(width=40, height=20)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    np.testing.assert_array_equal(fastrnn.load_image(path), pixels)
    assert fastrnn.load_image(str(path), size=10).shape == (10, 20, 3)
    Image.open(path).convert("L").save(path)
    assert fastrnn.load_image(path).shape == (20, 40, 3)
    with pytest.raises(FileNotFoundError):
        fastrnn.load_image(tmp_path / "nothing.png")
    path.write_text("hello")
    with pytest.raises(OSError, match="cannot identify"):
        fastrnn.load_image(path)


def test_preprocessing_is_undone(rng):
    picture = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    processed = fastrnn.preprocess_image(picture)
    assert processed.dtype == np.float32
    np.testing.assert_allclose(processed[0, 0, 0], (picture[0, 0, 0] / 255 - 0.485) / 0.229, rtol=1e-5)
    restored = fastrnn.deprocess_image(processed)
    assert restored.dtype == np.uint8
    assert np.abs(restored.astype(int) - picture).max() <= 1
    stretched = fastrnn.deprocess_image(processed * 0.1, rescale=True)
    assert (stretched.min(), stretched.max()) == (0, 255)
