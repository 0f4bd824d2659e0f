"""A certificate for somebody else's key: what an approved CertificateSigningRequest comes to.

Promises that subject and alternative names are those of the request, the usages those that were approved, that it never
makes an authority and never outlives the one that signs. Stateless; the authority's key is an argument. Called by the
certificates controller.

Upstream: pkg/controller/certificates/{authority,signer}.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

BACKDATE = timedelta(minutes=5)  # for clocks of other hosts that are behind; upstream's
_KEY_USAGES = {"signing": "digital_signature", "digital signature": "digital_signature",
               "content commitment": "content_commitment", "key encipherment": "key_encipherment",
               "key agreement": "key_agreement", "data encipherment": "data_encipherment", "cert sign": "key_cert_sign",
               "crl sign": "crl_sign", "encipher only": "encipher_only", "decipher only": "decipher_only"}
_EXTENDED = {"any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE, "server auth": ExtendedKeyUsageOID.SERVER_AUTH,
             "client auth": ExtendedKeyUsageOID.CLIENT_AUTH, "code signing": ExtendedKeyUsageOID.CODE_SIGNING,
             "email protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
             "s/mime": ExtendedKeyUsageOID.EMAIL_PROTECTION,
             "ipsec end system": ObjectIdentifier("1.3.6.1.5.5.7.3.5"),
             "ipsec tunnel": ObjectIdentifier("1.3.6.1.5.5.7.3.6"),
             "ipsec user": ObjectIdentifier("1.3.6.1.5.5.7.3.7"),
             "timestamping": ExtendedKeyUsageOID.TIME_STAMPING, "ocsp signing": ExtendedKeyUsageOID.OCSP_SIGNING,
             "microsoft sgc": ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"),
             "netscape sgc": ObjectIdentifier("2.16.840.1.113730.4.1")}


def sign(request: bytes, usages: Iterable[str], seconds: int, authority: bytes, key: bytes, now: float) -> bytes:
    """The PEM of a certificate for the PKCS #10 `request`; all other texts are PEM too. Raises ValueError."""
    asked = x509.load_pem_x509_csr(request)
    issuer = x509.load_pem_x509_certificate(authority)
    secret: Any = serialization.load_pem_private_key(key, None)
    wanted = list(usages)
    begin = datetime.fromtimestamp(now, UTC)
    end = min(begin + timedelta(seconds=seconds), issuer.not_valid_after_utc)
    flags = dict.fromkeys(_KEY_USAGES.values(), False) | {_KEY_USAGES[u]: True for u in wanted if u in _KEY_USAGES}
    flags |= {"key_cert_sign": False, "crl_sign": False}  # never an authority
    if not flags["key_agreement"]:
        flags |= {"encipher_only": False, "decipher_only": False}
    public: Any = issuer.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(asked.subject).issuer_name(issuer.subject).public_key(asked.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(begin - BACKDATE).not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False))
    if any(flags.values()):
        builder = builder.add_extension(x509.KeyUsage(**flags), critical=True)
    if extended := list(dict.fromkeys(_EXTENDED[u] for u in wanted if u in _EXTENDED)):
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    try:
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        builder = builder.add_extension(names.value, critical=names.critical)
    except x509.ExtensionNotFound:
        pass
    return builder.sign(secret, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
