// The unmodified Node.js service client of provisioning: what operators do beyond the devices of dps.test.mjs.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { authority } from './certificates.mjs';
import { Hub } from './hub.mjs';

const require = createRequire(import.meta.url);
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Http } = require('azure-iot-provisioning-device-http');
const { ProvisioningServiceClient } = require('azure-iot-provisioning-service');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');

const hub = Hub.running();
const service = ProvisioningServiceClient.fromConnectionString(hub.provisioner);
const newId = () => `node-${randomUUID().slice(0, 8)}`;
const byKey = { type: 'symmetricKey' };

/** All pages of a query. */
async function all(query) {
  const pages = [];
  do {
    pages.push(await new Promise((resolve, reject) => query.next((error, page) => (error ? reject(error) : resolve(page)))));
  } while (query.continuationToken);
  return pages;
}

// With a callback: without one, this version of the SDK never settles its promise.
const bulk = (mode, enrollments) =>
  new Promise((resolve, reject) =>
    service.runBulkEnrollmentOperation({ mode, enrollments }, (error, result) => (error ? reject(error) : resolve(result))),
  );

/** Status of a rejected call. */
async function refusal(promise) {
  const error = await assert.rejects(promise).then(() => promise.catch((reason) => reason));
  return error.response?.statusCode;
}

describe('groups with the service client', () => {
  test('they are made, changed under their tag, and deleted', async () => {
    const id = newId();
    const twin = { tags: { line: 4 }, properties: { desired: { interval: 5 } } };
    const wanted = { enrollmentGroupId: id, attestation: byKey, allocationPolicy: 'hashed', initialTwin: twin };
    const { responseBody: made } = await service.createOrUpdateEnrollmentGroup(wanted);
    assert.deepEqual([made.enrollmentGroupId, made.provisioningStatus, made.initialTwin.tags], [id, 'enabled', { line: 4 }]);
    const { responseBody: before } = await service.getEnrollmentGroupAttestationMechanism(id);
    const { responseBody: read } = await service.getEnrollmentGroup(id);
    assert.equal(read.attestation.symmetricKey.primaryKey, undefined, 'keys are told by their own call only');
    const { responseBody: changed } = await service.createOrUpdateEnrollmentGroup({ ...read, provisioningStatus: 'disabled' });
    assert.notEqual(changed.etag, read.etag);
    const { responseBody: after } = await service.getEnrollmentGroupAttestationMechanism(id);
    assert.deepEqual(after.symmetricKey, before.symmetricKey, 'a group that is written back keeps its keys');
    assert.equal(await refusal(service.createOrUpdateEnrollmentGroup({ ...read, provisioningStatus: 'enabled' })), 412);
    assert.equal(await refusal(service.deleteEnrollmentGroup(read)), 412);
    await service.deleteEnrollmentGroup(changed);
    assert.equal(await refusal(service.getEnrollmentGroup(id)), 404);
    assert.equal(await refusal(service.deleteEnrollmentGroup(id)), 404);
  });

  test('certificates are described, and come with their content when asked for', async () => {
    const [id, ca] = [newId(), authority('Line CA')];
    const x509 = { signingCertificates: { primary: { certificate: ca.cert } } };
    const wanted = { enrollmentGroupId: id, attestation: { type: 'x509', x509 } };
    await service.createOrUpdateEnrollmentGroup(wanted);
    const { responseBody: read } = await service.getEnrollmentGroup(id);
    const { primary } = read.attestation.x509.signingCertificates;
    assert.match(primary.info.subjectName, /Line CA/);
    assert.match(primary.info.sha256Thumbprint, /^[0-9A-F]{64}$/);
    await service.createOrUpdateEnrollmentGroup({ ...read, capabilities: { iotEdge: true } });
    const { responseBody: mechanism } = await service.getEnrollmentGroupAttestationMechanism(id);
    assert.equal(mechanism.type, 'x509');
    assert.equal(mechanism.x509.signingCertificates.primary.info.sha256Thumbprint, primary.info.sha256Thumbprint);
    const leaf = { type: 'x509', x509: { signingCertificates: { primary: { certificate: ca.issue('leaf').cert } } } };
    assert.equal(await refusal(service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: newId(), attestation: leaf })), 400);
  });

  test('lists of devices survive what the client writes', async () => {
    const id = newId();
    await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: id, attestation: byKey });
    const path = `/holdfast/v1/enrollmentGroups/${id}/access`;
    const asService = Object.assign(Hub.running(), { parts: partsOf(hub.provisioner) });
    assert.equal((await asService.request('PUT', path, { deny: ['press-13'] })).status, 200);
    const { responseBody: read } = await service.getEnrollmentGroup(id);
    await service.createOrUpdateEnrollmentGroup({ ...read, capabilities: { iotEdge: true } });
    assert.deepEqual((await asService.request('GET', path)).body.deny, ['press-13']);
  });

  test('queries give every group once, page by page', async () => {
    const ids = [newId(), newId(), newId()];
    for (const id of ids) await service.createOrUpdateEnrollmentGroup({ enrollmentGroupId: id, attestation: byKey });
    const pages = await all(service.createEnrollmentGroupQuery({ query: 'SELECT * FROM enrollmentGroups' }, 2));
    assert.ok(pages.every((page) => page.length <= 2));
    const found = pages.flat().map((group) => group.enrollmentGroupId);
    assert.equal(new Set(found).size, found.length);
    for (const id of ids) assert.ok(found.includes(id), id);
    await assert.rejects(all(service.createEnrollmentGroupQuery({ query: 'SELECT x FROM enrollmentGroups' })));
  });
});

describe('bulk operations with the service client', () => {
  const entry = (registrationId, more = {}) => ({ registrationId, attestation: byKey, ...more });

  test('each entry succeeds or fails for itself', async () => {
    const [one, two, three] = [newId(), newId(), newId()];
    assert.equal((await bulk('create', [entry(one), entry(two)])).isSuccessful, true);
    const mixed = await bulk('create', [entry(two), entry(three)]);
    assert.deepEqual([mixed.isSuccessful, mixed.errors.map((error) => error.registrationId)], [false, [two]]);
    assert.equal(mixed.errors[0].errorCode, 409201);
    assert.ok(mixed.errors[0].errorStatus);
    await service.getIndividualEnrollment(three);
    const absent = await bulk('update', [entry(one, { provisioningStatus: 'disabled' }), entry(newId())]);
    assert.equal(absent.errors.length, 1);
    const { responseBody: read } = await service.getIndividualEnrollment(one);
    assert.equal(read.provisioningStatus, 'disabled');
    const matched = await bulk('updateIfMatchETag', [{ ...read, provisioningStatus: 'enabled' }]);
    assert.equal(matched.isSuccessful, true);
    const stale = await bulk('updateIfMatchETag', [{ ...read, provisioningStatus: 'enabled' }]);
    assert.deepEqual([stale.isSuccessful, stale.errors[0].registrationId], [false, one]);
    assert.equal((await bulk('delete', [one, two, three].map((id) => entry(id)))).isSuccessful, true);
    for (const id of [one, two, three]) assert.equal(await refusal(service.getIndividualEnrollment(id)), 404);
  });

  test('ten entries at once, and no more', async () => {
    const ids = Array.from({ length: 11 }, newId);
    await assert.rejects(bulk('create', ids.map((id) => entry(id))));
    assert.equal(await refusal(service.getIndividualEnrollment(ids[0])), 404);
    assert.equal((await bulk('create', ids.slice(1).map((id) => entry(id)))).isSuccessful, true);
    assert.equal((await bulk('delete', ids.slice(1).map((id) => entry(id)))).isSuccessful, true);
  });
});

describe('registrations with the service client', () => {
  test('a state is read, deleted under its tag, and made again', async () => {
    const id = newId();
    const { responseBody: made } = await service.createOrUpdateIndividualEnrollment({ registrationId: id, attestation: byKey });
    assert.equal(await refusal(service.getDeviceRegistrationState(id)), 404);
    const { responseBody: mechanism } = await service.getIndividualEnrollmentAttestationMechanism(id);
    const security = new SymmetricKeySecurityClient(id, mechanism.symmetricKey.primaryKey);
    await ProvisioningDeviceClient.create(hub.host, hub.idScope, new Http(), security).register();
    const { responseBody: state } = await service.getDeviceRegistrationState(id);
    assert.deepEqual([state.registrationId, state.status, state.assignedHub], [id, 'assigned', hub.host]);
    const { responseBody: enrollment } = await service.getIndividualEnrollment(id);
    assert.equal(enrollment.registrationState.status, 'assigned');
    assert.equal(enrollment.etag, made.etag, 'a registration is no change of the enrollment');
    assert.equal(await refusal(service.deleteDeviceRegistrationState(id, 'AAAA')), 412);
    await service.deleteDeviceRegistrationState(state);
    assert.equal(await refusal(service.getDeviceRegistrationState(id)), 404);
  });
});

function partsOf(text) {
  return Object.fromEntries(text.split(';').map((part) => [part.slice(0, part.indexOf('=')), part.slice(part.indexOf('=') + 1)]));
}
