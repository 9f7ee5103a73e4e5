"""Slides in, embeddings out: Coverslip's API from Python, with requests and numpy.

    python docs/client.py http://127.0.0.1:8080 a.svs b.svs        # COVERSLIP_KEY where the server wants one

Sends the slides (going on where it was after an interruption), waits for their embeddings, and prints the most
similar slides of each and the cosines among those that were sent. Take what you need of it.
"""

import base64
import io
import os
import sys
import time

import numpy as np
import requests

CHUNK = 8 << 20


class Problem(Exception):
    """What the server answers when something is wrong: `kind` for programs, the hint for people."""

    def __init__(self, answer):
        said = answer.json() if "json" in answer.headers.get("Content-Type", "") else {}
        self.kind = said.get("kind", "")
        super().__init__(f"{said.get('detail', answer.reason)} ({said.get('hint', answer.status_code)})")


class Coverslip:
    def __init__(self, url, key=None):
        self.url = url.rstrip("/")
        self.http = requests.Session()
        if key:
            self.http.headers["Authorization"] = "Bearer " + key
        self.kept = {}  # ETag and answer of what was read, by its address

    def call(self, method, path, **more):
        answer = self.http.request(method, self.url + path, timeout=300, **more)
        if answer.status_code >= 400:
            raise Problem(answer)
        return answer

    def get(self, path, **query):
        """Reads JSON. What has not changed since it was read last is not sent again."""
        address = (path, tuple(sorted(query.items())))
        tag, known = self.kept.get(address, (None, None))
        answer = self.call("GET", path, params=query, headers={"If-None-Match": tag} if tag else {})
        if answer.status_code == 304:
            return known
        self.kept[address] = answer.headers.get("ETag"), answer.json()
        return self.kept[address][1]

    def upload(self, path):
        """Sends a slide (tus 1.0.0) and returns its id. The server keeps equal bytes once."""
        tus, size = {"Tus-Resumable": "1.0.0"}, os.path.getsize(path)
        name = base64.b64encode(os.path.basename(path).encode()).decode()
        place = self.call("POST", "/v1/uploads", headers={**tus, "Upload-Length": str(size), "Upload-Metadata": "filename " + name}).headers["Location"]
        place = "/" + place.split("://")[-1].split("/", 1)[1] if "://" in place else place
        at, pause = 0, 1
        with open(path, "rb") as f:
            while at < size:
                f.seek(at)
                try:
                    self.call("PATCH", place, data=f.read(CHUNK), headers={**tus, "Upload-Offset": str(at), "Content-Type": "application/offset+octet-stream"})
                    pause = 1
                except requests.ConnectionError:
                    time.sleep(pause := min(2 * pause, 60))
                # What the server says is on its disk; after an interruption it may be less, or more, than was sent.
                at = self.offset(place, tus)
        return self.call("POST", place + "/finish").json()["id"]

    def offset(self, place, tus):
        while True:
            try:
                return int(self.call("HEAD", place, headers=tus).headers["Upload-Offset"])
            except requests.ConnectionError:
                time.sleep(1)

    def wait(self, slide, every=1.0):
        """Waits until no worker will touch the slide again."""
        while (now := self.get(f"/v1/slides/{slide}"))["state"] in ("queued", "encoding"):
            time.sleep(every)
        if now["state"] != "embedded":
            raise RuntimeError(f"{now['name']} is {now['state']}: {now.get('reason', '')}")
        return now

    def embedding(self, slide):
        """[D] float32 of norm 1."""
        return np.asarray(self.get(f"/v1/slides/{slide}/embedding")["vector"], dtype=np.float32)

    def embeddings(self, **where):
        """All embeddings at once, as numpy arrays: slides [N], names [N], embeddings [N,D] float32. where: cohort, encoder, aggregator."""
        with np.load(io.BytesIO(self.call("GET", "/v1/embeddings", params={"format": "npz", **where}).content)) as f:
            return f["slides"], f["names"], f["embeddings"]

    def search(self, vectors, k=10, **more):
        """The k most similar slides of each row of vectors, [Q,D]; see where, exclude_patients, vote in docs/API.md."""
        body = {"queries": [{"vector": v.tolist()} for v in np.atleast_2d(vectors)], "k": k, **more}
        return [r["neighbours"] for r in self.call("POST", "/v1/embeddings/search", json=body).json()["results"]]

    def cohort(self, name):
        """All slides of a cohort with patient, site and labels, page by page."""
        cursor = {}
        while True:
            page = self.get(f"/v1/cohorts/{name}/slides", **cursor)
            yield from page["slides"]
            if not page.get("next"):
                return
            cursor = {"cursor": page["next"]}


def main(url, *paths):
    server = Coverslip(url, os.environ.get("COVERSLIP_KEY"))
    slides = [server.upload(p) for p in paths]
    names = [server.wait(s)["name"] for s in slides]
    x = np.stack([server.embedding(s) for s in slides])
    for name, near in zip(names, server.search(x, k=5)):
        print(name, "is most like", ", ".join(f"{n['name']} ({n['similarity']:.3f})" for n in near))
    print("cosines:")
    print(np.array2string(x @ x.T, precision=3))
    known, _, everything = server.embeddings()
    print(len(known), "slides in all, as an array of", everything.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
