"""Write TensorFlow Serving's SSLConfig, which has certificates as text, from a Secret's tls.crt, tls.key and ca.crt.

Usage: ssl_config.py SECRET_FOLDER FILE MUTUAL      (MUTUAL true: clients need a certificate of ca.crt's authority)

An ssl.config in the Secret is copied as it is.
"""

# ruff: noqa: INP001, T201 - a program of one file that prints

import json
import sys
from pathlib import Path

folder, file, mutual = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]


def text(name: str) -> str:
    """A file of the Secret, as a string of the text form."""
    try:
        return json.dumps((folder / name).read_text("ascii"))
    except FileNotFoundError:
        sys.exit(f"the Secret has no {name}: it needs tls.crt, tls.key and, for mTLS, ca.crt")


if (ready := folder / "ssl.config").exists():
    config = ready.read_text()
else:
    config = f"server_cert: {text('tls.crt')}\nserver_key: {text('tls.key')}\n"
    if mutual == "true":
        config += f"custom_ca: {text('ca.crt')}\nclient_verify: true\n"
file.write_text(config)
file.chmod(0o440)
print(f"{file} is written")
