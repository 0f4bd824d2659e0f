"""The cluster's certificate authority: one ECDSA P-256 key that signs every certificate of the cluster.

Owns `ca.crt` and `ca.key` and the form of what it signs. Promises: every leaf carries its key usages, its names and
the authority's key identifier, and never outlives the authority; a leaf's key is returned as PEM and kept nowhere
else. It decides nothing about who may have a certificate: `leaves` and the certificate signing controller do. Times
come from a `Clock`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane.machinery import files
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding

CA_DAYS = 3650
LEAF_DAYS = 365
BACKDATE = timedelta(minutes=5)  # clocks of hosts differ a little; a certificate must be valid at once everywhere
_USAGES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM,
                                         serialization.PublicFormat.SubjectPublicKeyInfo)


def subject(common_name: str, organizations: Iterable[str] = ()) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, key_encipherment=True, key_cert_sign=signs, crl_sign=False,
                         content_commitment=False, data_encipherment=False, key_agreement=False,
                         encipher_only=False, decipher_only=False)


def general_name(text: str) -> x509.GeneralName:
    """`127.0.0.1` becomes an IP address, anything else a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


class Authority:
    """A CA certificate with its key; make one with `create`, read one with `load`."""

    def __init__(self, certificate: x509.Certificate, key: CertificateIssuerPrivateKeyTypes,
                 clock: Clock = SYSTEM) -> None:
        self.certificate = certificate
        self._key = key
        self._clock = clock

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @classmethod
    def create(cls, folder: Path, clock: Clock = SYSTEM, name: str = "kubernetes") -> Authority:
        """A new authority, stored as `ca.crt` and `ca.key` in `folder`. The key is stored first: a certificate is never
        there without it."""
        key = new_key()
        now = datetime.fromtimestamp(clock.now(), UTC)
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject(name)).issuer_name(subject(name)).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE).not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256()))
        made = cls(certificate, key, clock)
        files.write(folder / "ca.key", key_pem(key))
        files.write(folder / "ca.crt", made.pem, files.PUBLIC)
        return made

    @classmethod
    def load(cls, folder: Path, clock: Clock = SYSTEM) -> Authority | None:
        """The authority stored in `folder`, None when there is none yet. Raises a Finding when its files do not fit."""
        certificate, key = files.read(folder / "ca.crt"), files.read(folder / "ca.key")
        if certificate is None:
            return None
        fix = f"put the matching key back, or move {folder} away and start anew (every certificate is issued again)"
        if key is None:
            raise Finding(f"{folder}/ca.key is missing", "the cluster's certificates cannot be renewed without it", fix)
        loaded = x509.load_pem_x509_certificate(certificate)
        secret = serialization.load_pem_private_key(key, None)
        if secret.public_key() != loaded.public_key():
            raise Finding(f"{folder}/ca.key does not belong to ca.crt", "nothing it signs would be trusted", fix)
        return cls(loaded, secret, clock)  # type: ignore[arg-type]  # whatever key the operator brought signs

    def issue(self, common_name: str, organizations: Iterable[str] = (), usages: Iterable[str] = ("client",),
              sans: Iterable[str] = (), days: int = LEAF_DAYS) -> Pair:
        """A new key and its certificate. `usages` holds "client", "server" or both; `sans` names and addresses."""
        key = new_key()
        certificate = self.sign(key.public_key(), subject(common_name, organizations),
                                [_USAGES[u] for u in usages], sans, timedelta(days=days))
        return Pair(certificate, key_pem(key))

    def sign(self, public: CertificatePublicKeyTypes, name: x509.Name, usages: Iterable[x509.ObjectIdentifier],
             sans: Iterable[str], lifetime: timedelta) -> bytes:
        """The PEM of a leaf for another's key: also what a CertificateSigningRequest comes to."""
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        issuer = self.certificate.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(self.certificate.subject).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE).not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer),  # type: ignore[arg-type]
                           critical=False))
        if names := [general_name(s) for s in sans]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
