// The unmodified Node.js service SDK: configurations of devices, edge deployments, content for one device.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client: DeviceClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { Registry } = require('azure-iothub');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);

const newId = () => `node-${randomUUID().slice(0, 8)}`;
const twinOf = async (deviceId) => (await registry.getTwin(deviceId)).responseBody;
const moduleTwinOf = async (deviceId, moduleId) => (await registry.getModuleTwin(deviceId, moduleId)).responseBody;

test('a configuration has a life cycle and reaches a connected device', async () => {
  const deviceId = newId();
  const { authentication } = (await registry.create({ deviceId })).responseBody;
  const host = /HostName=([^;]+)/.exec(hub.owner)[1];
  const key = authentication.symmetricKey.primaryKey;
  const device = DeviceClient.fromConnectionString(`HostName=${host};DeviceId=${deviceId};SharedAccessKey=${key}`, Mqtt);
  await device.open();
  const twin = await device.getTwin();
  const heard = [];
  twin.on('properties.desired.unit', (delta) => heard.push(delta));

  const id = newId();
  const configuration = {
    id,
    schemaVersion: '1.0',
    labels: { owner: 'ops' },
    content: { deviceContent: { 'properties.desired.unit': { speed: 3 } } },
    targetCondition: `deviceId = '${deviceId}'`,
    priority: 10,
  };
  const created = (await registry.addConfiguration(configuration)).responseBody;
  assert.equal(created.id, id);
  assert.equal(created.systemMetrics.queries.targetedCount, `select deviceId from devices where deviceId = '${deviceId}'`);
  await waitUntil(() => heard.some((delta) => delta.speed === 3), 'the device to hear of its configuration');
  assert.deepEqual((await twinOf(deviceId)).configurations, { [id]: { status: 'Applied' } });
  await assert.rejects(registry.addConfiguration(configuration), { name: 'DeviceAlreadyExistsError' });

  assert.ok((await registry.getConfigurations()).responseBody.some((one) => one.id === id));
  const read = (await registry.getConfiguration(id)).responseBody;
  assert.equal(read.etag, created.etag);
  const updated = (await registry.updateConfiguration({ ...read, priority: 20 })).responseBody;
  assert.equal(updated.priority, 20);
  await assert.rejects(registry.updateConfiguration({ ...read, priority: 30 }), { name: 'InvalidEtagError' });
  const forced = (await registry.updateConfiguration({ ...read, priority: 30 }, true)).responseBody;
  assert.equal(forced.priority, 30);
  await registry.removeConfiguration(id);
  await assert.rejects(registry.getConfiguration(id));
  await waitUntil(async () => !('unit' in (await twinOf(deviceId)).properties.desired), 'the properties to be removed');
  await device.close();
});

test('bad configurations are refused with the place of the fault', async () => {
  const content = { deviceContent: { 'properties.desired.a': 1 } };
  const bad = { id: newId(), content, targetCondition: 'tags.a =', priority: 1 };
  await assert.rejects(registry.addConfiguration(bad), (error) => {
    assert.equal(error.response.headers['iothub-errorcode'], 'InvalidConfigurationTargetCondition');
    assert.match(error.responseBody, /line 1, column/);
    return true;
  });
});

const manifest = (image) => ({
  modulesContent: {
    $edgeAgent: { 'properties.desired': { schemaVersion: '1.1', modules: { m: { settings: { image } } } } },
    $edgeHub: { 'properties.desired': { schemaVersion: '1.1', routes: {} } },
    m: { 'properties.desired': { image } },
  },
});

test('a deployment outranks content that was applied to one device', async () => {
  const deviceId = newId();
  await registry.create({ deviceId, capabilities: { iotEdge: true } });
  await registry.applyConfigurationContentOnDevice(deviceId, manifest('by hand'));
  assert.equal((await moduleTwinOf(deviceId, 'm')).properties.desired.image, 'by hand');
  assert.equal((await moduleTwinOf(deviceId, '$edgeAgent')).properties.desired.modules.m.settings.image, 'by hand');

  const id = newId();
  const condition = `deviceId = '${deviceId}'`;
  await registry.addConfiguration({ id, content: manifest('deployed'), targetCondition: condition, priority: 1 });
  const image = async () => (await moduleTwinOf(deviceId, 'm')).properties.desired.image;
  await waitUntil(async () => (await image()) === 'deployed', 'the deployment to be applied');
  await registry.applyConfigurationContentOnDevice(deviceId, manifest('by hand'));
  await waitUntil(async () => (await image()) === 'deployed', 'the deployment to be applied again');
  const shown = (await moduleTwinOf(deviceId, '$edgeAgent')).configurations;
  assert.deepEqual(shown, { [id]: { status: 'Applied' } });
  await registry.removeConfiguration(id);
});
