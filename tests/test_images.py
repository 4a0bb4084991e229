"""Reading pictures, from files and from a server on this machine."""

import contextlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

import fastrnn
from fastrnn import images
from fastrnn.images import plot_captions, plot_losses


def png(width=6, height=4):
    stream = io.BytesIO()
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue(), pixels


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/drip":
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                return
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


def test_a_placeholder_by_option(server, capsys):
    assert fastrnn.image_from_url(f"{server}/picture.png", placeholder=True).shape == (4, 6, 3)
    grey = fastrnn.image_from_url(f"{server}/missing", placeholder=True)
    assert grey.dtype == np.uint8
    assert grey.shape == (96, 96, 3)
    assert "no picture" in capsys.readouterr().out


def test_a_server_that_says_nothing(capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/picture.png"
        started = time.monotonic()
        assert fastrnn.image_from_url(url, timeout=0.3) is None
    assert time.monotonic() - started < 5
    assert "timed out" in capsys.readouterr().out


def test_a_server_that_drips(server, capsys):
    """The time is that of the whole download."""
    started = time.monotonic()
    assert fastrnn.image_from_url(f"{server}/drip", timeout=0.5) is None
    assert time.monotonic() - started < 3
    assert "timed out after 0.5 seconds" in capsys.readouterr().out


def test_other_schemes_are_not_followed(tmp_path, capsys):
    (tmp_path / "picture.png").write_bytes(png()[0])
    assert fastrnn.image_from_url((tmp_path / "picture.png").as_uri()) is None
    assert fastrnn.image_from_url("data:image/png;base64," + "A" * 5000) is None
    assert capsys.readouterr().out.count("no picture") == 2


def test_the_path_of_a_file_is_a_url_too(tmp_path):
    (tmp_path / "picture.png").write_bytes(png()[0])
    np.testing.assert_array_equal(fastrnn.image_from_url(str(tmp_path / "picture.png")), png()[1])


def test_load_image(tmp_path, monkeypatch):
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
    with pytest.raises(OSError, match=r"picture.png: not a readable picture: cannot identify"):
        fastrnn.load_image(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"picture.png: not a readable picture"):
        fastrnn.load_image(path)
    path.write_bytes(content)
    monkeypatch.setattr(images, "MAX_PIXELS", 799)
    with pytest.raises(OSError, match=r"picture.png: not a readable picture: larger than 799 pixels"):
        fastrnn.load_image(path)


@pytest.mark.filterwarnings("error")
def test_what_is_transparent_is_white(tmp_path):
    picture = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    picture.putpixel((1, 1), (0, 0, 255, 255))
    picture.save(tmp_path / "picture.png")
    rgb = fastrnn.load_image(tmp_path / "picture.png")
    assert rgb[1, 1].tolist() == [0, 0, 255]
    assert (rgb[0] == 255).all()


def test_square_image(tmp_path):
    """The middle, scaled."""
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 200
    Image.fromarray(wide).save(tmp_path / "picture.png")
    assert (images.square_image(tmp_path / "picture.png", 30) == np.full((30, 30, 3), 200)).all()
    Image.new("RGB", (1, 3000), "white").save(tmp_path / "picture.png")
    assert (images.square_image(tmp_path / "picture.png", 30) == 255).all()


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


# ---------------------------------------------------------------------------------------------------
# Drawing. Whether it can be read, only eyes can tell; that nothing is cut off or overlaps, can be counted.


def drawn(monkeypatch, plot, *arguments):
    """The figure that a plot function saves."""
    figures = []
    monkeypatch.setattr(images, "save_figure", lambda figure, path: figures.append(figure))
    plot("unused.png", *arguments)
    (figure,) = figures
    figure.draw_without_rendering()
    return figure


def boxes(figure):
    """The rectangles in pixels of the pictures and texts of a figure."""
    texts = [text.get_window_extent() for text in figure.texts if text.get_text()]
    return [axes.get_window_extent() for axes in figure.axes] + texts


LONG = "a man in a very long red coat is standing on the shore of a lake and looks at the dogs " * 3


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("caption", ["a dog", LONG])
def test_nothing_in_the_grid_overlaps_or_is_cut_off(monkeypatch, count, caption):
    pictures = [np.full((40, 60 if i % 2 else 30, 3), i, np.uint8) for i in range(count)]
    captions = [caption, "", *["a $cat$ on a mat"] * 10][:count]
    true_captions = [LONG if i % 3 else "" for i in range(count)]
    figure = drawn(
        monkeypatch,
        plot_captions,
        "Captions by shapes-lstm-20260101-000000",
        pictures,
        captions,
        true_captions,
    )
    for axes, picture in zip(figure.axes, pictures, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), picture)
    texts = [" ".join(text.get_text().split()) for text in figure.texts]
    assert texts[0].replace("- ", "-") == "Captions by shapes-lstm-20260101-000000"
    for i, text in enumerate(texts[1::2]):
        assert (captions[i] or "(no words)").startswith(text.removesuffix(" ..."))
    for i, text in enumerate(texts[2::2]):
        assert f"true: {true_captions[i]}".startswith(text.removesuffix(" ..."))
    every = boxes(figure)
    assert len(every) == count + count + sum(map(bool, true_captions)) + 1
    for i, box in enumerate(every):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
        for other in every[i + 1 :]:
            assert box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0


@pytest.mark.parametrize("iterations", [1, 7, 1000])
def test_losses_are_drawn_raw_smoothed_and_of_val(monkeypatch, rng, iterations):
    losses = (40 * np.exp(-np.arange(iterations) / 100) + rng.uniform(1, 2, iterations)).tolist()
    epochs = [(iterations // 2, 3.0), (iterations, 2.5)]
    figure = drawn(monkeypatch, plot_losses, "a run", losses, epochs)
    (axes,) = figure.axes
    raw, smooth, val = axes.lines
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    window = max(iterations // 50, 1)
    np.testing.assert_allclose(smooth.get_ydata()[0], np.mean(losses[:window]))
    assert smooth.get_xdata()[-1] == iterations - (window - 1) / 2
    assert list(zip(*val.get_data(), strict=True)) == epochs
    assert axes.get_xlabel() == "iteration"
    assert axes.get_ylabel() == "loss per caption (nats, logarithmic scale)"
    assert len(axes.get_legend().get_texts()) == 3
    assert axes.get_tightbbox().x0 >= 0


def test_a_drawing_is_a_png_file(tmp_path):
    plot_losses(tmp_path / "loss.png", "a run", [3.0, 2.0], [(2, 2.5)])
    assert fastrnn.load_image(tmp_path / "loss.png").shape == (540, 960, 3)
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        plot_losses(tmp_path / "nowhere" / "loss.png", "a run", [3.0, 2.0], [(2, 2.5)])
    with pytest.raises(ValueError, match="losses: expected those of one epoch"):
        plot_losses(tmp_path / "none.png", "a run", [], [])
    with pytest.raises(ValueError, match="pictures: expected one or more"):
        plot_captions(tmp_path / "none.png", "a run", [], [], [])
