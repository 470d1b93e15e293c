"""Two replicas under a local Ray give the answers of one pipeline, both of them, and leave nothing behind."""

import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from servers import ask, decoded, level_difference

from ddit.pipeline import Pipeline


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_replicas_share_the_work_and_the_files_and_give_what_the_pipeline_gives() -> None:
    command = [sys.executable, "-m", "ddit", "serve", "--ray", "--replicas", "2", "--port", str(free_port())]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        address = next(
            found[0] for line in lines if (found := re.search(r"http://[\d.:]+", line)) and "serving" in line
        )
        rest = threading.Thread(target=lambda: [None for _ in lines])
        rest.start()
        with httpx.Client(base_url=address, timeout=60) as client:
            check(client)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        rest.join()
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(address + "/healthz")


def check(client: httpx.Client) -> None:
    def generate(seed: int) -> httpx.Response:
        return client.post("/v1/images/generations", json={"prompt": "a photo of a red car", "seed": seed})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(generate, range(24)))
    pipeline = Pipeline.from_pretrained("mini")
    own = pipeline.generate(["a photo of a red car"] * 24, seed=0)
    for answer, image in zip(answers, own, strict=True):
        assert answer.status_code == 200
        assert level_difference(decoded(answer.json()["data"][0]["b64_json"]), image) <= 1
    assert len({answer.headers["x-ddit-replica"] for answer in answers}) == 2

    generated = {"prompt": "a photo of a red car", "seed": 0, "response_format": "url"}
    url = client.post("/v1/images/generations", json=generated).json()["data"][0]["url"]
    replicas = set()
    for _ in range(40):
        file = client.get(url)
        assert file.status_code == 200
        replicas.add(file.headers["x-ddit-replica"])
    assert len(replicas) == 2  # the one that drew it, and the other

    body = ask("what color is the car?", own[0], seed=1, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        text = "".join(stream.iter_text())
    assert '"content": "red"' in text
    assert text.rstrip().endswith("data: [DONE]")
    wrong = client.post("/v1/images/generations", json={"prompt": 3})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"] == "prompt"
