"""LitServe: {"url": "…"}, or a form with the photo in "image".

LitServe passes it to its worker processes.
"""

import sys

import litserve
from steps import Steps


class Classifier(litserve.LitAPI):
    """The steps, in the worker process."""

    def setup(self, device):
        """Called in each worker process."""
        del device
        self._steps = Steps()

    def decode_request(self, request):
        """The photo's bytes."""
        return self._steps.fetch(request["url"]) if "url" in request else request["image"].file.read()

    def predict(self, data):
        """Its scores."""
        return self._steps.classify(data)

    def encode_response(self, output):
        """As they are."""
        return output


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    server = litserve.LitServer(Classifier(), accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
