// The unmodified device SDK over AMQP and AMQP over WebSockets: certificates, renewed tokens, modules, large messages,
// settlement of cloud-to-device messages, and life after a crash of the hub.

import assert from 'node:assert/strict';
import { X509Certificate, randomUUID } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { authority, selfSigned } from './certificates.mjs';
import { Hub, waitUntil } from './hub.mjs';
import { closed, deliver, login, putToken, refusal, rhea, sasToken, sender, serviceLogin } from './links.mjs';

const require = createRequire(import.meta.url);
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { NoRetry } = require('azure-iot-common');

const hub = Hub.running();

const newId = () => `dev-${randomUUID().slice(0, 8)}`;

async function open(connectionString, transport, { kind = Client, options } = {}) {
  const client = kind.fromConnectionString(connectionString, transport);
  client.setRetryPolicy(new NoRetry());
  if (options) await client.setOptions(options);
  await client.open();
  return client;
}

/** Resolves to the answer of a method as soon as the device listens. */
const invoke = (path, methodName, payload) =>
  waitUntil(async () => {
    const reply = await hub.request('POST', `/twins/${path}/methods`, { methodName, payload });
    return reply.status === 200 && reply.body;
  }, `the method ${methodName}`, 40);

const update = (twin, patch) =>
  new Promise((resolve, reject) => twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve())));

/** A root that the hub knows and that has proven possession of its key. */
async function verifiedAuthority(name) {
  const root = authority(`root ${name}`);
  const path = `/holdfast/v1/certificates/${name}`;
  const expect = async (request, statuses) => {
    const answer = await request;
    assert.ok(statuses.includes(answer.status), JSON.stringify(answer.body));
    return answer.body;
  };
  await expect(hub.request('PUT', path, { certificate: root.cert }), [200, 201]);
  const { properties } = await expect(hub.request('POST', `${path}/generateVerificationCode`), [200]);
  const proof = root.issue(properties.verificationCode);
  await expect(hub.request('POST', `${path}/verify`, { certificate: proof.cert }), [200]);
  return root;
}

for (const [name, transport] of [['amqp', Amqp], ['amqp-ws', AmqpWs]]) {
  describe(name, () => {
    const withCertificate = async (id, x509) => {
      const client = await open(`HostName=${hub.host};DeviceId=${id};x509=true`, transport, { options: x509 });
      await client.sendEvent(new Message('let in'));
      const twin = await client.getTwin();
      assert.ok(twin.properties.desired.$version > 0);
      await client.close();
    };

    test('certificate by thumbprint', async () => {
      const id = newId();
      const x509 = selfSigned(id);
      const thumbprint = new X509Certificate(x509.cert).fingerprint256.replaceAll(':', '');
      const x509Thumbprint = { primaryThumbprint: 'A'.repeat(64), secondaryThumbprint: thumbprint };
      await hub.createDevice(id, { authentication: { type: 'selfSigned', x509Thumbprint } });
      await withCertificate(id, x509);
      await assert.rejects(withCertificate(id, selfSigned(id)), { name: 'UnauthorizedError' });
    });

    test('certificate by authority', async () => {
      const id = newId();
      await hub.createDevice(id, { authentication: { type: 'certificateAuthority' } });
      const root = await verifiedAuthority(`ca-${id}`);
      await withCertificate(id, root.issue(id));
      for (const strange of [root.issue('another-device'), authority('unknown').issue(id)]) {
        await assert.rejects(withCertificate(id, strange), { name: 'UnauthorizedError' });
      }
    });

    test('a module: telemetry, outputs, methods, twin', async () => {
      const id = newId();
      await hub.createDevice(id);
      const answer = await hub.request('PUT', `/devices/${id}/modules/m1`, { deviceId: id, moduleId: 'm1' });
      const key = answer.body.authentication.symmetricKey.primaryKey;
      const text = `HostName=${hub.host};DeviceId=${id};ModuleId=m1;SharedAccessKey=${key}`;
      const client = await open(text, transport, { kind: ModuleClient });
      const events = await hub.events(id);
      await client.sendEvent(new Message('"telemetry"'));
      await client.sendOutputEvent('temperatures', new Message('"output"'));
      assert.deepEqual((await events.wait(2)).map((event) => [event.moduleId, event.body]), [['m1', 'telemetry'], ['m1', 'output']]);
      events.close();
      client.onMethod('twice', (request, response) => response.send(200, { twice: 2 * request.payload }, () => {}));
      assert.deepEqual(await invoke(`${id}/modules/m1`, 'twice', 21), { status: 200, payload: { twice: 42 } });
      const twin = await client.getTwin();
      const patches = [];
      twin.on('properties.desired', (patch) => patches.push(patch));
      await update(twin, { level: 1 });
      await waitUntil(async () => {
        await hub.request('PATCH', `/twins/${id}/modules/m1`, { properties: { desired: { mode: 'on' } } });
        return patches.some((patch) => patch.mode === 'on');
      }, 'a desired patch');
      assert.equal((await hub.request('GET', `/twins/${id}/modules/m1`)).body.properties.reported.level, 1);
      await client.close();
    });

    test('messages of many frames, and one that is too large', async () => {
      const id = newId();
      const client = await open(await hub.createDevice(id), transport);
      const events = await hub.events(id);
      const bodies = [70_000, 131_072, 250_000].map((size) => 'abcdefghij'.repeat(size / 10 + 1).slice(0, size));
      await Promise.all(bodies.map((body) => client.sendEvent(new Message(body))));
      assert.deepEqual((await events.wait(3)).map((event) => event.body), bodies);
      events.close();
      await assert.rejects(client.sendEvent(new Message('x'.repeat(263_000))));
      await client.close();
      const received = [];
      const receiver = await open(await hub.createDevice(id.concat('-2')), transport);
      receiver.on('message', (message) => {
        received.push(message.data.toString());
        receiver.complete(message, () => {});
      });
      const large = 'z'.repeat(64_000);
      await hub.sendC2d(`${id}-2`, large);
      await waitUntil(() => received.length === 1, 'a large message');
      assert.equal(received[0], large);
      await receiver.close();
    });

    test('messages completed, abandoned and rejected', async () => {
      const id = newId();
      const client = await open(await hub.createDevice(id), transport);
      const seen = [];
      client.on('message', (message) => {
        const body = message.data.toString();
        const times = seen.filter((other) => other === body).length;
        seen.push(body);
        if (body === 'held') return;
        // One at a time: rhea merges outcomes of neighbours that are settled in the same tick.
        const settle = body === 'reject' ? 'reject' : body === 'abandon' && times < 2 ? 'abandon' : 'complete';
        client[settle](message, () => {});
      });
      const count = (body) => seen.filter((other) => other === body).length;
      for (const [body, times] of [['complete', 1], ['reject', 1], ['abandon', 3]]) {
        await hub.sendC2d(id, body);
        await waitUntil(() => count(body) === times, body);
      }
      const pending = () => hub.request('GET', `/devices/${id}`).then(({ body }) => body.cloudToDeviceMessageCount);
      await waitUntil(async () => (await pending()) === 0, 'an empty queue');
      assert.deepEqual([count('complete'), count('reject'), count('abandon')], [1, 1, 3]);
      // What is not settled when the client goes comes again.
      await hub.sendC2d(id, 'held');
      await waitUntil(() => count('held') === 1, 'the message that is held');
      await client.close();
      const again = await open((await hub.deviceString(id)), transport);
      const arrived = [];
      again.on('message', (message) => {
        arrived.push(message.data.toString());
        again.complete(message, () => {});
      });
      await waitUntil(() => arrived.includes('held'), 'the message again');
      await again.close();
    });

    for (const signal of ['SIGKILL', 'SIGTERM']) test(`after ${signal} to the hub the SDK goes on by itself, and nothing acknowledged is lost`, async () => {
      const id = newId();
      const client = Client.fromConnectionString(await hub.createDevice(id), transport);
      await client.open();
      const messages = [];
      client.on('message', (message) => {
        messages.push(message.data.toString());
        client.complete(message, () => {});
      });
      client.onDeviceMethod('ping', (_, response) => response.send(200, 'pong', () => {}));
      await invoke(id, 'ping');
      const acknowledged = [];
      const send = (n) => client.sendEvent(new Message(String(n))).then(() => acknowledged.push(n));
      await Promise.all([...Array(100).keys()].map(send));
      const under = [...Array(100).keys()].map((n) => send(100 + n).catch(() => {}));
      await hub.restart(signal);
      const back = Date.now();
      await hub.sendC2d(id, 'sent while away');
      await Promise.all(under);
      for (let n = 200; n < 220; n += 1) await send(n);
      await waitUntil(() => messages.includes('sent while away'), 'the message sent while away', 60);
      assert.equal((await invoke(id, 'ping')).payload, 'pong');
      // The SDK takes 45 seconds to come to terms with a close; the hub hangs up instead.
      assert.ok(Date.now() - back < 20_000, `${Date.now() - back} ms`);
      const events = await hub.events(id);
      await waitUntil(() => events.received.some((event) => event.body === 219), 'the last event');
      const arrived = new Set(events.received.map((event) => event.body));
      assert.deepEqual(acknowledged.filter((n) => !arrived.has(n)), []);
      events.close();
      await client.close();
    });
  });
}

describe('tokens that end', () => {
  let own;
  before(async () => {
    const config = join(tmpdir(), `holdfast-${process.pid}.toml`);
    writeFileSync(config, '[hub]\nclock_skew = "0s"\ntoken_grace = "0s"\n');
    own = await Hub.start('--config', config, '--mqtt-port', '0', '--amqp-port', '0', '--https-port', '0');
  });
  after(() => own.stop());

  const host = () => `${own.host}:${own.amqpPort}`;

  test('the SDK renews them on the open connection', async () => {
    const id = newId();
    const key = /SharedAccessKey=(.*)$/.exec(await own.createDevice(id))[1];
    const options = { ca: own.ca, tokenRenewal: { tokenValidTimeInSeconds: 4, tokenRenewalMarginInSeconds: 2 } };
    const client = await open(`HostName=${host()};DeviceId=${id};SharedAccessKey=${key}`, Amqp, { options });
    let disconnects = 0;
    client.on('disconnect', () => (disconnects += 1));
    const events = await own.events(id);
    const end = Date.now() + 9000;
    let sent = 0;
    for (; Date.now() < end; sent += 1) {
      await client.sendEvent(new Message(String(sent)));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    assert.deepEqual((await events.wait(sent)).map((event) => event.body), [...Array(sent).keys()]);
    assert.equal(disconnects, 0);
    events.close();
    await client.close();
  });

  test('without a new one the device is disconnected', async () => {
    const id = newId();
    const key = /SharedAccessKey=(.*)$/.exec(await own.createDevice(id))[1];
    const client = Client.fromSharedAccessSignature(sasToken(`${host()}/devices/${id}`, key, undefined, 3), Amqp);
    client.setRetryPolicy(new NoRetry());
    await client.setOptions({ ca: own.ca });
    await client.open();
    await client.sendEvent(new Message('1'));
    const error = new Promise((resolve) => client.on('disconnect', resolve));
    await assert.doesNotReject(Promise.race([error, new Promise((_, reject) => setTimeout(reject, 15_000).unref())]));
    await assert.rejects(client.sendEvent(new Message('2')));
  });

  test('a new token keeps the links of one device; those of another and of a service end with theirs', async () => {
    const device = async () => {
      const id = newId();
      const key = /SharedAccessKey=(.*)$/.exec(await own.createDevice(id))[1];
      return { audience: `${own.host}/devices/${id}`, key, address: `/devices/${id}/messages/events` };
    };
    const [renewed, left] = [await device(), await device()];
    const short = ({ audience, key }) => [audience, sasToken(audience, key, undefined, 3)];
    const { SharedAccessKeyName: policy, SharedAccessKey: key } = own.parts;
    const tokens = [short(renewed), short(left), [own.host, sasToken(own.host, key, policy, 3)]];
    const connection = await login(own, tokens, { port: own.amqpPort });
    const body = rhea.message.data_section(Buffer.from('1'));
    const [keeps, loses, service] = [
      await sender(connection, renewed.address),
      await sender(connection, left.address),
      await sender(connection, '/messages/devicebound'),
    ];
    await Promise.all([keeps, loses].map((link) => deliver(link, { body })));
    const answer = await connection.cbs(putToken(renewed.audience, sasToken(renewed.audience, renewed.key)));
    assert.equal(answer.application_properties['status-code'], 200);
    const conditions = await Promise.all([closed(loses), closed(service)]);
    assert.deepEqual(conditions.map(({ condition }) => condition), Array(2).fill('amqp:unauthorized-access'));
    await deliver(keeps, { body });
    assert.ok(!keeps.error);
    assert.equal((await refusal(connection, 'sender', left.address)).condition, 'amqp:unauthorized-access');
    connection.close();
  });
});
