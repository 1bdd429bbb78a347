// Events of the hub itself, as the unmodified Node.js SDKs cause and read them: azure-iothub and azure-iot-device make
// things happen, @azure/event-hubs reads the built-in endpoint.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { connectionString, read } from './eventhub.mjs';
import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client: DeviceClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { JobClient, Registry } = require('azure-iothub');
const { EventHubConsumerClient } = require('@azure/event-hubs');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);
const DEFINITION = '/holdfast/v1/routing/definition';
const SCHEMAS = {
  deviceLifecycleEvents: 'deviceLifecycleNotification',
  twinChangeEvents: 'twinChangeNotification',
  deviceConnectionStateEvents: 'deviceConnectionStateNotification',
  deviceJobLifecycleEvents: 'deviceJobLifecycleNotification',
};

let definition;
let consumer;
let readings;

before(async () => {
  definition = (await hub.request('GET', DEFINITION)).body;
  const sources = Object.keys(SCHEMAS);
  const routes = sources.map((source) => ({ name: source, source, condition: 'true', endpointNames: ['events'], isEnabled: true }));
  const answer = await hub.request('PUT', DEFINITION, { routes });
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  consumer = new EventHubConsumerClient('$Default', connectionString(hub));
  const partitions = await consumer.getPartitionIds();
  const starts = await Promise.all(partitions.map((partition) => consumer.getPartitionProperties(partition)));
  readings = starts.map(({ partitionId, lastEnqueuedSequenceNumber }) =>
    read(consumer, partitionId, { sequenceNumber: lastEnqueuedSequenceNumber, isInclusive: false }),
  );
});

after(async () => {
  await Promise.all(readings.map((reading) => reading.subscription.close()));
  await consumer.close();
  await hub.request('PUT', DEFINITION, {});
  await hub.request('PUT', DEFINITION, definition);
});

const annotation = (event, name) => event.systemProperties[name];
const has = (event, who) => event.properties?.deviceId === who || event.properties?.jobId === who;
/** Waits for `count` events of a device or job; no more may be there. */
async function eventsOf(who, count) {
  const found = () => readings.flatMap((reading) => reading.events).filter((event) => has(event, who));
  await waitUntil(() => found().length >= count, `${count} events of ${who}`, 30);
  const events = found();
  const names = events.map((event) => `${annotation(event, 'iothub-message-source')} ${event.properties.opType}`);
  assert.equal(events.length, count, names.join(', '));
  for (const event of events) {
    assert.equal(event.properties.hubName, hub.host.split('.')[0]);
    assert.equal(event.properties['iothub-message-schema'], SCHEMAS[annotation(event, 'iothub-message-source')]);
    assert.match(event.properties.operationTimestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$/);
    assert.equal(event.contentType, 'application/json');
    assert.equal(annotation(event, 'iothub-connection-auth-method'), undefined);
  }
  return { events, names };
}

test('a device is created, changed, connected and deleted', async () => {
  const deviceId = `node-${randomUUID().slice(0, 8)}`;
  const client = DeviceClient.fromConnectionString(await hub.createDevice(deviceId), Mqtt);
  await registry.updateTwin(deviceId, { tags: { site: 'north' } }, '*');
  await client.open();
  const twin = await client.getTwin();
  await new Promise((resolve, reject) => twin.properties.reported.update({ t: 5 }, (error) => (error ? reject(error) : resolve())));
  await client.close();
  await eventsOf(deviceId, 5);
  await registry.delete(deviceId);
  const { events, names } = await eventsOf(deviceId, 6);
  const of = (source) => names.filter((name) => name.startsWith(source)).map((name) => name.slice(source.length + 1));
  assert.deepEqual(of('deviceLifecycleEvents'), ['createDeviceIdentity', 'deleteDeviceIdentity']);
  assert.deepEqual(of('twinChangeEvents'), ['updateTwin', 'updateTwin']);
  assert.deepEqual(of('deviceConnectionStateEvents'), ['deviceConnected', 'deviceDisconnected']);
  const body = (name, nth = 0) => events.filter((event) => event.properties.opType === name)[nth].body;
  assert.deepEqual([body('createDeviceIdentity').deviceId, body('createDeviceIdentity').version], [deviceId, 1]);
  assert.deepEqual(body('updateTwin').tags, { site: 'north' });
  assert.equal(body('updateTwin', 1).properties.reported.t, 5);
  assert.equal(body('updateTwin', 1).tags, undefined, 'only what has changed');
  const numbers = [body('deviceConnected').sequenceNumber, body('deviceDisconnected').sequenceNumber];
  assert.ok(numbers[0] < numbers[1] && numbers[1].length === 64, numbers.join(' '));
  for (const event of events) assert.equal(annotation(event, 'iothub-connection-device-id'), deviceId);
});

test('a job is created, cancelled and told of', async () => {
  const jobs = JobClient.fromConnectionString(hub.owner);
  const id = `node-${randomUUID().slice(0, 8)}`;
  const later = new Date(Date.now() + 3_600_000);
  await jobs.scheduleTwinUpdate(id, "deviceId = 'nobody'", { etag: '*', tags: { a: 1 } }, later, 60);
  await jobs.cancelJob(id);
  const { events, names } = await eventsOf(id, 2);
  assert.deepEqual(names, ['deviceJobLifecycleEvents createJob', 'deviceJobLifecycleEvents updateJob']);
  assert.deepEqual(events.map((event) => event.body.status), ['scheduled', 'cancelled']);
  assert.equal(annotation(events[0], 'iothub-connection-device-id'), undefined);
});
