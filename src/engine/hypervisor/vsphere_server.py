"""A vCenter or ESXi host, and how it proves that it is the one."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..secrets import SecretPlace

DEFAULT_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Server:
    """What is to be connected to.

    Args:
        name, port: Of vCenter or an ESXi host.
        user: Who logs in.
        password: Where the password is; it is read at every login and kept nowhere.
        ca_file: Certificates that may have signed the server's.
        certificate: A file with the server's own: no other is taken.
        insecure: The certificate is not looked at.
        timeout_seconds: Of one call.
    """

    name: str
    user: str
    password: SecretPlace
    port: int = 443
    ca_file: str = ""
    certificate: str = ""
    insecure: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS

    def __str__(self) -> str:
        return self.name if self.port == 443 else f"{self.name}:{self.port}"


class _Pinned(ssl.SSLContext):
    """Takes one certificate only, whatever that one has signed."""

    wanted: bytes

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        wrapped = super().wrap_socket(*arguments, **options)
        if wrapped.getpeercert(binary_form=True) != self.wanted:
            wrapped.close()
            error = ssl.SSLCertVerificationError(1, "another certificate than the pinned one")
            error.verify_message = "it has another certificate than the one that is pinned"
            raise error
        return wrapped


def tls_context(server: Server) -> ssl.SSLContext:
    """How the server proves who it is. Never left to a library's default.

    Raises:
        UsageError: More than one way is named, or a file holds no certificate.
    """
    ways = [server.ca_file, server.certificate, "insecure" if server.insecure else ""]
    if sum(map(bool, ways)) > 1:
        raise UsageError(
            f"{server} is to be checked in more than one way",
            "set one of ca_file, certificate and insecure",
        )
    if server.insecure:
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.verify_mode = ssl.CERT_NONE
        return bare
    file = server.certificate or server.ca_file
    try:
        if server.certificate:
            with open(server.certificate, encoding="ascii") as pem:
                found = re.search(
                    r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?",
                    pem.read(),
                    re.DOTALL,
                )
            if found is None:
                raise ValueError("it holds no certificate")
            pinned = _Pinned(ssl.PROTOCOL_TLS_CLIENT)
            pinned.check_hostname = False  # the certificate itself is the name
            pinned.verify_mode = ssl.CERT_REQUIRED
            pinned.wanted = ssl.PEM_cert_to_DER_cert(found[0])
            pinned.load_verify_locations(cadata=pinned.wanted)
            pinned.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            return pinned
        return ssl.create_default_context(cafile=server.ca_file or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UsageError(
            f"{file} cannot be used to check {server}: {error}", "give a certificate as PEM"
        ) from None
