// Ten thousand events of devices over AMQP while the hub is killed: the reader goes on at its checkpoint, and nothing
// acknowledged is missing.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Checkpoints, connectionString } from './eventhub.mjs';
import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { EventHubConsumerClient, earliestEventPosition } = require('@azure/event-hubs');
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { NoRetry } = require('azure-iot-common');

const hub = Hub.running();
const EVENTS = 10_000;
const DEVICES = 4;
const WINDOW = 100;

/** Sends numbers in order, a window at a time; what was not acknowledged is sent again, in order. */
async function publish(text, transport, count, acknowledged) {
  let client;
  const connect = () =>
    waitUntil(async () => {
      client = Client.fromConnectionString(text, transport);
      client.setRetryPolicy(new NoRetry());
      client.on('error', () => {});
      return client.open().then(() => true, () => false);
    }, 'the device to connect', 60);
  await connect();
  for (let first = 0; first < count; first += WINDOW) {
    let open = [...Array(WINDOW).keys()].map((n) => first + n);
    while (open.length > 0) {
      const outcomes = await Promise.allSettled(open.map((n) => client.sendEvent(new Message(String(n)))));
      acknowledged.count += outcomes.filter(({ status }) => status === 'fulfilled').length;
      open = open.filter((_, index) => outcomes[index].status === 'rejected');
      if (open.length > 0) await connect();
    }
  }
  await client.close();
}

test('everything acknowledged arrives in order over kill -9', { timeout: 150_000 }, async () => {
  const client = new EventHubConsumerClient('$Default', connectionString(hub));
  const startPosition = {};
  const begin = {};
  for (const n of ['0', '1', '2', '3']) {
    begin[n] = (await client.getPartitionProperties(n)).lastEnqueuedSequenceNumber;
    startPosition[n] = begin[n] < 0 ? earliestEventPosition : { sequenceNumber: begin[n] };
  }
  await client.close();
  const devices = [...Array(DEVICES)].map(() => `crash-${randomUUID().slice(0, 8)}`);
  const numbers = Object.fromEntries(devices.map((id) => [id, new Map()]));
  const sequence = Object.fromEntries(Object.keys(begin).map((n) => [n, new Set()]));

  const options = { loadBalancingOptions: { strategy: 'greedy', updateIntervalInMs: 1000 }, retryOptions: { retryDelayInMs: 500 } };
  const reader = new EventHubConsumerClient('$Default', connectionString(hub), new Checkpoints(), options);
  let batches = 0;
  reader.subscribe(
    {
      processEvents: async (events, context) => {
        for (const event of events) {
          sequence[context.partitionId].add(event.sequenceNumber);
          const seen = numbers[event.systemProperties['iothub-connection-device-id']];
          if (seen && !seen.has(event.body)) seen.set(event.body, event.sequenceNumber);
        }
        batches += 1;
        // Not after each batch: what came after the last checkpoint comes again when the partition is opened anew.
        if (events.length > 0 && batches % 3 === 0) await context.updateCheckpoint(events.at(-1));
      },
      processError: async () => {},
    },
    { startPosition, maxBatchSize: 200, maxWaitTimeInSeconds: 0.2 },
  );

  const acknowledged = { count: 0 };
  const senders = devices.map(async (id, n) => publish(await hub.createDevice(id), n % 2 ? AmqpWs : Amqp, EVENTS / DEVICES, acknowledged));
  await waitUntil(() => acknowledged.count > EVENTS / 4, 'a quarter of the events to be acknowledged', 60);
  assert.ok(acknowledged.count < EVENTS, 'the hub was to be killed in the middle');
  await hub.restart('SIGKILL');
  await Promise.all(senders);
  const total = () => Object.values(numbers).reduce((sum, seen) => sum + seen.size, 0);
  await waitUntil(() => total() === EVENTS, 'all events', 90);
  await reader.close();
  for (const id of devices) {
    // What a device sends again for want of an acknowledgement comes twice; the first of each stands in order.
    const entries = [...numbers[id]].sort(([, one], [, other]) => one - other);
    assert.deepEqual(entries.map(([n]) => n), [...Array(EVENTS / DEVICES).keys()], id);
  }
  for (const [n, seen] of Object.entries(sequence)) {
    const sorted = [...seen].sort((one, other) => one - other);
    const expected = sorted.map((_, index) => begin[n] + 1 + index);
    assert.deepEqual(sorted, expected, `a stored event of partition ${n} was passed over`);
  }
});
