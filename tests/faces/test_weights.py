"""The hub client is the real one; only the hub is a small server on this machine."""

import hashlib
import http.server
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from ferattn.errors import WeightsMismatch
from ferattn.faces import make_detector
from ferattn.faces.detectors import best_available
from ferattn.faces.weights import YUNET_WEIGHTS, HubFile, existing, fetch, verify

CONTENT = b"weights of a detector"
FILE = HubFile("somebody/detector", "model.onnx", "a" * 40, hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def hub(monkeypatch):
    """A hub with one file; returns the list of requests it saw."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, *, with_body):
            requests.append(f"{self.command} {self.path}")
            found = self.path == f"/{FILE.repo}/resolve/{FILE.revision}/{FILE.name}"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", f'"{FILE.sha256}"')
                self.send_header("X-Repo-Commit", FILE.revision)
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            if with_body and found:
                self.wfile.write(CONTENT)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_once_and_then_taken_from_the_cache(hub, tmp_path):
    path = fetch(FILE, cache_dir=tmp_path)
    assert path.read_bytes() == CONTENT
    assert verify(path, FILE) == path
    asked = len(hub)
    assert any(request.startswith("GET") for request in hub)
    assert fetch(FILE, cache_dir=tmp_path) == path
    assert len(hub) == asked


def test_the_offline_switch_is_honoured(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsMismatch, match=r"model\.onnx is not in the hub cache.*offline.*weights="):
        fetch(FILE, cache_dir=tmp_path)
    assert hub == []


def test_offline_with_a_filled_cache_works(hub, tmp_path, monkeypatch):
    path = fetch(FILE, cache_dir=tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(FILE, cache_dir=tmp_path) == path


def test_a_missing_file_says_so(hub, tmp_path):
    with pytest.raises(WeightsMismatch, match="could not be fetched from 'somebody/detector'"):
        fetch(HubFile(FILE.repo, "other.onnx", FILE.revision, FILE.sha256), cache_dir=tmp_path)


def test_a_wrong_checksum_is_an_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENT + b"!")
    with pytest.raises(WeightsMismatch, match=f"expected {FILE.sha256}"):
        verify(path, FILE)


def test_no_such_path():
    with pytest.raises(WeightsMismatch, match=r"no/such\.onnx.*no such file"):
        existing("no/such.onnx", "YuNet")


def test_damaged_weights_never_fall_back_to_another_detector(tmp_path, monkeypatch):
    path = tmp_path / YUNET_WEIGHTS.name
    path.write_bytes(b"damaged")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **options: str(path))
    with pytest.raises(WeightsMismatch, match="sha256"):
        best_available()
    with pytest.raises(WeightsMismatch, match="sha256"):
        make_detector("yunet")


def test_the_pinned_file_is_what_the_client_is_asked_for(tmp_path, monkeypatch):
    asked = {}

    def download(repo, name, **options):
        asked.update(repo=repo, name=name, **options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch(YUNET_WEIGHTS) == tmp_path
    assert asked["repo"] == "opencv/face_detection_yunet"
    assert len(asked["revision"]) == 40
    assert asked["local_files_only"] is True
