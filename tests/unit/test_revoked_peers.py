"""Whose certificate a client or a server takes from a broker."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skywave import config
from skywave.mqtt.tls import tls_context

NOW = datetime.now(UTC)


class Authority:
    """An authority with a name of its own, which issues and revokes."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.name, self.key, authority=True)

    def sign(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, authority: bool = False) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(hours=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("broker")]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def refuses(self, *certificates: x509.Certificate) -> bytes:
        """Its revocation list."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(NOW - timedelta(hours=1)).next_update(NOW + timedelta(days=1))
        for certificate in certificates:
            revoked = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(revoked.revocation_date(NOW).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def broker_of(authority: Authority, folder) -> tuple[x509.Certificate, ssl.SSLContext]:
    """A broker's certificate and its side of a connection."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")]), key)
    file = folder / f"{certificate.serial_number}.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return certificate, context


def shake_hands(client: ssl.SSLContext, broker: ssl.SSLContext) -> None:
    """A whole handshake in memory; raises ``ssl.SSLError`` if the client does not want the broker."""
    to_client, to_broker = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_broker, server_hostname="broker"),
        broker.wrap_bio(to_broker, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert sides[0].version()


def trusting(file, *parts: bytes) -> ssl.SSLContext:
    file.write_bytes(b"".join(parts))
    return tls_context(config.Mqtt(ca_file=str(file)))


def test_a_broker_whose_certificate_is_revoked_is_refused_and_another_is_not(tmp_path):
    fleet = Authority("fleet")
    stolen, stolen_side = broker_of(fleet, tmp_path)
    _, good_side = broker_of(fleet, tmp_path)
    client = trusting(tmp_path / "ca.crt", fleet.pem, fleet.refuses(stolen))
    shake_hands(client, good_side)
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        shake_hands(client, stolen_side)


def test_without_a_list_or_with_an_empty_one_every_broker_of_the_fleet_is_taken(tmp_path):
    fleet = Authority("fleet")
    _, side = broker_of(fleet, tmp_path)
    shake_hands(trusting(tmp_path / "ca.crt", fleet.pem), side)
    shake_hands(trusting(tmp_path / "ca.crt", fleet.pem, fleet.refuses()), side)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(trusting(tmp_path / "ca.crt", Authority("other").pem), side)


def test_while_an_authority_is_replaced_both_are_trusted_and_each_revokes_its_own(tmp_path):
    old, new = Authority("old"), Authority("new")
    old_broker, old_side = broker_of(old, tmp_path)
    new_broker, new_side = broker_of(new, tmp_path)
    both = trusting(tmp_path / "ca.crt", new.pem, old.pem, new.refuses(), old.refuses())
    shake_hands(both, old_side)
    shake_hands(both, new_side)
    only_old = trusting(tmp_path / "ca.crt", new.pem, old.pem, new.refuses(), old.refuses(old_broker))
    shake_hands(only_old, new_side)
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        shake_hands(only_old, old_side)
    unlisted = trusting(tmp_path / "ca.crt", new.pem, old.pem, new.refuses(new_broker))
    shake_hands(unlisted, old_side)  # an authority whose list nobody has: its certificates are taken as before
