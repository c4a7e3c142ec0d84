"""Which value of the chart stands behind each setting; tests/chart/test_gateway_in_step.py compares the two."""

from __future__ import annotations

import re

# What the chart or the image sets by itself, and whoever must can set otherwise.
_EXTRA = "gateway.extraEnv"

CHART_VALUES = {
    "TF_SERVING_HOST": _EXTRA,
    "GATEWAY_MODEL_TLS": "gateway.serverTls.secretName",
    "GATEWAY_MODEL_TLS_CA_FILE": "gateway.serverTls.secretName",
    "GATEWAY_MODEL_TLS_CERTIFICATE_FILE": "gateway.serverTls.mutual",
    "GATEWAY_MODEL_TLS_KEY_FILE": "gateway.serverTls.mutual",
    "GATEWAY_MODEL_TLS_SERVER_NAME": "gateway.serverTls.serverName",
    "GATEWAY_LISTEN_HOST": _EXTRA,
    "GATEWAY_LISTEN_PORT": _EXTRA,
    "GATEWAY_ADMIN_LISTEN_PORT": _EXTRA,
    "GATEWAY_MODEL_NAME": "model.name",
    "GATEWAY_MODEL_VERSION": "model.version",
    "GATEWAY_MODEL_LABEL": "model.versionLabel",
    "GATEWAY_CANARY_VERSION": "model.canary.version",
    "GATEWAY_CANARY_LABEL": "model.canary.versionLabel",
    "GATEWAY_CANARY_PERCENT": "model.canary.weight",
    "GATEWAY_SELECTABLE_VERSIONS": "model.selectableVersions",
    "GATEWAY_SIGNATURE_NAME": "model.signatureName",
    "GATEWAY_INPUT_NAME": "model.inputName",
    "GATEWAY_OUTPUT_NAME": "model.outputName",
    "GATEWAY_IMAGE_SIZE": "model.imageSize",
    "GATEWAY_LABELS": "model.labels",
    "GATEWAY_PREPROCESSING": "model.preprocessing",
    "GATEWAY_RESAMPLING": "model.resampling",
    "GATEWAY_JPEG_SCALING": "gateway.jpegScaling",
    "GATEWAY_MODEL_CHECK_SECONDS": "gateway.modelCheckSeconds",
    "GATEWAY_REQUEST_TIMEOUT_SECONDS": "gateway.requestTimeoutSeconds",
    "GATEWAY_MAX_BODY_BYTES": "gateway.maxBodyBytes",
    "GATEWAY_MAX_BUFFERED_BYTES": "gateway.maxBufferedBytes",
    "GATEWAY_MAX_CONNECTIONS": "gateway.maxConnections",
    "GATEWAY_MAX_IN_FLIGHT": "gateway.maxInFlight",
    "GATEWAY_MAX_PHOTOS": "gateway.maxPhotos",
    "GATEWAY_MAX_PIXELS": "gateway.maxPixels",
    "GATEWAY_DECODE_SLOTS": "gateway.decodeSlots",
    "GATEWAY_DECODE_MEMORY_BYTES": "gateway.decodeMemoryBytes",
    "GATEWAY_PREDICT_BATCH_SIZE": "gateway.predictBatchSize",
    "GATEWAY_FETCH_TIMEOUT_SECONDS": "gateway.fetch.timeoutSeconds",
    "GATEWAY_FETCH_MAX_BYTES": "gateway.fetch.maxBytes",
    "GATEWAY_FETCH_MAX_REDIRECTS": "gateway.fetch.maxRedirects",
    "GATEWAY_FETCH_ALLOWED_PORTS": "gateway.fetch.allowedPorts",
    "GATEWAY_FETCH_ALLOWED_NETWORKS": "gateway.fetch.allowedNetworks",
    "GATEWAY_FETCH_ALLOWED_HOSTS": "gateway.fetch.allowedHosts",
    "GATEWAY_FETCH_DENIED_HOSTS": "gateway.fetch.deniedHosts",
    "GATEWAY_FETCH_PROXY": "gateway.fetch.proxy",
    "GATEWAY_KEYS_FILE": "gateway.keys.secretName",
    "GATEWAY_RATE_PHOTOS_PER_MINUTE": "gateway.rate.photosPerMinute",
    "GATEWAY_RATE_BURST_PHOTOS": "gateway.rate.burstPhotos",
    "GATEWAY_TRUSTED_PROXIES": "gateway.trustedProxies",
    "GATEWAY_DRAIN_DELAY_SECONDS": "gateway.drain.delaySeconds",
    "GATEWAY_DRAIN_TIMEOUT_SECONDS": "gateway.requestTimeoutSeconds",
    "GATEWAY_PAGE": "gateway.page",
    "GATEWAY_LOG_LEVEL": "gateway.logLevel",
}


def values_for(text: str) -> str:
    """The values behind the settings that a text names, by variable or by flag, each once."""
    names = re.findall(r"(?:GATEWAY|TF_SERVING)_[A-Z_]*[A-Z]", text)
    names += [f"GATEWAY_{flag.replace('-', '_').upper()}" for flag in re.findall(r"--([a-z][a-z-]+)", text)]
    return ", ".join(dict.fromkeys(CHART_VALUES[name] for name in names if name in CHART_VALUES))
