"""TLS as the files in the settings describe it. Imported only for https."""

from __future__ import annotations

import ssl

from otelperf.errors import ConfigError


def context(
    certificate: str | None, client_certificate: str | None, client_key: str | None, section: str = "export"
) -> ssl.SSLContext:
    """Return a context that trusts *certificate* (or the system's), and shows the client's own where given.

    *section* of the settings is where the files are named, if one cannot be used. Raises ConfigError.
    """
    try:
        made = ssl.create_default_context(cafile=certificate)
        if client_certificate:
            # An empty password: without one OpenSSL asks the terminal for that of an encrypted key, and waits.
            made.load_cert_chain(client_certificate, client_key, password="")
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(path for path in (certificate, client_certificate, client_key) if path)
        keys = ", ".join(f"{section}.{key}" for key in ("certificate", "client_certificate", "client_key"))
        msg = f"cannot use the TLS files {named}: {error.strerror or error}; check {keys}"
        raise ConfigError(msg) from error
    return made
