// The unmodified Node.js SDKs over AMQP and AMQP over WebSockets: devices and services.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { NoRetry, Message: ServiceMessage } = require('azure-iot-common');
const { Client: ServiceClient, Amqp: ServiceAmqp, AmqpWs: ServiceAmqpWs } = require('azure-iothub');

const hub = Hub.running();

const newId = () => `amqp-${randomUUID().slice(0, 8)}`;

const called = (call) => new Promise((resolve, reject) => call((error, result) => (error ? reject(error) : resolve(result))));

async function connect(connectionString, transport) {
  const client = Client.fromConnectionString(connectionString, transport);
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

for (const [name, transport, deviceTransport] of [['amqp', ServiceAmqp, AmqpWs], ['amqp-ws', ServiceAmqpWs, Amqp]]) {
  test(`a service over ${name}: cloud-to-device messages, feedback as asked for, file notifications`, async () => {
    const id = newId();
    const client = await connect(await hub.createDevice(id), deviceTransport);
    const service = ServiceClient.fromConnectionString(hub.owner, transport);
    await service.open();
    const records = [];
    const receiver = await called((done) => service.getFeedbackReceiver(done));
    receiver.on('message', (message) => {
      records.push(...JSON.parse(message.data.toString()).filter((record) => record.deviceId === id));
      receiver.complete(message, () => {});
    });
    // Nothing uploads files here: the receiver opens and stays empty.
    const files = await called((done) => service.getFileNotificationReceiver(done));
    files.on('message', () => records.push('a file notification'));

    const seen = [];
    client.on('message', (message) => {
      seen.push(message.data.toString());
      client[message.data.toString() === 'reject' ? 'reject' : 'complete'](message, () => {});
    });
    // One at a time: rhea merges outcomes of neighbours that are settled in the same tick.
    for (const [ack, body] of [
      ['none', 'complete'], ['none', 'reject'], ['positive', 'complete'], ['positive', 'reject'],
      ['negative', 'complete'], ['negative', 'reject'], ['full', 'reject'], ['full', 'complete'],
    ]) {
      const message = new ServiceMessage(body);
      message.ack = ack;
      message.messageId = `${id} ${ack} ${body}`;
      message.properties.add('kind', body);
      const before = seen.length;
      await service.send(id, message);
      await waitUntil(() => seen.length > before, `${ack} ${body}`);
    }
    await waitUntil(() => records.some((record) => record.originalMessageId === `${id} full complete`), 'feedback', 60);
    const statuses = records.map((record) => [record.originalMessageId.slice(id.length + 1), record.statusCode]);
    assert.deepEqual(statuses.sort(), [
      ['full complete', 'Success'], ['full reject', 'Rejected'], ['negative reject', 'Rejected'], ['positive complete', 'Success'],
    ]);
    await assert.rejects(service.send('nobody-of-this-name', new ServiceMessage('x')), { name: 'DeviceNotFoundError' });
    await assert.rejects(service.send(id, new ServiceMessage('x'.repeat(70_000))), { name: 'MessageTooLargeError' });
    await service.close();
    await client.close();
  });
}

describe('services over AMQP', () => {
  test('a policy for devices sends no messages and receives no feedback', async () => {
    const id = newId();
    await hub.createDevice(id);
    const { body } = await hub.request('PUT', `/holdfast/v1/policies/${id}`, { rights: 'DeviceConnect' });
    const text = `HostName=${hub.host};SharedAccessKeyName=${id};SharedAccessKey=${body.primaryKey}`;
    for (const transport of [ServiceAmqp, ServiceAmqpWs]) {
      const service = ServiceClient.fromConnectionString(text, transport);
      service.setRetryPolicy(new NoRetry());
      await service.open();
      await assert.rejects(service.send(id, new ServiceMessage('x')), { name: 'UnauthorizedError' });
      await service.close().catch(() => {});
    }
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
