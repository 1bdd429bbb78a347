// Logins, layouts of links and settlements of AMQP clients that do not run here: .NET, Java, C, the Azure command line.
// Each test says whose habit it replays.

import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { describe, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';
import {
  MSSBCBS, begin, closed, deliver, login, open, putToken, receiver, refusal, requester, rhea, sasToken, sender, serviceLogin,
} from './links.mjs';

const hub = Hub.running();
const { types, message: sections } = rhea;

const newId = () => `layout-${randomUUID().slice(0, 8)}`;
// rhea takes 16 bytes for a uuid, a number for a ulong.
const newUuid = () => randomBytes(16);
const BATCH = 0x80013700;
const batch = (messages) => sections.encode({ body: sections.data_sections(messages) });
const data = (value) => sections.data_section(Buffer.from(value));
const text = (delivered) => delivered.message.body.content.toString();

/** A device with its key and token. */
async function device(id = newId()) {
  const key = /SharedAccessKey=(.*)$/.exec(await hub.createDevice(id))[1];
  return { id, key, path: `/devices/${id}`, audience: `${hub.host}/devices/${id}`, token: sasToken(`${hub.host}/devices/${id}`, key) };
}

async function policy(name, rights) {
  const answer = await hub.request('PUT', `/holdfast/v1/policies/${name}`, { rights });
  assert.ok([200, 201].includes(answer.status), JSON.stringify(answer.body));
  return { SharedAccessKeyName: name, SharedAccessKey: answer.body.primaryKey };
}

async function sendC2d(id, body, properties = {}) {
  const connection = await serviceLogin(hub);
  const link = await sender(connection, `amqps://${hub.host}/messages/devicebound`);
  await deliver(link, { to: `/devices/${encodeURIComponent(id)}/messages/devicebound`, body: data(body), ...properties });
  connection.close();
}

describe('SASL', () => {
  const reachesService = async (options) => {
    const connection = await open(hub, options);
    await sender(connection, '/messages/devicebound');
    connection.close();
  };
  const key = () => hub.parts.SharedAccessKey;
  const policyToken = (lifetime) => sasToken(hub.host, key(), 'service-like', lifetime);

  test('PLAIN of a policy with its token (C service, Azure command line)', async () => {
    await reachesService({ username: `iothubowner@sas.root.${hub.host}`, password: sasToken(hub.host, key(), 'iothubowner') });
  });

  test('PLAIN of a policy with its key (npm azure-event-hubs 0.0.8)', async () => {
    await reachesService({ username: 'iothubowner', password: key() });
  });

  test('PLAIN of a device and of a module', async () => {
    const { id, path, token } = await device();
    const answer = await hub.request('PUT', `/devices/${id}/modules/m`, { deviceId: id, moduleId: 'm' });
    const moduleKey = answer.body.authentication.symmetricKey.primaryKey;
    const moduleToken = sasToken(`${hub.host}/devices/${id}/modules/m`, moduleKey);
    for (const [username, password, address] of [
      [`${id}@sas.${hub.host}`, token, path],
      [`${id}/modules/m@sas.${hub.host}`, moduleToken, `${path}/modules/m`],
    ]) {
      const connection = await open(hub, { username, password });
      await deliver(await sender(connection, `${address}/messages/events`), { body: data('1') });
      const strange = await refusal(connection, 'sender', '/messages/devicebound');
      assert.equal(strange.condition, 'amqp:unauthorized-access');
      connection.close();
    }
  });

  test('PLAIN with a wrong key, a stranger\'s token or an expired one is refused', async () => {
    const one = await device();
    const other = await device();
    for (const [username, password] of [
      ['iothubowner', Buffer.from('not the key').toString('base64')],
      [`${one.id}@sas.${hub.host}`, other.token],
      [`iothubowner@sas.root.${hub.host}`, sasToken(hub.host, key(), 'iothubowner', -400)],
      [`iothubowner@sas.root.${hub.host}`, policyToken()],
    ]) {
      await assert.rejects(open(hub, { username, password }), undefined, username);
    }
  });

  test('MSSBCBS with tokens afterwards, in the message ids of all SDKs', async () => {
    const { audience, token, path } = await device();
    const connection = await open(hub, MSSBCBS);
    const cbs = await requester(connection, '$cbs', { sender: '$cbs-sender', receiver: '$cbs-receiver' });
    const uuid = randomBytes(16);
    for (const id of [7, uuid, 'text']) {
      const message = await cbs(putToken(audience, token, id));
      assert.deepEqual(message.correlation_id, id);
      assert.equal(message.application_properties['status-code'], 200);
    }
    await deliver(await sender(connection, `${path}/messages/events`), { body: data('1') });
    connection.close();
  });
});

describe('tokens', () => {
  test('for nobody, for another resource, expired or malformed: 401, and the connection lives on', async () => {
    const one = await device();
    const connection = await open(hub);
    const cbs = await requester(connection, '$cbs');
    const status = async (token) => (await cbs(putToken('x', token))).application_properties['status-code'];
    assert.equal(await status(sasToken(`${hub.host}/devices/nobody-of-this-name`, one.key)), 401);
    assert.equal(await status(sasToken('elsewhere.example/devices/x', one.key)), 401);
    assert.equal(await status(sasToken(one.audience, one.key, undefined, -400)), 401);
    assert.ok([400, 401].includes(await status('SharedAccessSignature sr=x')));
    assert.equal((await refusal(connection, 'sender', `${one.path}/messages/events`)).condition, 'amqp:unauthorized-access');
    assert.equal(await status(one.token), 200);
    await deliver(await sender(connection, `${one.path}/messages/events`), { body: data('1') });
    connection.close();
  });

  test('a device\'s policy gives no service links, and the others of the connection live on', async () => {
    const { id, path } = await device();
    const name = `dev-${randomUUID().slice(0, 8)}`;
    const connection = await serviceLogin(hub, await policy(name, 'DeviceConnect'));
    const telemetry = await sender(connection, `${path}/messages/events`);
    for (const [kind, address] of [
      ['sender', '/messages/devicebound'],
      ['receiver', '/messages/serviceBound/feedback'],
      ['receiver', '/messages/serviceBound/filenotifications'],
      ['receiver', '/messages/events/$management'],
      ['receiver', 'events/ConsumerGroups/$Default/Partitions/0'],
      ['sender', 'events'],
      ['sender', '$management'],
    ]) {
      const error = await refusal(connection, kind, address);
      assert.equal(error.condition, 'amqp:unauthorized-access', `${kind} ${address}`);
    }
    const events = await hub.events(id);
    await deliver(telemetry, { body: data('"still here"') });
    assert.equal((await events.wait(1))[0].body, 'still here');
    events.close();
    connection.close();
  });

  test('a service\'s policy may not act as a device', async () => {
    const { path } = await device();
    const name = `svc-${randomUUID().slice(0, 8)}`;
    const connection = await serviceLogin(hub, await policy(name, 'ServiceConnect'));
    for (const [kind, address] of [
      ['sender', `${path}/messages/events`],
      ['receiver', `${path}/messages/devicebound`],
      ['receiver', `${path}/methods/devicebound`],
      ['receiver', `${path}/twin`],
    ]) {
      assert.equal((await refusal(connection, kind, address)).condition, 'amqp:unauthorized-access', address);
    }
    await sender(connection, '/messages/devicebound');
    connection.close();
  });

  test('Java\'s token of a module names only the device, and still is the module\'s', async () => {
    const { id, audience } = await device();
    const answer = await hub.request('PUT', `/devices/${id}/modules/m`, { deviceId: id, moduleId: 'm' });
    const key = answer.body.authentication.symmetricKey.primaryKey;
    const connection = await login(hub, [[audience, sasToken(`${hub.host}/devices/${id}/modules/m`, key)]], { username: 'anonymous' });
    await deliver(await sender(connection, `/devices/${id}/modules/m/messages/events`), { body: data('1') });
    assert.equal((await refusal(connection, 'sender', `/devices/${id}/messages/events`)).condition, 'amqp:unauthorized-access');
    connection.close();
  });
});

describe('.NET', () => {
  /** One device's session on a pooled connection: link names are the same for every device. */
  async function member(connection, { id }) {
    const session = begin(connection);
    const address = (rest) => `amqps://${hub.host}:5671/devices/${encodeURIComponent(id)}/${rest}`;
    return {
      session,
      telemetry: await sender(session, address('messages/events'), { name: 'TelemetrySenderLink' }),
      c2d: await receiver(session, address('messages/deviceBound'), {
        name: 'TelemetryReceiverLink', rcv_settle_mode: 1, credit_window: 50, autosettle: false,
        target: { address: id },
      }),
    };
  }

  const pool = async (count) => {
    const devices = await Promise.all([...Array(count)].map(() => device()));
    const connection = await open(hub);
    const cbs = await requester(begin(connection), '$cbs', { sender: 'cbs:sender', receiver: 'cbs:receiver' });
    for (const { audience, token } of devices) {
      assert.equal((await cbs(putToken(audience, token))).application_properties['status-code'], 200);
    }
    return { connection, devices };
  };

  test('a pool: one connection, a session for each device, the same link names', async () => {
    const { connection, devices } = await pool(3);
    const members = await Promise.all(devices.map((each) => member(connection, each)));
    const streams = await Promise.all(devices.map(({ id }) => hub.events(id)));
    await Promise.all(members.map(({ telemetry }, n) => deliver(telemetry, { body: data(String(n)) })));
    for (const [n, stream] of streams.entries()) {
      assert.equal((await stream.wait(1))[0].body, n);
      stream.close();
    }
    await sendC2d(devices[1].id, 'for the second');
    await waitUntil(() => members[1].c2d.received.length === 1, 'the message of the second device');
    assert.equal(members[0].c2d.received.length + members[2].c2d.received.length, 0);

    // One of them is disabled: its links go with a reason, the others do not notice.
    const record = (await hub.request('GET', `/devices/${devices[0].id}`)).body;
    await hub.request('PUT', `/devices/${devices[0].id}`, { ...record, status: 'disabled' }, { 'If-Match': '*' });
    assert.ok((await closed(members[0].telemetry)).condition);
    await deliver(members[2].telemetry, { body: data('3') });
    connection.close();
  });

  test('cloud-to-device messages settled in second mode are answered with Accepted, whatever the outcome', async () => {
    const { connection, devices } = await pool(1);
    const [{ id }] = devices;
    const { c2d } = await member(connection, devices[0]);
    const settledBy = (context) =>
      waitUntil(() => context.delivery.remote_settled && context.delivery.remote_state, 'the hub to settle');
    const outcomes = { complete: sections.accepted(), abandon: sections.released(), reject: sections.rejected() };
    for (const [name, outcome] of Object.entries(outcomes)) {
      await sendC2d(id, name);
      const next = c2d.received.length;
      await waitUntil(() => c2d.received.length > next, name);
      const context = c2d.received[next];
      assert.equal(text(context), name);
      assert.equal(context.delivery.tag.length, 16);
      const { message } = context;
      assert.equal(message.to.toLowerCase(), `/devices/${id}/messages/devicebound`);
      assert.ok(Math.abs(Number(message.message_annotations['iothub-enqueuedtime']) - Date.now()) < 60_000);
      context.delivery.update(false, outcome.described());
      const state = await settledBy(context);
      assert.equal(state.constructor.composite_type ?? JSON.stringify(state), 'accepted', name);
      context.delivery.update(true);
      if (name === 'abandon') {
        await waitUntil(() => c2d.received.length === next + 2, 'the abandoned message again');
        const again = c2d.received[next + 1];
        assert.equal(text(again), 'abandon');
        assert.ok(again.message.message_annotations['iothub-deliverycount'] > message.message_annotations['iothub-deliverycount']);
        again.delivery.update(false, sections.accepted().described());
        await settledBy(again);
        again.delivery.update(true);
      }
    }
    assert.equal(c2d.received.length, 4);
    connection.close();
  });

  test('a lock that is gone is said so', async () => {
    const { connection, devices } = await pool(1);
    const [{ id }] = devices;
    const { c2d } = await member(connection, devices[0]);
    await sendC2d(id, 'purged meanwhile');
    await waitUntil(() => c2d.received.length === 1, 'the message');
    assert.equal((await hub.request('DELETE', `/devices/${id}/commands`)).status, 200);
    const [{ delivery }] = c2d.received;
    delivery.update(false, sections.accepted().described());
    const state = await waitUntil(() => delivery.remote_settled && delivery.remote_state, 'the hub to settle');
    assert.ok(['amqp:not-found', 'com.microsoft:message-lock-lost'].includes(state.error?.condition), JSON.stringify(state));
    connection.close();
  });

  test('twin requests with prefixed correlation ids', async () => {
    const { connection, devices } = await pool(1);
    const [{ id }] = devices;
    const session = begin(connection);
    const properties = { 'com.microsoft:channel-correlation-id': `twin:${randomUUID()}`, 'com.microsoft:api-version': '2020-09-30' };
    const address = `amqps://${hub.host}:5671/devices/${id}/twin`;
    const requests = await sender(session, address, { name: 'TwinSenderLink', properties, snd_settle_mode: 1, rcv_settle_mode: 0 });
    const answers = await receiver(session, address, { name: 'TwinReceiverLink', properties, snd_settle_mode: 1, rcv_settle_mode: 0 });
    const ask = async (correlation, annotations, body) => {
      requests.send({ correlation_id: correlation, message_annotations: annotations, body: data(body) });
      const { message } = await waitUntil(
        () => answers.received.find((context) => context.message.correlation_id === correlation), correlation,
      );
      return message;
    };
    const patched = await ask(`Patch${randomUUID()}`, { operation: 'PATCH', resource: '/properties/reported', version: null }, '{"a":1}');
    assert.equal(patched.message_annotations.status, 204);
    assert.equal((await ask(`Put${randomUUID()}`, { operation: 'PUT', resource: '/notifications/twin/properties/desired' }, '')).message_annotations.status, 200);
    const got = await ask(`Get${randomUUID()}`, { operation: 'GET' }, '');
    assert.equal(JSON.parse(text({ message: got })).reported.a, 1);
    await hub.request('PATCH', `/twins/${id}`, { properties: { desired: { b: 2 } } });
    const { message } = await waitUntil(
      () => answers.received.find((context) => context.message.correlation_id === undefined), 'the change of desired properties',
    );
    assert.equal(JSON.parse(text({ message })).b, 2);
    assert.ok((await ask(`Patch${randomUUID()}`, { operation: 'PATCH', resource: '/properties/reported' }, '{"a.b":1}')).message_annotations.status >= 400);
    connection.close();
  });
});

describe('C', () => {
  const properties = (id) => ({ 'com.microsoft:client-version': 'iothubclient/1.12.0', 'com.microsoft:channel-correlation-id': id });

  test('all devices on one session; telemetry in batches (message format 0x80013700)', async () => {
    const devices = [await device(), await device()];
    const connection = await login(hub, devices.map(({ audience, token }) => [audience, token]), MSSBCBS);
    const session = begin(connection);
    for (const { id, path } of devices) {
      const link = await sender(session, `amqps://${hub.host}${path}/messages/events`, {
        name: `link-snd-${id}-${randomUUID()}`, source: { address: `link-snd-${id}-source` }, properties: properties(id), snd_settle_mode: 0,
      });
      assert.ok(link.remote.attach.max_message_size > 1024, 'C cannot send at all without a size');
      const inner = (n) => sections.encode({
        message_id: `${id}-${n}`, content_type: 'application/json', application_properties: { n: String(n) }, body: data(JSON.stringify({ n })),
      });
      const events = await hub.events(id);
      await deliver(link, batch([0, 1, 2].map(inner)), BATCH);
      const arrived = await events.wait(3);
      assert.deepEqual(arrived.map((event) => event.body), [{ n: 0 }, { n: 1 }, { n: 2 }]);
      assert.deepEqual(arrived.map((event) => event.systemProperties.messageId), [0, 1, 2].map((n) => `${id}-${n}`));
      assert.deepEqual(arrived[2].properties, { n: '2' });

      // Taken or refused as a whole.
      const broken = [inner(3), Buffer.from('no message')];
      await assert.rejects(deliver(link, batch(broken), BATCH));
      await deliver(link, batch([inner(4)]), BATCH);
      assert.deepEqual((await events.wait(4))[3].body, { n: 4 });
      events.close();
    }
    connection.close();
  });

  test('methods: uuid correlation ids, a body even without payload', async () => {
    const { id, path, audience, token } = await device();
    const connection = await login(hub, [[audience, token]], MSSBCBS);
    const options = (name) => ({ name: `${name}-${id}`, properties: properties(id) });
    const calls = await receiver(connection, `amqps://${hub.host}${path}/methods/devicebound`, { ...options('methods_requests_link'), target: { address: 'requests' } });
    const answers = await sender(connection, `amqps://${hub.host}${path}/methods/devicebound`, { ...options('methods_responses_link'), source: { address: 'responses' } });
    const call = hub.request('POST', `/twins/${id}/methods`, { methodName: 'reboot', connectTimeoutInSeconds: 10 });
    await waitUntil(() => calls.received.length === 1, 'the call');
    const [context] = calls.received;
    assert.equal(context.message.application_properties['IoThub-methodname'], 'reboot');
    assert.equal(context.message.correlation_id.length, 16);
    assert.equal(text(context), 'null');
    context.delivery.accept();
    const answer = (correlation) => ({
      correlation_id: correlation, application_properties: { 'IoThub-status': types.wrap_int(202) }, body: data('{"done":true}'),
    });
    // An answer to no call of ours is accepted and dropped.
    await deliver(answers, answer(newUuid()));
    await deliver(answers, answer(context.message.correlation_id));
    assert.deepEqual((await call).body, { status: 202, payload: { done: true } });
    connection.close();
  });

  test('a rejection with a text for a condition', async () => {
    const { id, path, audience, token } = await device();
    const connection = await login(hub, [[audience, token]], MSSBCBS);
    const link = await receiver(connection, `amqps://${hub.host}${path}/messages/devicebound`, { rcv_settle_mode: 0, credit_window: 10000 });
    await sendC2d(id, 'unwanted', { application_properties: { 'iothub-ack': 'negative' }, message_id: `${id}-1` });
    await waitUntil(() => link.received.length === 1, 'the message');
    link.received[0].delivery.update(true, sections.rejected({ error: { condition: 'Rejected by application' } }).described());
    const feedback = await serviceLogin(hub);
    const receiving = await receiver(feedback, '/messages/serviceBound/feedback');
    const record = await waitUntil(() => receiving.received.flatMap((context) => JSON.parse(text(context))).find((each) => each.originalMessageId === `${id}-1`), 'the feedback', 40);
    assert.equal(record.statusCode, 'Rejected');
    receiving.received.forEach(({ delivery }) => delivery.release());
    feedback.close();
    connection.close();
  });
});

describe('Java', () => {
  test('a multiplexed connection: a session for each device, frames of 4096 bytes both ways', async () => {
    const devices = await Promise.all([...Array(20)].map(() => device()));
    const connection = await open(hub, { username: 'anonymous', max_frame_size: 4096 });
    const cbs = await requester(begin(connection), '$cbs', { sender: 'cbs-sender', receiver: 'cbs-receiver' });
    const links = [];
    for (const { id, path, audience, token } of devices) {
      assert.equal((await cbs(putToken(audience, token, newUuid()))).application_properties['status-code'], 200);
      const session = begin(connection);
      const properties = { 'com.microsoft:api-version': '2020-09-30', 'com.microsoft:channel-correlation-id': id };
      links.push({
        telemetry: await sender(session, `${path}/messages/events`, { name: `${id}-telemetry`, properties, snd_settle_mode: 0, rcv_settle_mode: 0 }),
        c2d: await receiver(session, `${path}/messages/devicebound`, { properties, rcv_settle_mode: 0 }),
      });
    }
    const large = randomBytes(60_000).toString('base64').slice(0, 60_000);
    await sendC2d(devices[7].id, large);
    await waitUntil(() => links[7].c2d.received.length === 1, 'a message of many frames');
    assert.equal(text(links[7].c2d.received[0]), large);
    links[7].c2d.received[0].delivery.accept();

    const telemetry = randomBytes(240_000).toString('base64').slice(0, 240_000);
    const events = await hub.events(devices[3].id);
    await Promise.all(links.map(({ telemetry: link }, n) => deliver(link, { body: data(n === 3 ? telemetry : 'small') })));
    assert.equal((await events.wait(1))[0].body, telemetry);
    events.close();
    connection.close();
  });

  test('a message above the limit is refused with its condition, and the others live on', async () => {
    const { path, audience, token } = await device();
    const connection = await login(hub, [[audience, token]]);
    const link = await sender(connection, `${path}/messages/events`);
    const outcome = deliver(link, { body: data('x'.repeat(300_000)) }).then(() => 'accepted', (error) => error.condition);
    const detached = closed(link).then((error) => error.condition);
    assert.equal(await Promise.race([outcome, detached]), 'amqp:link:message-size-exceeded');
    await deliver(await sender(connection, `${path}/messages/events`), { body: data('1') });
    connection.close();
  });
});

describe('redirect', () => {
  const expected = (rest) => ({ hostname: hub.host, 'network-host': hub.host, port: 5671, address: `amqps://${hub.host}:5671/events/${rest}` });

  test('every spelling of the hub\'s events address leads to the event hub', async () => {
    const connection = await serviceLogin(hub);
    for (const [address, rest] of [
      ['/messages/events/$management', '$management'],
      [`amqps://${hub.host}/messages/events/$management`, '$management'],
      ['messages/events/', '$management'],
      ['/messages/events/ConsumerGroups/$Default/Partitions/2', 'ConsumerGroups/$Default/Partitions/2'],
    ]) {
      const error = await refusal(connection, 'receiver', address);
      assert.equal(error.condition, 'amqp:link:redirect', address);
      assert.deepEqual({ ...error.info }, expected(rest), address);
    }
    // The connection serves on, also at the address that the redirect names.
    const management = await requester(connection, 'events/$management');
    const message = await management({
      message_id: newUuid(), application_properties: { operation: 'READ', type: 'com.microsoft:eventhub', name: 'events' }, body: data('[]'),
    });
    assert.equal(message.application_properties['status-code'], 200);
    assert.equal(message.body.partition_count, 4);
    connection.close();
  });
});

describe('producers and readers', () => {
  const filter = (expression, descriptor) => ({
    'apache.org:selector-filter:string': types.wrap_described(expression, descriptor),
  });
  const ULONG = 0x468c00000004;
  const SYMBOL = 'apache.org:selector-filter:string';
  const partition = 'events/ConsumerGroups/$Default/Partitions/3';

  test('every form of filter, with both descriptors', async () => {
    const connection = await serviceLogin(hub);
    const producer = await sender(connection, 'events/Partitions/3');
    const run = randomUUID();
    const before = Date.now() - 1;
    for (let n = 0; n < 3; n += 1) await deliver(producer, { body: data(`${run}-${n}`) });
    const mine = (link) => link.received.map(text).filter((body) => body.startsWith(run));
    const all = await receiver(connection, partition, { autoaccept: true });
    await waitUntil(() => mine(all).length === 3, 'all three without a filter');
    const annotations = all.received.find((context) => text(context) === `${run}-0`).message.message_annotations;
    const { 'x-opt-sequence-number': sequence, 'x-opt-offset': offset } = annotations;
    all.close();
    for (const [expression, first] of [
      [`amqp.annotation.x-opt-offset > '${offset}'`, 1],
      [`amqp.annotation.x-opt-offset >= '${offset}'`, 0],
      [`amqp.annotation.x-opt-sequence-number > '${sequence}'`, 1],
      [`amqp.annotation.x-opt-sequence-number >= '${sequence}'`, 0],
      [`amqp.annotation.x-opt-enqueued-time > '${before}'`, 0],
      [`amqp.annotation.x-opt-enqueuedtimeutc > ${before}`, 0],
      [`amqp.annotation.x-opt-offset > '-1'`, 0],
    ]) {
      for (const descriptor of [ULONG, SYMBOL]) {
        const link = await receiver(connection, partition, { autoaccept: true, source: { address: partition, filter: filter(expression, descriptor) } });
        await waitUntil(() => mine(link).length === 3 - first, expression);
        assert.equal(mine(link)[0], `${run}-${first}`, expression);
        link.close();
      }
    }
    const malformed = await refusal(connection, 'receiver', partition, { source: { address: partition, filter: filter('amqp.annotation.x-opt-colour > 1', ULONG) } });
    assert.equal(malformed.condition, 'com.microsoft:argument-error');
    connection.close();
  });

  test('five readers without owner level, and no sixth', async () => {
    const connection = await serviceLogin(hub);
    const address = 'events/ConsumerGroups/$Default/Partitions/2';
    const readers = [];
    for (let n = 0; n < 5; n += 1) readers.push(await receiver(connection, address, { autoaccept: true }));
    assert.equal((await refusal(connection, 'receiver', address)).condition, 'amqp:resource-limit-exceeded');
    // One with an owner level ends them all.
    const owner = await receiver(connection, address, { autoaccept: true, properties: { 'com.microsoft:epoch': types.wrap_long(0) } });
    for (const reader of readers) assert.equal((await closed(reader)).condition, 'amqp:link:stolen');
    assert.equal((await refusal(connection, 'receiver', address)).condition, 'amqp:link:stolen');
    owner.close();
    connection.close();
  });
});
