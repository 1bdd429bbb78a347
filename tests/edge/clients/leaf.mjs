// A device behind an edge device, on the unmodified Azure IoT device SDK for Node.js. Arguments and output are those of
// leaf.py; `transport` may be Mqtt, MqttWs, Amqp or AmqpWs.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { setTimeout as sleep } from 'node:timers/promises';

const require = createRequire(new URL('../../clients/node/package.json', import.meta.url));
const { Client, Message } = require('azure-iot-device');
const transports = {
  Mqtt: () => require('azure-iot-device-mqtt').Mqtt,
  MqttWs: () => require('azure-iot-device-mqtt').MqttWs,
  Amqp: () => require('azure-iot-device-amqp').Amqp,
  AmqpWs: () => require('azure-iot-device-amqp').AmqpWs,
};

const options = JSON.parse(process.argv[2]);
const say = (event, rest = {}) => process.stdout.write(`${JSON.stringify({ event, ...rest })}\n`);
process.on('SIGTERM', () => process.exit(0));

const client = Client.fromConnectionString(options.connectionString, transports[options.transport]());
await client.setOptions({ ca: readFileSync(options.ca, 'utf8') });
for (;;) {
  try {
    await client.open();
    break;
  } catch (error) {
    say(error.name === 'UnauthorizedError' ? 'refused' : 'unreachable', { why: String(error) });
    await sleep(1000);
  }
}
say('connected');
client.onDeviceMethod('echo', (request, response) => {
  say('method', { name: request.methodName, payload: request.payload });
  response.send(200, request.payload, () => {});
});
if (options.cloudToDevice) {
  client.on('message', (message) => {
    say('told', { text: message.getData().toString() });
    client.complete(message, () => {});
  });
}
const twin = await client.getTwin();
say('twin', { twin: { desired: twin.properties.desired, reported: twin.properties.reported } });
twin.on('properties.desired', (patch) => {
  say('desired', { patch });
  const { $version, ...rest } = patch;
  if (Object.keys(rest).length > 0) twin.properties.reported.update(rest, () => {});
});
say('ready');
for (let number = 1; number <= (options.messages ?? 0); number += 1) {
  const message = new Message(JSON.stringify({ number }));
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('number', String(number));
  for (;;) {
    try {
      await client.sendEvent(message);
      say('sent', { number });
      break;
    } catch (error) {
      say('unsent', { number, why: String(error) });
      await sleep(300);
    }
  }
  if (options.delay) await sleep(options.delay * 1000);
}
say('done');
setInterval(() => {}, 1 << 30);
