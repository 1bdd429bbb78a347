// Plug and play: the unmodified Node.js device SDK announces a model, the service SDK talks to its digital twin.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';
import { deliver, open, rhea, sasToken, sender } from './links.mjs';

const require = createRequire(import.meta.url);
const { Client: DeviceClient, Message } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { DigitalTwinClient, IoTHubTokenCredentials } = require('azure-iothub');

const hub = Hub.running();
const service = new DigitalTwinClient(new IoTHubTokenCredentials(hub.owner));
const MODEL = 'dtmi:com:example:Thermostat;1';

async function connect(transport) {
  const deviceId = `node-${randomUUID().slice(0, 8)}`;
  const device = DeviceClient.fromConnectionString(await hub.createDevice(deviceId), transport);
  await device.setOptions({ ca: hub.ca, modelId: MODEL });
  await device.open();
  return { deviceId, device };
}

// This SDK announces models over MQTT only.
test('the model is in telemetry and twin', async () => {
  const { deviceId, device } = await connect(Mqtt);
  const events = await hub.events(deviceId);
  try {
    await device.sendEvent(new Message('{"temperature":20}'));
    const [event] = await events.wait(1);
    assert.equal(event.systemProperties['dt-dataschema'], MODEL);
    const twin = await service.getDigitalTwin(deviceId);
    assert.equal((twin.body ?? twin).$metadata.$model, MODEL);
    assert.equal((await hub.request('GET', `/twins/${deviceId}`)).body.modelId, MODEL);
  } finally {
    events.close();
    await device.close();
  }
});

// As the .NET, Java and C SDKs do it: with the attach of the link.
test('the model is announced over AMQP', async () => {
  const deviceId = `node-${randomUUID().slice(0, 8)}`;
  const key = /SharedAccessKey=(.*)/.exec(await hub.createDevice(deviceId))[1];
  const path = `${hub.host}/devices/${deviceId}`;
  const connection = await open(hub, { username: `${deviceId}@sas.${hub.host}`, password: sasToken(path, key) });
  const events = await hub.events(deviceId);
  try {
    const properties = { 'com.microsoft:model-id': MODEL };
    const link = await sender(connection, `/devices/${deviceId}/messages/events`, { properties });
    await deliver(link, { body: rhea.message.data_section(Buffer.from('1')) });
    const [event] = await events.wait(1);
    assert.equal(event.systemProperties['dt-dataschema'], MODEL);
    assert.equal((await hub.request('GET', `/twins/${deviceId}`)).body.modelId, MODEL);
  } finally {
    events.close();
    connection.close();
  }
});

test('digital twins are read, patched and commanded', async () => {
  const { deviceId, device } = await connect(Mqtt);
  try {
    const twin = await new Promise((resolve, reject) =>
      device.getTwin((error, found) => (error ? reject(error) : resolve(found))),
    );
    const patches = [];
    twin.on('properties.desired', (patch) => patches.push(patch));
    await new Promise((resolve, reject) =>
      twin.properties.reported.update({ thermostat1: { __t: 'c', temperature: 21.5 }, serial: 's1' }, (error) =>
        error ? reject(error) : resolve(),
      ),
    );
    const before = await service.getDigitalTwin(deviceId);
    const view = before.body ?? before;
    assert.equal(view.serial, 's1');
    assert.equal(view.thermostat1.temperature, 21.5);
    assert.equal(view.thermostat1.__t, undefined);

    await service.updateDigitalTwin(deviceId, [{ op: 'add', path: '/thermostat1/target', value: 23 }]);
    await waitUntil(() => patches.some((patch) => patch.thermostat1?.target === 23), 'the desired property');

    for (const method of ['reboot', 'thermostat1*report']) {
      device.onDeviceMethod(method, (request, response) =>
        response.send(202, { method, argument: request.payload }, () => {}),
      );
    }
    const options = { connectTimeoutInSeconds: 10, responseTimeoutInSeconds: 10 };
    const reboot = await service.invokeCommand(deviceId, 'reboot', { delay: 3 }, options);
    assert.deepEqual(payloadOf(reboot), { method: 'reboot', argument: { delay: 3 } });
    const report = await service.invokeComponentCommand(deviceId, 'thermostat1', 'report', 'now', options);
    assert.deepEqual(payloadOf(report), { method: 'thermostat1*report', argument: 'now' });
  } finally {
    await device.close();
  }
});

/** The SDK gives the payload, or an object that has it in `body`, with the status beside it. */
function payloadOf(answer) {
  assert.equal(answer.statusCode ?? answer.xMsCommandStatuscode ?? 202, 202);
  return answer.payload ?? answer.body ?? answer;
}
