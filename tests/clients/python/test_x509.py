"""Certificates: thumbprints and certificate authorities, with the unmodified device SDK."""

import datetime

import pytest
from azure.iot.device import IoTHubDeviceClient, X509
from azure.iot.device.exceptions import CredentialError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hub import wait_until


class Certificate:
    """A certificate and its key, made for a test."""

    def __init__(self, name, issuer=None, ca=False, valid=True):
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.issuer = issuer or self
        now = datetime.datetime.now(datetime.timezone.utc)
        start = now - datetime.timedelta(days=2)
        end = now + datetime.timedelta(days=1 if valid else -1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        self.certificate = builder.sign(self.issuer.key, hashes.SHA256())

    @property
    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def thumbprint(self, algorithm):
        return self.certificate.fingerprint(algorithm).hex()

    def files(self, directory, *chain):
        """The SDK's view: files of the chain (leaf first) and of the key."""
        certificate = directory / "certificate.pem"
        key = directory / "key.pem"
        certificate.write_text("".join(entry.pem for entry in (self, *chain)))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return X509(cert_file=str(certificate), key_file=str(key))


def connect(hub, device_id, credential, websockets):
    client = IoTHubDeviceClient.create_from_x509_certificate(
        credential, hub.host, device_id, websockets=websockets, server_verification_cert=hub.ca_pem
    )
    try:
        client.connect()
        client.send_message("let in")
    finally:
        client.shutdown()


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])
@pytest.mark.parametrize("slot", ["primaryThumbprint", "secondaryThumbprint"])
def test_thumbprint(hub, device_id, websockets, tmp_path, algorithm, slot):
    certificate = Certificate(device_id)
    thumbprints = {"primaryThumbprint": "A" * 40, slot: certificate.thumbprint(algorithm)}
    hub.create_device(device_id, authentication={"type": "selfSigned", "x509Thumbprint": thumbprints})
    connect(hub, device_id, certificate.files(tmp_path), websockets)


def test_foreign_and_expired_certificates_are_refused(hub, device_id, websockets, tmp_path):
    expired = Certificate(device_id, valid=False)
    thumbprint = {"primaryThumbprint": expired.thumbprint(hashes.SHA256())}
    hub.create_device(device_id, authentication={"type": "selfSigned", "x509Thumbprint": thumbprint})
    for certificate in (Certificate(device_id), expired):
        with pytest.raises(CredentialError):
            connect(hub, device_id, certificate.files(tmp_path), websockets)


@pytest.fixture
def authority(hub, device_id):
    """A root, uploaded and verified by proof of possession."""
    root = Certificate(f"root of {device_id}", ca=True)
    name = f"ca-{device_id}"
    uploaded = hub.request("PUT", f"/holdfast/v1/certificates/{name}", json={"certificate": root.pem})
    assert uploaded.status_code in (200, 201), uploaded.text
    code = hub.request("POST", f"/holdfast/v1/certificates/{name}/generateVerificationCode").json()
    proof = Certificate(code["properties"]["verificationCode"], issuer=root)
    verified = hub.request("POST", f"/holdfast/v1/certificates/{name}/verify", json={"certificate": proof.pem})
    assert verified.status_code == 200, verified.text
    assert verified.json()["properties"]["isVerified"] is True
    return root


def test_certificate_authority(hub, device_id, authority, websockets, tmp_path):
    hub.create_device(device_id, authentication={"type": "certificateAuthority"})
    intermediate = Certificate("intermediate", issuer=authority, ca=True)
    second = Certificate("second intermediate", issuer=intermediate, ca=True)
    connect(hub, device_id, Certificate(device_id, issuer=authority).files(tmp_path), websockets)
    deep = Certificate(device_id, issuer=second)
    connect(hub, device_id, deep.files(tmp_path, second, intermediate), websockets)


def test_wrong_name_and_unknown_authority_are_refused(hub, device_id, authority, websockets, tmp_path):
    hub.create_device(device_id, authentication={"type": "certificateAuthority"})
    stranger = Certificate("nobody's root", ca=True)
    for certificate in (Certificate("another-device", issuer=authority), Certificate(device_id, issuer=stranger)):
        with pytest.raises(CredentialError):
            connect(hub, device_id, certificate.files(tmp_path), websockets)


def test_unverified_authority_lets_nobody_in(hub, device_id, tmp_path):
    root = Certificate(f"unproven {device_id}", ca=True)
    hub.request("PUT", f"/holdfast/v1/certificates/un-{device_id}", json={"certificate": root.pem})
    hub.create_device(device_id, authentication={"type": "certificateAuthority"})
    with pytest.raises(CredentialError):
        connect(hub, device_id, Certificate(device_id, issuer=root).files(tmp_path), False)
    wait_until(lambda: not hub.connected(device_id), "the device to be shown as disconnected")
