// The unmodified Node.js provisioning SDKs: devices over MQTT and AMQP, both also over WebSocket, and over
// HTTPS, and the service client.

import assert from 'node:assert/strict';
import { createHmac, randomUUID } from 'node:crypto';
import http from 'node:http';
import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { authority, selfSigned } from './certificates.mjs';
import { Hub } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client } = require('azure-iot-device');
const { Mqtt: HubMqtt } = require('azure-iot-device-mqtt');
const { NoRetry } = require('azure-iot-common');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Amqp, AmqpWs } = require('azure-iot-provisioning-device-amqp');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');

const hub = Hub.running();
const service = ProvisioningServiceClient.fromConnectionString(hub.provisioner);
const newId = () => `node-${randomUUID().slice(0, 8)}`;
const byKey = { type: 'symmetricKey' };

async function enroll(registrationId, body = {}) {
  const { responseBody } = await service.createOrUpdateIndividualEnrollment({ registrationId, attestation: byKey, ...body });
  return responseBody;
}

/** The key of an enrollment, read the way tools do. */
async function keyOf(registrationId) {
  const { responseBody } = await service.getIndividualEnrollmentAttestationMechanism(registrationId);
  return responseBody.symmetricKey.primaryKey;
}

const derive = (key, id) => createHmac('sha256', Buffer.from(key, 'base64')).update(id).digest('base64');

function device(registrationId, key, transport) {
  const security = new SymmetricKeySecurityClient(registrationId, key);
  return ProvisioningDeviceClient.create(hub.host, hub.idScope, transport, security);
}

/** Connects to the assigned hub and reads the desired properties. */
async function desiredOf(result, credential) {
  const text = `HostName=${result.assignedHub};DeviceId=${result.deviceId};`;
  const client = Client.fromConnectionString(text + (credential.key ? `SharedAccessKey=${credential.key}` : 'x509=true'), HubMqtt);
  client.setRetryPolicy(new NoRetry());
  await client.setOptions({ ca: hub.ca, ...credential.x509 });
  await client.open();
  const twin = await client.getTwin();
  await client.close();
  return twin.properties.desired;
}

const transports = [
  ['mqtt', Mqtt],
  ['mqtt-ws', MqttWs],
  ['https', Http],
  ['amqp', Amqp],
  ['amqp-ws', AmqpWs],
];

for (const [name, Transport] of transports) {
  describe(`provisioning over ${name}`, () => {
    const transport = () => new Transport();

    test('an individual enrollment by key, with the initial twin', async () => {
      const id = newId();
      await enroll(id, { initialTwin: { tags: { line: 4 }, properties: { desired: { interval: 5 } } } });
      const key = await keyOf(id);
      const result = await device(id, key, transport()).register();
      assert.deepEqual([result.status, result.assignedHub, result.deviceId], ['assigned', hub.host, id]);
      assert.equal(result.substatus, 'initialAssignment');
      assert.equal((await desiredOf(result, { key })).interval, 5);
    });

    test('a group by key', async () => {
      const [id, group] = [newId(), newId()];
      await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: group, attestation: byKey });
      const { responseBody } = await service.getEnrollmentGroupAttestationMechanism(group);
      const key = derive(responseBody.symmetricKey.primaryKey, id);
      const result = await device(id, key, transport()).register();
      assert.equal(result.status, 'assigned');
      await desiredOf(result, { key });
    });

    test('an individual enrollment by certificate', async () => {
      const id = newId();
      const x509 = selfSigned(id);
      const attestation = { type: 'x509', x509: { clientCertificates: { primary: { certificate: x509.cert } } } };
      await enroll(id, { attestation });
      const client = ProvisioningDeviceClient.create(hub.host, hub.idScope, transport(), new X509Security(id, x509));
      const result = await client.register();
      assert.equal(result.status, 'assigned');
      await desiredOf(result, { x509 });
      const impostor = new X509Security(id, selfSigned(id));
      await assert.rejects(ProvisioningDeviceClient.create(hub.host, hub.idScope, transport(), impostor).register());
    });

    test('a group by certificate', async () => {
      const [id, group] = [newId(), newId()];
      const ca = authority('Crew CA');
      const attestation = { type: 'x509', x509: { signingCertificates: { primary: { certificate: ca.cert } } } };
      await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: group, attestation });
      const register = (name, x509) =>
        ProvisioningDeviceClient.create(hub.host, hub.idScope, transport(), new X509Security(name, x509)).register();
      const x509 = ca.issue(id);
      const result = await register(id, x509);
      assert.deepEqual([result.status, result.deviceId], ['assigned', id]);
      await desiredOf(result, { x509 });
      await assert.rejects(register(newId(), x509), 'a registration id that is not the common name');
      await assert.rejects(register(id, authority('Crew CA').issue(id)), 'an authority of the same name');
    });

    test('a foreign id scope and an unknown device', async () => {
      const id = newId();
      await enroll(id);
      const security = new SymmetricKeySecurityClient(id, await keyOf(id));
      await assert.rejects(ProvisioningDeviceClient.create(hub.host, '0ne00000000', transport(), security).register());
      await assert.rejects(device(newId(), derive('AAAA', id), transport()).register());
    });

    test('a hub that takes its time to be chosen', async () => {
      const id = newId();
      let asked = 0;
      const webhook = http.createServer((request, response) => {
        let text = '';
        request.on('data', (chunk) => (text += chunk));
        request.on('end', () => {
          asked += 1;
          const { linkedHubs, deviceRuntimeContext } = JSON.parse(text);
          const answer = { iotHubHostName: linkedHubs[0], payload: { echo: deviceRuntimeContext.payload } };
          // Longer than the service waits with its first answer, so the device is told to ask again.
          setTimeout(() => response.end(JSON.stringify(answer)), 1500);
        });
      });
      await new Promise((resolve) => webhook.listen(0, '127.0.0.1', resolve));
      const webhookUrl = `http://127.0.0.1:${webhook.address().port}/choose`;
      const custom = { allocationPolicy: 'custom', customAllocationDefinition: { webhookUrl, apiVersion: '2021-10-01' } };
      await enroll(id, custom);
      const client = device(id, await keyOf(id), transport());
      client.setProvisioningPayload({ batch: 7 });
      const result = await client.register();
      webhook.close();
      assert.deepEqual([result.status, asked], ['assigned', 1]);
      assert.deepEqual(result.payload, { echo: { batch: 7 } });
    });

    test('a wrong key and a disabled enrollment', async () => {
      const id = newId();
      await enroll(id, { provisioningStatus: 'disabled' });
      const key = await keyOf(id);
      await assert.rejects(device(id, derive(key, 'x'), transport()).register());
      await assert.rejects(device(id, key, transport()).register());
    });

    test('registering again', async () => {
      const id = newId();
      await enroll(id, { initialTwin: { tags: {}, properties: { desired: { fresh: true } } } });
      const key = await keyOf(id);
      const client = device(id, key, transport());
      await client.register();
      const patch = { properties: { desired: { fresh: null, worn: 1 } } };
      assert.equal((await hub.request('PATCH', `/twins/${id}`, patch)).status, 200);
      const again = await device(id, key, transport()).register();
      assert.equal((await desiredOf(again, { key })).worn, 1);
      await enroll(id, {
        initialTwin: { tags: {}, properties: { desired: { fresh: true } } },
        reprovisionPolicy: { updateHubAssignment: true, migrateDeviceData: false },
      });
      const reset = await device(id, key, transport()).register();
      assert.equal(reset.substatus, 'deviceDataReset');
      assert.equal((await desiredOf(reset, { key })).fresh, true);
    });
  });
}

describe('the provisioning service client', () => {
  test('enrollments live', async () => {
    const id = newId();
    const made = await enroll(id, { capabilities: { iotEdge: true } });
    const { responseBody: read } = await service.getIndividualEnrollment(id);
    assert.deepEqual([read.registrationId, read.etag, read.capabilities.iotEdge], [id, made.etag, true]);
    assert.equal(read.attestation.symmetricKey.primaryKey, undefined);
    // The client sends the tag as it got it.
    const { responseBody: disabled } = await service.createOrUpdateIndividualEnrollment({ ...read, provisioningStatus: 'disabled' });
    assert.equal(disabled.provisioningStatus, 'disabled');
    await assert.rejects(service.deleteIndividualEnrollment({ ...read }), 'a stale tag');
    await service.deleteIndividualEnrollment(id);
    await assert.rejects(service.getIndividualEnrollment(id));
  });

  test('queries have pages', async () => {
    const ids = [newId(), newId(), newId()];
    for (const id of ids) await enroll(id);
    const query = service.createIndividualEnrollmentQuery({ query: 'SELECT * FROM enrollments' }, 2);
    const found = [];
    do {
      const items = await new Promise((resolve, reject) =>
        query.next((error, page) => (error ? reject(error) : resolve(page))),
      );
      assert.ok(items.length <= 2);
      found.push(...items.map((item) => item.registrationId));
    } while (query.continuationToken);
    for (const id of ids) assert.ok(found.includes(id), id);
  });

  test('bulk operations, groups and registrations', async () => {
    const [id, group] = [newId(), newId()];
    // With a callback: without one, this version of the SDK never settles its promise.
    const bulk = (mode) =>
      new Promise((resolve, reject) => {
        const entries = [{ registrationId: id, attestation: byKey }];
        service.runBulkEnrollmentOperation({ mode, enrollments: entries }, (error, result) => (error ? reject(error) : resolve(result)));
      });
    assert.equal((await bulk('create')).isSuccessful, true);
    const again = await bulk('create');
    assert.deepEqual([again.isSuccessful, again.errors[0].registrationId], [false, id]);
    assert.equal((await bulk('delete')).isSuccessful, true);
    await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: group, attestation: byKey });
    const { responseBody: mechanism } = await service.getEnrollmentGroupAttestationMechanism(group);
    await device(id, derive(mechanism.symmetricKey.primaryKey, id), new Mqtt()).register();
    const { responseBody: state } = await service.getDeviceRegistrationState(id);
    assert.deepEqual([state.status, state.assignedHub], ['assigned', hub.host]);
    const query = service.createEnrollmentGroupDeviceRegistrationStateQuery({ query: 'SELECT *' }, group);
    const items = await new Promise((resolve, reject) => query.next((error, page) => (error ? reject(error) : resolve(page))));
    assert.deepEqual(items.map((item) => item.registrationId), [id]);
    await service.deleteDeviceRegistrationState(id);
    await service.deleteEnrollmentGroup(group);
    await assert.rejects(service.getEnrollmentGroup(group));
  });

  test('a caller without the right is turned away', async () => {
    const stranger = hub.provisioner.replace(/SharedAccessKey=.*/, 'SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==');
    await assert.rejects(ProvisioningServiceClient.fromConnectionString(stranger).getIndividualEnrollment('x'));
  });
});
