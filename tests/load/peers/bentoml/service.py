"""BentoML: a service with a route for URLs and one for uploads.

Its functions are synchronous; BentoML runs them in its threads.
"""

import os

import bentoml
from PIL.Image import Image
from steps import Steps


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60})
class Classifier:
    """One process's share."""

    def __init__(self):
        self._steps = Steps()

    @bentoml.api(route="/url")
    def url(self, url: str) -> dict[str, float]:
        """The photo at a URL."""
        return self._steps.classify(self._steps.fetch(url))

    @bentoml.api(route="/upload")
    def upload(self, image: Image) -> dict[str, float]:
        """An uploaded photo, which BentoML opens with Pillow."""
        return self._steps.classify_image(image)
