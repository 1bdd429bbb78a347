// File upload with the unmodified device and service SDKs for Node.js and @azure/storage-blob: into the embedded store, and
// into an account elsewhere, which is Azurite.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Client: Device } = require('azure-iot-device');
const { Mqtt } = require('azure-iot-device-mqtt');
const { Client: Service } = require('azure-iothub');
const { BlockBlobClient } = require('@azure/storage-blob');

// uploadToBlob leaves a timer of half an hour behind each upload; the process shall not wait for it.
const { setTimeout: startTimer } = globalThis;
globalThis.setTimeout = (callback, delay, ...rest) => {
  const timer = startTimer(callback, delay, ...rest);
  return delay >= 30 * 60 * 1000 ? timer.unref() : timer;
};

const hub = Hub.running();
const MIB = 1 << 20;

let service;
const arrived = [];
let abandoned = 0;

before(async () => {
  service = Service.fromConnectionString(hub.owner);
  await service.open();
  // Its promise resolves to something else.
  const receiver = await new Promise((resolve, reject) =>
    service.getFileNotificationReceiver((error, made) => (error ? reject(error) : resolve(made))),
  );
  const seen = new Set();
  receiver.on('message', (message) => {
    const notification = JSON.parse(message.data.toString());
    // Each is given back once, and comes again.
    if (!seen.has(notification.blobName)) {
      seen.add(notification.blobName);
      abandoned += 1;
      receiver.abandon(message, () => {});
      return;
    }
    arrived.push(notification);
    receiver.complete(message, () => {});
  });
});

after(() => service.close());

async function device() {
  const id = `node-files-${randomUUID().slice(0, 8)}`;
  const client = Device.fromConnectionString(await hub.createDevice(id), Mqtt);
  return { id, client };
}

const told = (blobName) =>
  waitUntil(() => arrived.find((one) => one.blobName === blobName), `the notification of ${blobName}`, 40);

const blobUrl = (info) => `https://${info.hostName}/${info.containerName}/${info.blobName}${info.sasToken}`;

/** A stream of so many bytes, and what their hash will be. */
function bytes(size) {
  const block = randomBytes(Math.min(size, MIB));
  const hash = createHash('sha256');
  function* pieces() {
    for (let left = size; left > 0; left -= block.length) {
      const piece = block.subarray(0, Math.min(left, block.length));
      hash.update(piece);
      yield piece;
    }
  }
  return { stream: Readable.from(pieces(), { objectMode: false }), digest: () => hash.digest('hex') };
}

for (const size of [1, 100 * MIB]) {
  test(`uploadToBlob of ${size} bytes`, async () => {
    const { id, client } = await device();
    const { stream } = bytes(size);
    await client.uploadToBlob(`n/${size}.bin`, stream, size);
    await client.close();
    const notification = await told(`${id}/n/${size}.bin`);
    assert.equal(notification.blobSizeInBytes, size);
    assert.equal(notification.deviceId, id);
    assert.ok(notification.blobUri.endsWith(`/uploads/${id}/n/${size}.bin`), notification.blobUri);
  });
}

for (const size of [0, 9 * MIB]) {
  test(`getBlobSharedAccessSignature and storage-blob, ${size} bytes`, async () => {
    const { id, client } = await device();
    const info = await client.getBlobSharedAccessSignature('own.bin');
    const blob = new BlockBlobClient(blobUrl(info));
    const { stream, digest } = bytes(size);
    if (size === 0) await blob.upload('', 0);
    else await blob.uploadStream(stream, 4 * MIB, 2);
    const found = createHash('sha256');
    const download = await blob.download();
    for await (const piece of download.readableStreamBody) found.update(piece);
    assert.equal(found.digest('hex'), digest());
    await client.notifyBlobUploadStatus(info.correlationId, true, 200, 'done');
    assert.equal((await told(`${id}/own.bin`)).blobSizeInBytes, size);
    // The signature ended with the upload.
    await assert.rejects(blob.upload('again', 5), (error) => error.statusCode === 403 && error.code === 'AuthenticationFailed');
    await assert.rejects(client.notifyBlobUploadStatus(info.correlationId, true, 200, 'again'));
    await client.close();
  });
}

test('a failure is told to nobody and ends the signature', async () => {
  const { client } = await device();
  const info = await client.getBlobSharedAccessSignature('broken.bin');
  const blob = new BlockBlobClient(blobUrl(info));
  await blob.upload('half', 4);
  await client.notifyBlobUploadStatus(info.correlationId, false, -1, 'broken');
  await assert.rejects(blob.upload('again', 5), (error) => error.statusCode === 403);
  await client.close();
  assert.ok(!arrived.some((one) => one.blobName === info.blobName));
});

test('notifications given back come again', () => {
  assert.equal(abandoned, arrived.length);
  assert.ok(abandoned >= 4, `${abandoned}`);
});

test('an account elsewhere', async (context) => {
  const directory = mkdtempSync(join(tmpdir(), 'holdfast-files-'));
  // Azurite presents the certificate of the hub, whose authority everybody here trusts.
  const tls = join(dirname(hub.caFile), 'tls');
  const program = join(import.meta.dirname, 'node_modules/azurite/dist/src/blob/main.js');
  const azurite = spawn(
    process.execPath,
    [
      program, '--blobHost', 'localhost', '--blobPort', '0', '--location', directory, '--disableTelemetry', '--skipApiVersionCheck', '--loose',
      '--cert', join(tls, 'server-ec.pem'), '--key', join(tls, 'server-ec.key'),
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  context.after(async () => {
    azurite.kill('SIGTERM');
    await new Promise((resolve) => azurite.on('exit', resolve));
    rmSync(directory, { recursive: true, force: true });
  });
  let text = '';
  azurite.stdout.setEncoding('utf8').on('data', (chunk) => (text += chunk));
  const [, port] = await waitUntil(() => /listens on https:\/\/[^:]+:(\d+)/.exec(text), 'Azurite to listen');
  azurite.stdout.unref?.();

  const calls = [];
  const hook = http.createServer((request, response) => {
    let body = '';
    request.setEncoding('utf8').on('data', (chunk) => (body += chunk));
    request.on('end', () => {
      calls.push(JSON.parse(body));
      response.writeHead(200).end();
    });
  });
  await new Promise((resolve) => hook.listen(0, '127.0.0.1', resolve));
  context.after(() => {
    hook.close();
    hook.closeAllConnections();
  });

  const key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
  const account = `AccountName=devstoreaccount1;AccountKey=${key};BlobEndpoint=https://localhost:${port}/devstoreaccount1;`;
  const config = join(directory, 'holdfast.toml');
  writeFileSync(
    config,
    `[files]\naccount = "${account}"\ncontainer = "devices"\nwebhook = "http://127.0.0.1:${hook.address().port}/"\n[blob]\nenabled = false\n`,
  );
  process.env.SSL_CERT_FILE = hub.caFile;
  const other = await Hub.start('--config', config, '--mqtt-port', '0', '--https-port', '0', '--amqp-port', '0');
  context.after(() => other.stop());
  await other.createDevice('d1');

  // A policy with DeviceConnect may speak for a device.
  const begun = await other.request('POST', '/devices/d1/files', { blobName: 'far.bin' });
  assert.equal(begun.status, 200, JSON.stringify(begun.body));
  const info = begun.body;
  assert.equal(info.hostName, `localhost:${port}`);
  assert.equal(info.containerName, 'devstoreaccount1/devices');
  const early = await other.request('POST', '/devices/d1/files/notifications', {
    correlationId: info.correlationId, isSuccess: true, statusCode: 200, statusDescription: '',
  });
  assert.equal(early.status, 400);
  assert.match(early.body.Message, /InvalidStorageEndpointOrBlob/);
  const { stream } = bytes(9 * MIB);
  await new BlockBlobClient(blobUrl(info)).uploadStream(stream, 4 * MIB, 2);
  const ended = await other.request('POST', `/devices/d1/files/notifications/${info.correlationId}`, {
    isSuccess: true, statusCode: 200, statusDescription: '',
  });
  assert.equal(ended.status, 204, JSON.stringify(ended.body));
  const [call] = await waitUntil(() => calls.length > 0 && calls, 'the webhook');
  assert.equal(call.blobSizeInBytes, 9 * MIB);
  assert.equal(call.blobName, 'd1/far.bin');
  assert.equal(call.blobUri, `https://localhost:${port}/devstoreaccount1/devices/d1/far.bin`);
});
