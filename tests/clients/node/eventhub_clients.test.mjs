// @azure/event-hubs in its other ways, and its ancestors: WebSockets, the development emulator's connection string, consumer
// groups, checkpoints, owner levels, what readers learn and producers say, the redirect from the hub's own address.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';

import { Checkpoints, connectionString, read } from './eventhub.mjs';
import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { EventHubConsumerClient, EventHubProducerClient, earliestEventPosition, latestEventPosition } = require('@azure/event-hubs');
const WebSocket = require('ws');

const hub = Hub.running();
const text = connectionString(hub);
const opened = [];
const keep = (client) => {
  opened.push(client);
  return client;
};
after(() => Promise.all(opened.map((client) => client.close())));
const newConsumer = (group = '$Default', ...rest) => keep(new EventHubConsumerClient(group, text, ...rest));
const newProducer = (options) => keep(new EventHubProducerClient(text, options));

const numbersFrom = async (client) => {
  const partitions = await Promise.all(['0', '1', '2', '3'].map((n) => client.getPartitionProperties(n)));
  return Object.fromEntries(partitions.map((each) => [each.partitionId, each.lastEnqueuedSequenceNumber]));
};
const startingAt = (numbers) =>
  Object.fromEntries(Object.entries(numbers).map(([n, sequenceNumber]) => [n, sequenceNumber < 0 ? earliestEventPosition : { sequenceNumber }]));

/** `holdfast consumer-group …` */
const command = (...words) =>
  execFileSync(process.env.HOLDFAST_BIN, ['--no-profile', '--ca', hub.caFile, 'consumer-group', ...words], {
    encoding: 'utf8', env: { ...process.env, HOLDFAST_CONNECTION_STRING: hub.owner },
  });

const group = `node-${randomUUID().slice(0, 8)}`;
before(() => command('create', group));
after(() => command('delete', group));

test('over WebSockets', async () => {
  const webSocketOptions = { webSocket: WebSocket };
  const client = keep(new EventHubConsumerClient('$Default', text, { webSocketOptions }));
  const producer = newProducer({ webSocketOptions });
  const { lastEnqueuedSequenceNumber: begin } = await client.getPartitionProperties('0');
  await producer.sendBatch([...Array(500).keys()].map((body) => ({ body })), { partitionId: '0' });
  await producer.sendBatch([{ body: 'x'.repeat(900_000) }], { partitionId: '0' });
  const reading = read(client, '0', startingAt({ 0: begin })['0']);
  await waitUntil(() => reading.events.length === 501, '501 events');
  assert.deepEqual(reading.events.slice(0, 500).map((event) => event.body), [...Array(500).keys()]);
  assert.equal(reading.events[500].body.length, 900_000);
  await reading.subscription.close();
});

test('with the connection string of the development emulator, without TLS', async () => {
  const free = ['--mqtt-port', '0', '--amqp-port', '0', '--https-port', '0', '--amqp-plain', '127.0.0.1:0'];
  const own = await Hub.start(...free);
  const emulator = connectionString(own, `sb://${own.amqpPlain}`).concat(';UseDevelopmentEmulator=true');
  const producer = new EventHubProducerClient(emulator);
  await producer.sendBatch([{ body: 'plain' }], { partitionId: '1' });
  const client = new EventHubConsumerClient('$Default', emulator);
  const reading = read(client, '1', earliestEventPosition);
  await waitUntil(() => reading.events.length === 1, 'the event');
  assert.equal(reading.events[0].body, 'plain');
  await Promise.all([client.close(), producer.close()]);
  await own.stop();
});

describe('consumer groups', () => {
  test('each reads for itself, latest counts from the attach, an unknown one is refused', async () => {
    assert.ok(command('list').includes(group));
    const readings = [newConsumer(), newConsumer(group), newConsumer(group.toUpperCase())].map((client) =>
      read(client, '1', latestEventPosition));
    await waitUntil(() => readings.every((reading) => reading.called), 'all readers to be attached');
    const run = randomUUID();
    await newProducer().sendBatch([...Array(5).keys()].map((n) => ({ body: { run, n } })), { partitionId: '1' });
    const mine = (reading) => reading.events.filter((event) => event.body?.run === run).map((event) => event.body.n);
    await waitUntil(() => readings.every((reading) => mine(reading).length === 5), 'five events for each');
    for (const reading of readings) assert.deepEqual(mine(reading), [0, 1, 2, 3, 4]);
    const unknown = read(newConsumer(`${group}-no`), '1', earliestEventPosition);
    await waitUntil(() => unknown.errors.length > 0, 'the refusal');
    assert.match(`${unknown.errors[0].code} ${unknown.errors[0].message}`, /MessagingEntityNotFound|ServiceCommunication|not-found|no consumer group/);
  });

  test('a processor goes on at its checkpoint', async () => {
    const store = new Checkpoints();
    const numbers = await numbersFrom(newConsumer());
    const producer = newProducer();
    const run = randomUUID();
    const sendAll = (bodies) =>
      Promise.all(['0', '1', '2', '3'].map((partitionId) => producer.sendBatch(bodies.map((n) => ({ body: { run, n } })), { partitionId })));
    const process = (client) => {
      const seen = [];
      const handlers = {
        processEvents: async (events, context) => {
          seen.push(...events.filter((event) => event.body?.run === run).map((event) => `${context.partitionId}-${event.body.n}`));
          if (events.length > 0) await context.updateCheckpoint(events.at(-1));
        },
        processError: async () => {},
      };
      const options = { startPosition: startingAt(numbers), maxWaitTimeInSeconds: 0.2 };
      return { seen, subscription: client.subscribe(handlers, options) };
    };
    const options = { loadBalancingOptions: { strategy: 'greedy', updateIntervalInMs: 500 } };
    await sendAll([0, 1, 2]);
    const first = process(newConsumer(group, store, options));
    await waitUntil(() => first.seen.length === 12, 'all events');
    await first.subscription.close();
    await sendAll([3]);
    const second = process(newConsumer(group, store, options));
    await waitUntil(() => second.seen.length >= 4, 'what came later');
    assert.deepEqual(second.seen.sort(), ['0-3', '1-3', '2-3', '3-3']);
    await second.subscription.close();
  });

  test('two processors share the partitions', async () => {
    const store = new Checkpoints();
    const options = { loadBalancingOptions: { strategy: 'greedy', updateIntervalInMs: 500, partitionOwnershipExpirationIntervalInMs: 10_000 } };
    const process = () => {
      const handlers = { processEvents: async () => {}, processError: async () => {} };
      return newConsumer(group, store, options).subscribe(handlers, { startPosition: latestEventPosition, maxWaitTimeInSeconds: 0.2 });
    };
    const counts = () => [...new Set(store.owners())].map((owner) => store.owners().filter((other) => other === owner).length);
    const one = process();
    await waitUntil(() => counts().join() === '4', 'the first to own everything');
    const two = process();
    await waitUntil(() => counts().join() === '2,2', 'two partitions for each', 40);
    await Promise.all([one.close(), two.close()]);
  });
});

test('owner levels: higher and equal take over, lower and none are refused', async () => {
  const attach = (ownerLevel) => read(newConsumer(group), '3', latestEventPosition, ownerLevel === undefined ? {} : { ownerLevel });
  const attached = (reading) => waitUntil(() => reading.called && reading.errors.length === 0, 'the reader to be attached');
  const stolen = async (reading) => {
    await waitUntil(() => reading.errors.length > 0, 'the reader to lose its place');
    assert.equal(reading.errors[0].code, 'ReceiverDisconnectedError');
  };
  const without = attach();
  await attached(without);
  // The SDK keeps a level of 0 to itself, unless there is a checkpoint store.
  const one = attach(1);
  await stolen(without);
  await attached(one);
  const again = attach(1);
  await stolen(one);
  await attached(again);
  const higher = attach(5);
  await stolen(again);
  await attached(higher);
  for (const refused of [attach(4), attach()]) await stolen(refused);
  assert.deepEqual(higher.errors, []);
});

test('what a reader learns of its partition, and what a producer says of its events', async () => {
  const client = newConsumer();
  const { lastEnqueuedSequenceNumber: begin } = await client.getPartitionProperties('2');
  const reading = read(client, '2', startingAt({ 2: begin })['2'], { trackLastEnqueuedEventProperties: true });
  const event = {
    body: { n: 1 }, messageId: 'm-1', correlationId: 'c-1', contentType: 'application/json',
    properties: { text: 'ü', number: 7, fraction: 2.5, truth: true },
  };
  await newProducer().sendBatch([event, { body: Buffer.from([1, 2, 3]) }], { partitionId: '2' });
  await waitUntil(() => reading.events.length === 2, 'both events');
  const [first, second] = reading.events;
  assert.deepEqual(first.body, { n: 1 });
  assert.deepEqual([first.messageId, first.correlationId, first.contentType], ['m-1', 'c-1', 'application/json']);
  const properties = Object.fromEntries(Object.entries(first.properties).map(([name, value]) => [name, String(value)]));
  assert.deepEqual(properties, { text: 'ü', number: '7', fraction: '2.5', truth: 'true' });
  assert.deepEqual([...second.body], [1, 2, 3]);
  assert.equal(second.sequenceNumber, first.sequenceNumber + 1);
  assert.ok(Math.abs(first.enqueuedTimeUtc - Date.now()) < 60_000);
  const known = await waitUntil(() => reading.context?.lastEnqueuedEventProperties?.sequenceNumber === begin + 2 && reading.context.lastEnqueuedEventProperties, 'the last event to be known');
  assert.equal(String(known.offset), String(second.offset));
  assert.ok(Math.abs(known.enqueuedOn - Date.now()) < 60_000 && Math.abs(known.retrievedOn - Date.now()) < 60_000);
  await reading.subscription.close();
});

describe('the hub\'s own address leads to the event hub', () => {
  const body = { run: randomUUID() };

  test('@azure/event-hubs 2.1.4: CBS, redirect, receive', async () => {
    const { EventHubClient, EventPosition } = require('event-hubs-v2');
    const { lastEnqueuedSequenceNumber: begin } = await newConsumer().getPartitionProperties('3');
    const client = await EventHubClient.createFromIotHubConnectionString(hub.owner);
    assert.deepEqual(await client.getPartitionIds(), ['0', '1', '2', '3']);
    const seen = [];
    const position = begin < 0 ? EventPosition.fromStart() : EventPosition.fromSequenceNumber(begin);
    const receiving = client.receive('3', (event) => seen.push(event.body), () => {}, { eventPosition: position });
    await newProducer().sendBatch([{ body }], { partitionId: '3' });
    await waitUntil(() => seen.length === 1, 'the event');
    assert.deepEqual(seen[0], body);
    await receiving.stop();
    await client.close();
  });

  test('azure-event-hubs 0.0.8: SASL PLAIN at the hub, redirect, SASL PLAIN with the key, receive', async () => {
    const { Client } = require('event-hubs-v0');
    const since = Date.now() - 1;
    await newProducer().sendBatch([{ body }], { partitionId: '2' });
    const client = Client.fromConnectionString(hub.owner);
    await client.open();
    assert.deepEqual(await client.getPartitionIds(), ['0', '1', '2', '3']);
    const receiver = await client.createReceiver('$Default', '2', { startAfterTime: since });
    const seen = [];
    receiver.on('message', (message) => seen.push(message.body));
    await waitUntil(() => seen.some((other) => other?.run === body.run), 'the event');
    await client.close();
  });
});
