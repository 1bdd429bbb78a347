// The unmodified Node.js service SDK: scheduled jobs.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client: DeviceClient } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { JobClient, Registry } = require('azure-iothub');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);
const jobs = JobClient.fromConnectionString(hub.owner);

const newId = () => `node-${randomUUID().slice(0, 8)}`;
/** Jobs, queries and the registry name the body differently. */
const bodyOf = (answer) => answer.jobStatus ?? answer.result ?? answer.responseBody ?? answer;
const jobOf = async (id) => bodyOf(await jobs.getJob(id));

/** All pages of a query; `next` goes on only from the token it is given. */
async function all(query) {
  const items = [];
  for (let page = 0; page < 1000; page += 1) {
    items.push(...bodyOf(await query.next(query.continuationToken)));
    if (!query.hasMoreResults) return items;
  }
  throw new Error('the pages have no end');
}

const ended = (id) =>
  waitUntil(async () => {
    const job = await jobOf(id);
    return ['completed', 'failed', 'cancelled'].includes(job.status) ? job : null;
  }, `the end of ${id}`);

async function fleet(count) {
  const tag = newId();
  const ids = Array.from({ length: count }, (_, number) => `${tag}-${number}`);
  for (const deviceId of ids) {
    await registry.create({ deviceId });
    await registry.updateTwin(deviceId, { tags: { fleet: tag } }, '*');
  }
  return { ids, condition: `tags.fleet = '${tag}'` };
}

test('a scheduled twin update', async () => {
  const { ids, condition } = await fleet(3);
  const id = newId();
  const patch = { etag: '*', tags: { wave: 2 }, properties: { desired: { interval: 5 } } };
  const made = bodyOf(await jobs.scheduleTwinUpdate(id, condition, patch, new Date(), 60));
  assert.equal(made.jobId, id);
  const job = await ended(id);
  assert.equal(job.status, 'completed');
  assert.equal(job.deviceJobStatistics.deviceCount, 3);
  assert.equal(job.deviceJobStatistics.succeededCount, 3);
  const twin = (await registry.getTwin(ids[1])).responseBody;
  assert.equal(twin.tags.wave, 2);
  assert.equal(twin.properties.desired.interval, 5);

  const query = registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${id}'`, 2);
  const rows = await all(query);
  assert.deepEqual(rows.map((row) => row.deviceId).sort(), ids);
  assert.ok(rows.every((row) => row.status === 'completed'));
});

test('a scheduled method', async () => {
  const { ids, condition } = await fleet(2);
  const host = /HostName=([^;]+)/.exec(hub.owner)[1];
  const key = (await registry.get(ids[0])).responseBody.authentication.symmetricKey.primaryKey;
  const device = DeviceClient.fromConnectionString(`HostName=${host};DeviceId=${ids[0]};SharedAccessKey=${key}`, Mqtt);
  await device.open();
  device.onDeviceMethod('reboot', (request, response) => response.send(200, { got: request.payload }));
  // The subscription is there when a call gets through.
  const { Client } = require('azure-iothub');
  const service = Client.fromConnectionString(hub.owner);
  await service.invokeDeviceMethod(ids[0], { methodName: 'reboot', payload: 1, connectTimeoutInSeconds: 10 });

  const id = newId();
  const call = { methodName: 'reboot', payload: { delay: 3 }, responseTimeoutInSeconds: 15 };
  await jobs.scheduleDeviceMethod(id, condition, call, new Date(), 60);
  const job = await ended(id);
  assert.equal(job.status, 'completed');
  assert.equal(job.deviceJobStatistics.succeededCount, 1);
  assert.equal(job.deviceJobStatistics.failedCount, 1);
  const query = registry.createQuery(`SELECT * FROM devices.jobs WHERE jobId = '${id}' AND deviceId = '${ids[0]}'`);
  const [row] = bodyOf(await query.next());
  assert.deepEqual(row.outcome.deviceMethodResponse, { status: 200, payload: { got: { delay: 3 } } });
  await device.close();
});

test('jobs are listed and cancelled', async () => {
  const { condition } = await fleet(1);
  const id = newId();
  const tomorrow = new Date(Date.now() + 24 * 3600 * 1000);
  await jobs.scheduleTwinUpdate(id, condition, { etag: '*', tags: { never: true } }, tomorrow, 60);
  assert.equal((await jobOf(id)).status, 'scheduled');
  const second = newId();
  await jobs.scheduleTwinUpdate(second, condition, { etag: '*', tags: { never: true } }, tomorrow, 60);
  const found = (await all(jobs.createQuery('scheduleUpdateTwin', 'scheduled', 1))).map((job) => job.jobId);
  assert.ok(found.includes(id) && found.includes(second));
  assert.equal(new Set(found).size, found.length);
  await jobs.cancelJob(second);
  await jobs.cancelJob(id);
  assert.equal((await jobOf(id)).status, 'cancelled');
  await assert.rejects(jobs.getJob(newId()));
  await assert.rejects(jobs.scheduleTwinUpdate(newId(), 'tags.a =', { etag: '*', tags: { a: 1 } }, new Date(), 60), {
    name: 'ArgumentError',
  });
});
