"""A signer of PodCertificateRequests as users bring their own: an authority of a moment."""

from __future__ import annotations

import base64
import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KEY, NAME = ec.generate_private_key(ec.SECP256R1()), x509.Name([])


def answer(request: dict[str, Any], now: float, hours: int = 24, refresh: int = 12) -> dict[str, Any]:
    """The status that answers `request`: a certificate for its key, with the pod's name in it. `now` is seconds since
    the epoch."""
    begin = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    times = [begin, begin + datetime.timedelta(hours=refresh), begin + datetime.timedelta(hours=hours)]
    key = x509.load_der_x509_csr(base64.b64decode(request["spec"]["stubPKCS10Request"])).public_key()
    made = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(key).serial_number(
        x509.random_serial_number()).not_valid_before(times[0]).not_valid_after(times[2]).add_extension(
        x509.SubjectAlternativeName([x509.DNSName(request["spec"]["podName"])]), critical=True).sign(
        KEY, hashes.SHA256())
    told = [t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in times]
    return {"conditions": [condition("Issued", told[0])], "notBefore": told[0], "beginRefreshAt": told[1],
            "notAfter": told[2], "certificateChain": made.public_bytes(serialization.Encoding.PEM).decode()}


def authority(name: str, now: float) -> str:
    """The certificate of an authority of this name, PEM."""
    begin = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateBuilder().subject_name(own).issuer_name(own).public_key(KEY.public_key()).serial_number(
        x509.random_serial_number()).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(hours=24)
        ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(KEY, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def condition(kind: str, at: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": "ByTest", "message": "", "lastTransitionTime": at}
