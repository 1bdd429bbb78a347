// The unmodified Node.js service SDK: its REST calls.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Hub } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client: DeviceClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');

const { Client, Registry } = require('azure-iothub');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);

const newId = () => `node-${randomUUID().slice(0, 8)}`;

test('device life cycle', async () => {
  const deviceId = newId();
  const created = (await registry.create({ deviceId, status: 'enabled' })).responseBody;
  assert.equal(created.deviceId, deviceId);
  assert.equal(created.authentication.symmetricKey.primaryKey.length, 44);
  await assert.rejects(registry.create({ deviceId }), { name: 'DeviceAlreadyExistsError' });
  const updated = (await registry.update({ ...created, status: 'disabled', statusReason: 'rest' })).responseBody;
  assert.equal(updated.status, 'disabled');
  assert.equal((await registry.get(deviceId)).responseBody.statusReason, 'rest');
  assert.ok((await registry.list()).responseBody.some((device) => device.deviceId === deviceId));
  await registry.delete(deviceId);
  await assert.rejects(registry.get(deviceId), { name: 'DeviceNotFoundError' });
});

test('bulk operations', async () => {
  const devices = Array.from({ length: 10 }, () => ({ deviceId: newId(), status: 'enabled' }));
  assert.equal((await registry.addDevices(devices)).responseBody.isSuccessful, true);
  const disabled = devices.map((device) => ({ ...device, status: 'disabled' }));
  assert.equal((await registry.updateDevices(disabled, true)).responseBody.isSuccessful, true);
  assert.equal((await registry.get(devices[3].deviceId)).responseBody.status, 'disabled');
  assert.equal((await registry.removeDevices(devices, true)).responseBody.isSuccessful, true);
  await assert.rejects(registry.get(devices[3].deviceId));
});

test('modules', async () => {
  const deviceId = newId();
  await registry.create({ deviceId });
  await registry.addModule({ deviceId, moduleId: 'm' });
  assert.equal((await registry.getModulesOnDevice(deviceId)).responseBody.length, 1);
  assert.equal((await registry.getModule(deviceId, 'm')).responseBody.moduleId, 'm');
  await registry.removeModule(deviceId, 'm');
  await assert.rejects(registry.getModule(deviceId, 'm'));
});

test('twins', async () => {
  const deviceId = newId();
  await registry.create({ deviceId });
  const twin = (await registry.getTwin(deviceId)).responseBody;
  const patch = { tags: { floor: 2 }, properties: { desired: { rate: 1 } } };
  const updated = (await registry.updateTwin(deviceId, patch, twin.etag)).responseBody;
  assert.equal(updated.tags.floor, 2);
  assert.equal(updated.properties.desired.rate, 1);
  await assert.rejects(registry.updateTwin(deviceId, patch, twin.etag), { name: 'InvalidEtagError' });
});

test('statistics', async () => {
  const statistics = (await registry.getRegistryStatistics()).responseBody;
  assert.equal(statistics.totalDeviceCount, statistics.enabledDeviceCount + statistics.disabledDeviceCount);
});

test('direct methods', async () => {
  const deviceId = newId();
  const device = DeviceClient.fromConnectionString(await hub.createDevice(deviceId), Mqtt);
  await device.setOptions({ ca: hub.ca });
  await device.open();
  device.onDeviceMethod('echo', (request, response) => response.send(201, request.payload, () => {}));
  const client = Client.fromConnectionString(hub.owner);
  // The SDK subscribes in the background; the call may come first and then waits for it.
  const call = { methodName: 'echo', payload: { a: [1, null] }, responseTimeoutInSeconds: 10, connectTimeoutInSeconds: 10 };
  const { result } = await client.invokeDeviceMethod(deviceId, call);
  assert.deepEqual(result, { status: 201, payload: { a: [1, null] } });
  await device.close();
});
