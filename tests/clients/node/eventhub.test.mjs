// The unmodified Event Hubs SDK (@azure/event-hubs) against the event endpoint.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { EventHubConsumerClient, EventHubProducerClient, earliestEventPosition, latestEventPosition } = require('@azure/event-hubs');

const hub = Hub.running();
const { SharedAccessKeyName: policy, SharedAccessKey: key } = hub.parts;
const connectionString = `Endpoint=sb://${hub.host}/;SharedAccessKeyName=${policy};SharedAccessKey=${key};EntityPath=events`;

const newConsumer = (options) => new EventHubConsumerClient('$Default', connectionString, options);

/** Reads one partition; `events` and `errors` grow. */
function read(client, partition, startPosition, options = {}) {
  const reading = { events: [], errors: [] };
  reading.subscription = client.subscribe(
    partition,
    {
      processEvents: async (events) => void reading.events.push(...events),
      processError: async (error) => void reading.errors.push(error),
    },
    { startPosition, maxWaitTimeInSeconds: 0.2, ...options },
  );
  return reading;
}

test('properties of the hub and its partitions', async () => {
  const client = newConsumer();
  const properties = await client.getEventHubProperties();
  assert.equal(properties.name, 'events');
  assert.deepEqual(properties.partitionIds, ['0', '1', '2', '3']);
  const partition = await client.getPartitionProperties('0');
  assert.equal(partition.partitionId, '0');
  assert.equal(partition.isEmpty, partition.lastEnqueuedSequenceNumber < 0);
  await client.close();
});

test('sent in batches, read from every position', async () => {
  const run = randomUUID();
  const producer = new EventHubProducerClient(connectionString);
  const client = newConsumer();
  const begin = (await client.getPartitionProperties('1')).lastEnqueuedSequenceNumber;
  const since = new Date();
  const batch = await producer.createBatch({ partitionId: '1' });
  for (let n = 0; n < 10; n += 1) assert.ok(batch.tryAdd({ body: { run, n }, properties: { n: String(n) } }));
  await producer.sendBatch(batch);
  const bodies = (reading) => reading.events.filter((event) => event.body.run === run).map((event) => event.body.n);
  for (const [position, first] of [
    [earliestEventPosition, 0],
    [{ sequenceNumber: begin + 4 }, 4],
    [{ sequenceNumber: begin + 4, isInclusive: true }, 3],
    [{ offset: String(begin + 4) }, 4],
    [{ enqueuedOn: since }, 0],
  ]) {
    const reading = read(client, '1', position);
    await waitUntil(() => bodies(reading).length === 10 - first, `events from ${JSON.stringify(position)}`);
    assert.deepEqual(bodies(reading), [...Array(10).keys()].slice(first));
    await reading.subscription.close();
  }
  await producer.close();
  await client.close();
});

test('a partition key keeps events together', async () => {
  const key = randomUUID();
  const producer = new EventHubProducerClient(connectionString);
  const client = newConsumer();
  const readings = ['0', '1', '2', '3'].map((partition) => read(client, partition, earliestEventPosition));
  for (let n = 0; n < 5; n += 1) await producer.sendBatch([{ body: n }], { partitionKey: key });
  const mine = () => readings.map(({ events }) => events.filter((event) => event.partitionKey === key));
  await waitUntil(() => mine().flat().length === 5, 'five events');
  const [together] = mine().filter((events) => events.length > 0);
  assert.deepEqual(together.map((event) => event.body), [0, 1, 2, 3, 4]);
  await Promise.all(readings.map(({ subscription }) => subscription.close()));
  await producer.close();
  await client.close();
});

test('the same owner level takes over', async () => {
  const [one, two] = [newConsumer(), newConsumer()];
  const first = read(one, '2', latestEventPosition, { ownerLevel: 1 });
  await new Promise((resolve) => setTimeout(resolve, 1000));
  const second = read(two, '2', latestEventPosition, { ownerLevel: 1 });
  await waitUntil(() => first.errors.some((error) => error.code === 'ReceiverDisconnectedError'), 'the takeover');
  assert.deepEqual(second.errors, []);
  await Promise.all([one.close(), two.close()]);
});
