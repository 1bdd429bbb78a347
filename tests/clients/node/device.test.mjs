// The unmodified Node.js device SDK over MQTT, MQTT over WebSocket, and HTTPS.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { describe, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client, Message } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Http } = require('azure-iot-device-http');
const { NoRetry } = require('azure-iot-common');

const hub = Hub.running();

const newId = () => `node-${randomUUID().slice(0, 8)}`;

async function connect(connectionString, transport) {
  const client = Client.fromConnectionString(connectionString, transport);
  client.setRetryPolicy(new NoRetry());
  await client.setOptions({ ca: hub.ca });
  await client.open();
  return client;
}

for (const [name, transport] of [['mqtt', Mqtt], ['mqtt-ws', MqttWs]]) {
  describe(name, () => {
    test('telemetry arrives with its properties', async () => {
      const id = newId();
      const client = await connect(await hub.createDevice(id), transport);
      const events = await hub.events(id);
      const message = new Message(JSON.stringify({ speed: 7 }));
      message.messageId = 'm-1';
      message.contentType = 'application/json';
      message.contentEncoding = 'utf-8';
      message.properties.add('a b', 'c&d=e/f+g%');
      await client.sendEvent(message);
      const [event] = await events.wait(1);
      assert.deepEqual(event.body, { speed: 7 });
      assert.equal(event.systemProperties.messageId, 'm-1');
      assert.deepEqual(event.properties, { 'a b': 'c&d=e/f+g%' });
      events.close();
      await client.close();
    });

    test('cloud-to-device messages, methods and twin', async () => {
      const id = newId();
      const client = await connect(await hub.createDevice(id), transport);
      const messages = [];
      client.on('message', (message) => {
        messages.push(message);
        client.complete(message, () => {});
      });
      client.onDeviceMethod('add', (request, response) => {
        response.send(200, { sum: request.payload.a + request.payload.b }, () => {});
      });
      await hub.sendC2d(id, 'hello', { messageId: 'x', properties: { k: 'v = w' } });
      await waitUntil(() => messages.length === 1, 'the message');
      assert.equal(messages[0].data.toString(), 'hello');
      assert.equal(messages[0].messageId, 'x');
      assert.equal(messages[0].properties.getValue('k'), 'v = w');

      const answer = await waitUntil(async () => {
        const reply = await hub.request('POST', `/twins/${id}/methods`, { methodName: 'add', payload: { a: 1, b: 2 } });
        return reply.status === 200 && reply;
      }, 'the method to be subscribed');
      assert.deepEqual(answer.body, { status: 200, payload: { sum: 3 } });

      const twin = await client.getTwin();
      const patches = [];
      twin.on('properties.desired', (patch) => patches.push(patch));
      await new Promise((resolve, reject) =>
        twin.properties.reported.update({ level: 4 }, (error) => (error ? reject(error) : resolve())),
      );
      await waitUntil(async () => {
        await hub.request('PATCH', `/twins/${id}`, { properties: { desired: { mode: 'on' } } });
        return patches.some((patch) => patch.mode === 'on');
      }, 'a desired patch');
      const view = await hub.request('GET', `/twins/${id}`);
      assert.equal(view.body.properties.reported.level, 4);
      await assert.rejects(
        new Promise((resolve, reject) =>
          twin.properties.reported.update({ 'a.b': 1 }, (error) => (error ? reject(error) : resolve())),
        ),
      );
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

describe('https', () => {
  const open = async (connectionString) => {
    const client = Client.fromConnectionString(connectionString, Http);
    client.setRetryPolicy(new NoRetry());
    await client.setOptions({ ca: hub.ca, http: { receivePolicy: { interval: 1 } } });
    await client.open();
    return client;
  };

  test('single and batch telemetry', async () => {
    const id = newId();
    const client = await open(await hub.createDevice(id));
    const events = await hub.events(id);
    const message = new Message('one');
    message.messageId = 'm-1';
    message.properties.add('key', 'value');
    await client.sendEvent(message);
    await client.sendEventBatch([new Message('two'), new Message('three')]);
    const received = await events.wait(3);
    assert.deepEqual(received.map((event) => event.body), ['one', 'two', 'three']);
    assert.equal(received[0].systemProperties.messageId, 'm-1');
    assert.deepEqual(received[0].properties, { key: 'value' });
    events.close();
    await client.close();
  });

  test('receive, complete, abandon and reject', async () => {
    const id = newId();
    const client = await open(await hub.createDevice(id));
    const seen = [];
    const settled = [];
    client.on('message', (message) => {
      const text = message.data.toString();
      seen.push(text);
      const abandon = text === 'twice' && seen.filter((other) => other === 'twice').length === 1;
      const verb = abandon ? 'abandon' : text === 'never' ? 'reject' : 'complete';
      client[verb](message, (error) => settled.push(error ?? verb));
    });
    for (const text of ['once', 'twice', 'never']) await hub.sendC2d(id, text, { messageId: text, ack: 'full' });
    await waitUntil(() => settled.length >= 4, 'four settlements');
    assert.deepEqual([...settled].sort(), ['abandon', 'complete', 'complete', 'reject']);
    const device = await hub.request('GET', `/devices/${id}`);
    assert.equal(device.body.cloudToDeviceMessageCount, 0);
    await client.close();
  });
});
