"""TLS towards a broker."""

from __future__ import annotations

import ssl

from .. import config
from ..errors import CredentialError


def tls_context(settings: config.Mqtt) -> ssl.SSLContext:
    """A client's TLS 1.2+ context that verifies the peer against ``ca_file`` alone; raises ``CredentialError``.

    ``ca_file`` may hold the revocation list of each of its authorities too; a peer that one names is refused then.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files = [config.credential(file) for file in (settings.ca_file, settings.cert_file, settings.key_file)]
    try:
        context.load_verify_locations(files[0])
        trusted = context.cert_store_stats()
        if 0 < trusted["x509_ca"] <= trusted["crl"]:  # else peers of an authority without a list would all be refused
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if files[1]:
            context.load_cert_chain(files[1], files[2] or None)
    except OSError as error:  # ssl.SSLError is one
        raise CredentialError(
            f"mqtt: certificates {', '.join(filter(None, files))}: {error}",
            "ca_file, cert_file and key_file must be PEM files that belong together and can be read by the service.",
        ) from error
    return context
