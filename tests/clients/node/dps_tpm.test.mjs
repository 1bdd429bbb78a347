// Attestation by TPM with the unmodified Node.js SDKs and a software TPM, over HTTPS and AMQP: what the provisioning
// service sends must be what a TPM takes.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import https from 'node:https';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';

import { Hub } from './hub.mjs';
import { SoftwareTpm } from './swtpm.mjs';

const require = createRequire(import.meta.url);
const { Client, Message } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { NoRetry } = require('azure-iot-common');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Amqp, AmqpWs } = require('azure-iot-provisioning-device-amqp');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { TpmSecurityClient, TpmAuthenticationProvider } = require('azure-iot-security-tpm');

const hub = Hub.running();
const service = ProvisioningServiceClient.fromConnectionString(hub.provisioner);
const newId = () => `tpm-${randomUUID().slice(0, 8)}`;

let tpm;
let other;

before(async () => {
  tpm = await SoftwareTpm.start();
  other = await SoftwareTpm.start();
});

after(async () => {
  await tpm?.stop();
  await other?.stop();
});

/** The callback methods of the SDK's TPM client as promises. */
const ask = (security, method, ...values) =>
  new Promise((resolve, reject) => security[method](...values, (error, value) => (error ? reject(error) : resolve(value))));

/** A device with a TPM, by its registration id. */
const securityOf = (id, chip = tpm) => new TpmSecurityClient(id, chip.client());

async function enroll(id, chip = tpm, body = {}) {
  const endorsementKey = (await ask(securityOf(id, chip), 'getEndorsementKey')).toString('base64');
  const attestation = { type: 'tpm', tpm: { endorsementKey } };
  const { responseBody } = await service.createOrUpdateIndividualEnrollment({ registrationId: id, attestation, ...body });
  return responseBody;
}

async function register(id, Transport, security = securityOf(id)) {
  const transport = new Transport();
  try {
    return await ProvisioningDeviceClient.create(hub.host, hub.idScope, transport, security).register();
  } finally {
    // The SDK leaves the connection of a TPM that was not assigned open.
    await new Promise((resolve) => transport.disconnect(resolve));
  }
}

/** Connects to the hub with a token that the TPM signs, sends an event, reads the twin. */
async function use(result, security) {
  const provider = TpmAuthenticationProvider.fromTpmSecurityClient(result.registrationState.deviceId, result.registrationState.assignedHub, security);
  const client = Client.fromAuthenticationProvider(provider, Mqtt);
  client.setRetryPolicy(new NoRetry());
  await client.setOptions({ ca: hub.ca });
  await client.open();
  await client.sendEvent(new Message('from a TPM'));
  const twin = await client.getTwin();
  await client.close();
  return twin.properties.desired;
}

for (const [name, Transport] of [['https', Http], ['amqp', Amqp], ['amqp-ws', AmqpWs]]) {
  describe(`a TPM over ${name}`, () => {
    test('registers and uses its hub', async () => {
      const id = newId();
      const initialTwin = { tags: {}, properties: { desired: { interval: 5 } } };
      const made = await enroll(id, tpm, { initialTwin });
      assert.equal(made.attestation.tpm.endorsementKey.length > 300, true);
      const security = securityOf(id);
      const result = await register(id, Transport, security);
      const state = result.registrationState;
      assert.deepEqual([result.status, state.assignedHub, state.deviceId], ['assigned', hub.host, id]);
      assert.equal((await use(result, security)).interval, 5);
      // Again, with the same hub key under a new seal.
      const again = await register(id, Transport, security);
      assert.notEqual(again.registrationState.tpm.authenticationKey, state.tpm.authenticationKey);
      await use(again, security);
    });

    test('is refused when its enrollment is disabled', async () => {
      const id = newId();
      await enroll(id, tpm, { provisioningStatus: 'disabled' });
      await assert.rejects(register(id, Transport));
    });
  });
}

/** A request of a device without the SDK. */
function put(id, body, headers = {}) {
  const path = `/${hub.idScope}/registrations/${id}/register?api-version=2019-03-31`;
  const payload = JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const options = { host: hub.host, path, method: 'PUT', ca: hub.ca, agent: false };
    const request = https.request({ ...options, headers: { 'Content-Type': 'application/json', ...headers } }, (response) => {
      let text = '';
      response.on('data', (chunk) => (text += chunk));
      response.on('end', () => resolve({ status: response.statusCode, body: text ? JSON.parse(text) : {} }));
    });
    request.on('error', reject);
    request.end(payload);
  });
}

describe('TPM challenges', () => {
  // Over HTTPS alone: the SDK's AMQP client never calls back when a challenge is refused to it.
  test('are for the enrolled TPM', async () => {
    const id = newId();
    await enroll(id, other);
    await assert.rejects(register(id, Http));
    await assert.rejects(register(newId(), Http), 'not enrolled');
    const security = securityOf(id, other);
    await use(await register(id, Http, security), security);
  });

  /** The token that a challenge asks for, signed in the TPM. */
  async function answer(id, security, blob) {
    await ask(security, 'activateIdentityKey', Buffer.from(blob, 'base64'));
    const resource = encodeURIComponent(`${hub.idScope}/registrations/${id}`);
    const expiry = Math.floor(Date.now() / 1000) + 600;
    const signature = await ask(security, 'signWithIdentity', Buffer.from(`${resource}\n${expiry}`));
    const signed = encodeURIComponent(signature.toString('base64'));
    return `SharedAccessSignature sr=${resource}&sig=${signed}&se=${expiry}&skn=registration`;
  }

  async function device(chip = tpm) {
    const id = newId();
    await enroll(id, chip);
    const security = securityOf(id, chip);
    const [endorsementKey, storageRootKey] = [await ask(security, 'getEndorsementKey'), await ask(security, 'getStorageRootKey')];
    const keys = { endorsementKey: endorsementKey.toString('base64'), storageRootKey: storageRootKey.toString('base64') };
    return { id, security, body: { registrationId: id, tpm: keys } };
  }

  test('answered once, and not again', async () => {
    const { id, security, body } = await device();
    const challenge = await put(id, body);
    assert.deepEqual([challenge.status, challenge.body.keyName], [401, 'registration']);
    const Authorization = await answer(id, security, challenge.body.authenticationKey);
    assert.equal((await put(id, body, { Authorization })).status, 202);
    const replayed = await put(id, body, { Authorization });
    assert.deepEqual([replayed.status, replayed.body.authenticationKey], [401, undefined]);
    // The TPM takes the old blob again; the service does not take what it signs then.
    const again = await answer(id, security, challenge.body.authenticationKey);
    assert.equal((await put(id, body, { Authorization: again })).status, 401);
    // Another device's token, with the right key for another id.
    const next = await put(id, body);
    const foreign = await answer(newId(), security, next.body.authenticationKey);
    assert.equal((await put(id, body, { Authorization: foreign })).status, 401);
  });

  test('keys that are none are refused', async () => {
    const { id, body } = await device();
    for (const [change, status] of [
      [{ tpm: { ...body.tpm, storageRootKey: 'AAAA' } }, 400],
      [{ tpm: { ...body.tpm, storageRootKey: undefined } }, 400],
      [{ tpm: { ...body.tpm, storageRootKey: '%' } }, 400],
      [{ tpm: { ...body.tpm, storageRootKey: Buffer.alloc(5000).toString('base64') } }, 400],
      [{ tpm: { ...body.tpm, endorsementKey: body.tpm.storageRootKey } }, 401],
      [{ tpm: { ...body.tpm, endorsementKey: '' } }, 401],
      [{ tpm: undefined }, 401],
      [{ tpm: 7 }, 400],
      [{ registrationId: 'another' }, 400],
      [{ tpm: { ...body.tpm, endorsementKey: 'A'.repeat(100_000) } }, 413],
    ]) {
      const refused = await put(id, { ...body, ...change });
      assert.deepEqual([refused.status, refused.body.authenticationKey], [status, undefined], JSON.stringify(change).slice(0, 80));
    }
    for (const endorsementKey of ['', 'AAAA', '%', body.tpm.storageRootKey.slice(0, 100), 'A'.repeat(10_000)]) {
      const enrollment = { registrationId: newId(), attestation: { type: 'tpm', tpm: { endorsementKey } } };
      await assert.rejects(service.createOrUpdateIndividualEnrollment(enrollment), (error) => {
        assert.equal(error.response.statusCode, 400, error.message);
        return true;
      });
    }
  });

  test('a group cannot be attested by TPM', async () => {
    const { body } = await device();
    const group = { enrollmentGroupId: newId(), attestation: { type: 'tpm', tpm: { endorsementKey: body.tpm.endorsementKey } } };
    await assert.rejects(service.createOrUpdateEnrollmentGroup(group));
  });

  test('operators read the endorsement key', async () => {
    const { id, body } = await device();
    const { responseBody: read } = await service.getIndividualEnrollment(id);
    assert.deepEqual([read.attestation.type, read.attestation.tpm.endorsementKey], ['tpm', body.tpm.endorsementKey]);
    const { responseBody: mechanism } = await service.getIndividualEnrollmentAttestationMechanism(id);
    assert.equal(mechanism.tpm.endorsementKey, body.tpm.endorsementKey);
    assert.equal(JSON.stringify(mechanism).includes('primaryKey'), false);
  });
});
