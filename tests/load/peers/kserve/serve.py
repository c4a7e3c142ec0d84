"""KServe's model server (V1 protocol): a custom predictor that calls by gRPC.

{"instances": [{"url": "…"} or {"image": {"b64": "…"}}]}. The steps run in a thread of their own: KServe calls what is
not a coroutine on its event loop, where nothing else would go on meanwhile.
"""

import argparse
import asyncio
import base64
from functools import cached_property

from kserve import Model, ModelServer, model_server
from steps import Steps


class Classifier(Model):
    """One photo after the other of a request."""

    @cached_property
    def _steps(self):
        """Create the steps once in each process, on its first photo.

        KServe pickles the model for its worker processes.
        """
        return Steps()

    def load(self):
        """Nothing: the model is on the model server."""
        self.ready = True
        return True

    def _classify(self, instances):
        return [
            self._steps.classify(
                self._steps.fetch(instance["url"]) if "url" in instance else base64.b64decode(instance["image"]["b64"])
            )
            for instance in instances
        ]

    async def predict(self, payload, headers=None, response_headers=None):
        """The V1 answer."""
        del headers, response_headers
        return {"predictions": await asyncio.to_thread(self._classify, payload["instances"])}


if __name__ == "__main__":
    arguments, _ = argparse.ArgumentParser(parents=[model_server.parser]).parse_known_args()
    classifier = Classifier("clothing-model")
    classifier.load()
    ModelServer(
        http_port=arguments.http_port,
        workers=arguments.workers,
        enable_grpc=False,
        access_log_format=None,
    ).start([classifier])
