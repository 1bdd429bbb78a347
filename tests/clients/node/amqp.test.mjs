// The unmodified Node.js SDKs over AMQP: devices and modules (also through WebSockets), and services.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { NoRetry, Message: ServiceMessage } = require('azure-iot-common');
const { Client: ServiceClient } = require('azure-iothub');

const hub = Hub.running();

const newId = () => `amqp-${randomUUID().slice(0, 8)}`;

const called = (call) => new Promise((resolve, reject) => call((error, result) => (error ? reject(error) : resolve(result))));

async function connect(connectionString, transport, kind = Client) {
  const client = kind.fromConnectionString(connectionString, transport);
  client.setRetryPolicy(new NoRetry());
  await client.open();
  return client;
}

for (const [name, transport] of [['amqp', Amqp], ['amqp-ws', AmqpWs]]) {
  describe(name, () => {
    test('telemetry arrives with its properties, in order', async () => {
      const id = newId();
      const client = await connect(await hub.createDevice(id), transport);
      const events = await hub.events(id);
      const message = new Message(JSON.stringify({ speed: 7 }));
      message.messageId = 'm-1';
      message.contentType = 'application/json';
      message.contentEncoding = 'utf-8';
      message.properties.add('a b', 'c&d=e/f+g%');
      await client.sendEvent(message);
      await Promise.all([...Array(200).keys()].map((n) => client.sendEvent(new Message(String(n)))));
      const [first, ...rest] = await events.wait(201);
      assert.deepEqual(first.body, { speed: 7 });
      assert.equal(first.systemProperties.messageId, 'm-1');
      assert.equal(first.systemProperties.contentType, 'application/json');
      assert.deepEqual(first.properties, { 'a b': 'c&d=e/f+g%' });
      assert.deepEqual(rest.map((event) => event.body), [...Array(200).keys()]);
      events.close();
      await client.close();
    });

    test('methods and twin', async () => {
      const id = newId();
      const client = await connect(await hub.createDevice(id), transport);
      client.onDeviceMethod('add', (request, response) => {
        response.send(200, { sum: request.payload.a + request.payload.b }, () => {});
      });
      const answer = await waitUntil(async () => {
        const reply = await hub.request('POST', `/twins/${id}/methods`, { methodName: 'add', payload: { a: 1, b: 2 } });
        return reply.status === 200 && reply;
      }, 'the method to be subscribed');
      assert.deepEqual(answer.body, { status: 200, payload: { sum: 3 } });

      const twin = await client.getTwin();
      const patches = [];
      twin.on('properties.desired', (patch) => patches.push(patch));
      await called((done) => twin.properties.reported.update({ level: 4 }, done));
      await waitUntil(async () => {
        await hub.request('PATCH', `/twins/${id}`, { properties: { desired: { mode: 'on' } } });
        return patches.some((patch) => patch.mode === 'on');
      }, 'a desired patch');
      const view = await hub.request('GET', `/twins/${id}`);
      assert.equal(view.body.properties.reported.level, 4);
      await assert.rejects(called((done) => twin.properties.reported.update({ 'a.b': 1 }, done)));
      await client.close();
    });

    test('a wrong key is refused', async () => {
      const id = newId();
      const right = await hub.createDevice(id);
      const wrong = right.replace(/SharedAccessKey=.*/, 'SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=');
      await assert.rejects(connect(wrong, transport), { name: 'UnauthorizedError' });
    });
  });
}

describe('services over AMQP', () => {
  test('cloud-to-device messages completed, abandoned and rejected, with feedback', async () => {
    const id = newId();
    const client = await connect(await hub.createDevice(id), Amqp);
    const service = ServiceClient.fromConnectionString(hub.owner);
    await service.open();
    const records = [];
    const receiver = await called((done) => service.getFeedbackReceiver(done));
    receiver.on('message', (message) => {
      records.push(...JSON.parse(message.data.toString()).filter((record) => record.deviceId === id));
      receiver.complete(message, () => {});
    });

    const seen = [];
    client.on('message', (message) => {
      const body = message.data.toString();
      seen.push(body);
      // Not in the tick of the delivery: rhea merges outcomes of neighbours that are settled together.
      setTimeout(() => {
        if (body === 'reject') client.reject(message, () => {});
        else if (body === 'abandon' && seen.filter((other) => other === body).length < 3) client.abandon(message, () => {});
        else client.complete(message, () => {});
      }, 50 * seen.length);
    });
    for (const body of ['complete', 'abandon', 'reject']) {
      const message = new ServiceMessage(body);
      message.ack = 'full';
      message.messageId = `${id}-${body}`;
      message.properties.add('kind', body);
      await service.send(id, message);
    }
    await waitUntil(() => records.length === 3, 'three feedback records', 60);
    const statuses = Object.fromEntries(records.map((record) => [record.originalMessageId.slice(id.length + 1), record.statusCode]));
    assert.deepEqual(statuses, { complete: 'Success', abandon: 'Success', reject: 'Rejected' });
    assert.equal(seen.filter((body) => body === 'abandon').length, 3);
    await assert.rejects(service.send('nobody-of-this-name', new ServiceMessage('x')), { name: 'DeviceNotFoundError' });
    await service.close();
    await client.close();
  });

  test('a full queue is said so', async () => {
    const id = newId();
    await hub.createDevice(id);
    const service = ServiceClient.fromConnectionString(hub.owner);
    await service.open();
    for (let n = 0; n < 50; n += 1) await service.send(id, new ServiceMessage(String(n)));
    await assert.rejects(service.send(id, new ServiceMessage('one too many')), {
      name: 'DeviceMaximumQueueDepthExceededError',
    });
    await service.close();
  });
});

test('a module sends telemetry and has a twin', async () => {
  const id = newId();
  await hub.createDevice(id);
  const answer = await hub.request('PUT', `/devices/${id}/modules/m1`, { deviceId: id, moduleId: 'm1' });
  const key = answer.body.authentication.symmetricKey.primaryKey;
  const client = await connect(`HostName=${hub.host};DeviceId=${id};ModuleId=m1;SharedAccessKey=${key}`, Amqp, ModuleClient);
  const events = await hub.events(id);
  await client.sendEvent(new Message('"from a module"'));
  const [event] = await events.wait(1);
  assert.equal(event.moduleId, 'm1');
  const twin = await client.getTwin();
  await called((done) => twin.properties.reported.update({ level: 1 }, done));
  const view = await hub.request('GET', `/twins/${id}/modules/m1`);
  assert.equal(view.body.properties.reported.level, 1);
  events.close();
  await client.close();
});
