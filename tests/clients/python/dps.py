"""Device provisioning for tests: enrollments over REST, and certificates."""

import base64
import datetime
import hashlib
import hmac
import os
from pathlib import Path

import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hub import parse_connection_string, read_env, sas_token


class Provisioning:
    """The provisioning service of a hub, with owner rights."""

    def __init__(self, hub):
        if hub.data_dir:
            values = read_env(Path(hub.data_dir) / "connection.env")
        else:
            values = {name: os.environ["HOLDFAST_TEST_" + name[9:]] for name in ("HOLDFAST_DPS_CS", "HOLDFAST_ID_SCOPE")}
        self.ca = hub.ca
        self.ca_pem = hub.ca_pem
        self.id_scope = values["HOLDFAST_ID_SCOPE"]
        parts = parse_connection_string(values["HOLDFAST_DPS_CS"])
        self.host, self.policy, self.key = (
            parts[name] for name in ("HostName", "SharedAccessKeyName", "SharedAccessKey")
        )

    def request(self, method, path, **kwargs):
        headers = {"Authorization": sas_token(self.host, self.key, self.policy), **kwargs.pop("headers", {})}
        return requests.request(
            method,
            f"https://{self.host}{path}",
            headers=headers,
            params={"api-version": "2021-10-01"},
            verify=self.ca,
            timeout=30,
            **kwargs,
        )

    def put(self, path, attestation, **body):
        response = self.request("PUT", path, json={"attestation": attestation, **body})
        assert response.status_code == 200, response.text
        return response.json()

    def enroll(self, registration_id, attestation=None, **body):
        """An individual enrollment, by key unless told otherwise."""
        attestation = attestation or {"type": "symmetricKey"}
        return self.put(f"/enrollments/{registration_id}", attestation, registrationId=registration_id, **body)

    def group(self, group_id, attestation=None, **body):
        attestation = attestation or {"type": "symmetricKey"}
        return self.put(f"/enrollmentGroups/{group_id}", attestation, enrollmentGroupId=group_id, **body)

    def registration(self, registration_id):
        response = self.request("GET", f"/registrations/{registration_id}")
        assert response.status_code == 200, response.text
        return response.json()


def primary_key(enrollment):
    return enrollment["attestation"]["symmetricKey"]["primaryKey"]


def derive_key(group_key, registration_id):
    digest = hmac.new(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def client_certificates(pem):
    return {"type": "x509", "x509": {"clientCertificates": {"primary": {"certificate": pem}}}}


def signing_certificates(pem):
    return {"type": "x509", "x509": {"signingCertificates": {"primary": {"certificate": pem}}}}


class Certificate:
    """A certificate with its key; signed by `issuer` or by itself."""

    def __init__(self, name, issuer=None, is_ca=False, expired=False):
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        begin, end = now - datetime.timedelta(days=2), now + datetime.timedelta(days=-1 if expired else 10)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .sign((issuer or self).key, hashes.SHA256())
        )

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def files(self, directory, *chain):
        """Writes certificate (with `chain`) and key; gives both paths."""
        certificate, key = directory / "device.pem", directory / "device.key"
        certificate.write_text(self.pem + "".join(one.pem for one in chain))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(certificate), str(key)
