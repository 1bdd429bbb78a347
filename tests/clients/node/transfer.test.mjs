// Import and export jobs of the unmodified Node.js service SDK, with blobs in Azurite and real shared access signatures.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHmac, randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { Hub, waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Registry } = require('azure-iothub');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);

// Azurite's well-known account.
const ACCOUNT = 'devstoreaccount1';
const KEY = Buffer.from(
  'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==',
  'base64',
);
const VERSION = '2021-08-06';

let azurite;
let directory;
let base;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'holdfast-azurite-'));
  const program = join(import.meta.dirname, 'node_modules/azurite/dist/src/blob/main.js');
  const args = [program, '--blobPort', '0', '--location', directory, '--disableTelemetry'];
  azurite = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  azurite.stdout.setEncoding('utf8').on('data', (chunk) => (text += chunk));
  const found = await waitUntil(() => /listens on (http:\/\/[\d.]+:\d+)/.exec(text), 'Azurite to listen');
  azurite.stdout.unref?.();
  base = found[1];
});

after(async () => {
  azurite.kill('SIGTERM');
  await new Promise((resolve) => azurite.on('exit', resolve));
  rmSync(directory, { recursive: true, force: true });
});

/** Query of a service SAS for a container. */
function signature(container, permissions, expires = Date.now() + 3600_000) {
  const expiry = new Date(expires).toISOString().replace(/\.\d+/, '');
  const resource = `/blob/${ACCOUNT}/${container}`;
  const parts = [permissions, '', expiry, resource, '', '', '', VERSION, 'c', '', '', '', '', '', '', ''];
  const sig = createHmac('sha256', KEY).update(parts.join('\n')).digest('base64');
  return new URLSearchParams({ sv: VERSION, se: expiry, sr: 'c', sp: permissions, sig }).toString();
}

/** Makes a container; gives its URI with a signature. */
async function container(permissions = 'rwdlac') {
  const name = `box-${randomUUID()}`;
  const date = new Date().toUTCString();
  const fields = `x-ms-date:${date}\nx-ms-version:${VERSION}`;
  const signed = `PUT\n\n\n\n\n\n\n\n\n\n\n\n${fields}\n/${ACCOUNT}/${ACCOUNT}/${name}\nrestype:container`;
  const key = createHmac('sha256', KEY).update(signed).digest('base64');
  const answer = await fetch(`${base}/${ACCOUNT}/${name}?restype=container`, {
    method: 'PUT',
    headers: { 'x-ms-date': date, 'x-ms-version': VERSION, authorization: `SharedKey ${ACCOUNT}:${key}` },
  });
  assert.equal(answer.status, 201, await answer.text());
  return { name, uri: `${base}/${ACCOUNT}/${name}?${signature(name, permissions)}` };
}

const blobUrl = (name, blob) => `${base}/${ACCOUNT}/${name}/${blob}?${signature(name, 'rwdlac')}`;

async function read(name, blob) {
  const answer = await fetch(blobUrl(name, blob), { headers: { 'x-ms-version': VERSION } });
  assert.equal(answer.status, 200, `${blob}: ${answer.status}`);
  return answer.text();
}

async function write(name, blob, text) {
  const headers = { 'x-ms-version': VERSION, 'x-ms-blob-type': 'BlockBlob' };
  const answer = await fetch(blobUrl(name, blob), { method: 'PUT', headers, body: text });
  assert.equal(answer.status, 201, await answer.text());
}

/** Some calls of the SDK resolve to the body itself, others to an object that has it. */
const bodied = (answer) => (answer.responseBody === undefined ? { responseBody: answer } : answer);

const ended = (job) =>
  waitUntil(async () => {
    const { responseBody } = bodied(await registry.getJob(job.jobId));
    return responseBody.status !== 'running' && responseBody;
  }, `job ${job.jobId} to end`, 120);

test('a fleet goes through blobs and comes back', async () => {
  const prefix = `node-${randomUUID().slice(0, 8)}`;
  const input = await container();
  const output = await container();
  // More than one block of 4 MiB, so that the export is put together.
  const devices = 6_000;
  const note = 'x'.repeat(600);
  const lines = Array.from({ length: devices }, (_, n) =>
    JSON.stringify({ id: `${prefix}-${String(n).padStart(5, '0')}`, tags: { n, note } }),
  );
  lines.splice(17, 0, 'not json');
  await write(input.name, 'devices.txt', `${lines.join('\n')}\n`);
  const imported = await ended(bodied(await registry.importDevicesFromBlob(input.uri, output.uri)).responseBody);
  assert.equal(imported.status, 'completed', imported.failureReason);
  assert.equal(imported.progress, 100);
  const errors = (await read(output.name, 'importErrors.log')).trim().split('\n').map((line) => JSON.parse(line));
  assert.deepEqual(errors.map((error) => error.line), [18]);
  const twin = (await registry.getTwin(`${prefix}-05999`)).responseBody;
  assert.equal(twin.tags.n, 5999);

  const exported = await ended(bodied(await registry.exportDevicesToBlob(output.uri, false)).responseBody);
  assert.equal(exported.status, 'completed', exported.failureReason);
  assert.ok(!exported.outputBlobContainerUri.includes('sig='));
  const text = await read(output.name, 'devices.txt');
  assert.ok(text.length > 4 << 20, `${text.length} bytes`);
  const found = text.trim().split('\n').map((line) => JSON.parse(line)).filter((line) => line.id.startsWith(prefix));
  assert.equal(found.length, devices);
  assert.deepEqual(found.map((line) => line.tags.n), Array.from({ length: devices }, (_, n) => n));
  const device = (await registry.get(`${prefix}-00000`)).responseBody;
  assert.equal(found[0].authentication.symmetricKey.primaryKey, device.authentication.symmetricKey.primaryKey);
  const jobs = bodied(await registry.listJobs()).responseBody;
  assert.ok(jobs.some((job) => job.jobId === exported.jobId));

  // The same fleet again, to be deleted.
  const gone = found.map((line) => JSON.stringify({ id: line.id, importMode: 'delete' }));
  await write(input.name, 'devices.txt', gone.join('\n'));
  const deleted = await ended(bodied(await registry.importDevicesFromBlob(input.uri, output.uri)).responseBody);
  assert.equal(deleted.failureReason, undefined);
  assert.equal(await read(output.name, 'importErrors.log'), '');
  await assert.rejects(registry.get(`${prefix}-00000`), { name: 'DeviceNotFoundError' });
});

test('signatures that do not allow it', async () => {
  const output = await container();
  const readOnly = await container('r');
  const exported = await ended(bodied(await registry.exportDevicesToBlob(readOnly.uri, true)).responseBody);
  assert.equal(exported.status, 'failed');
  assert.match(exported.failureReason, /HTTP 403/);
  const forged = output.uri.replace(/sig=[^&]+/, 'sig=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D');
  const imported = await ended(bodied(await registry.importDevicesFromBlob(forged, output.uri)).responseBody);
  assert.equal(imported.status, 'failed');
  assert.match(imported.failureReason, /HTTP 403/);
  const empty = await ended(bodied(await registry.importDevicesFromBlob(output.uri, output.uri)).responseBody);
  assert.equal(empty.status, 'failed');
  assert.match(empty.failureReason, /no such container or blob \(HTTP 404/);
  const past = signature(output.name, 'rwdlac', Date.now() - 60_000);
  const expired = `${base}/${ACCOUNT}/${output.name}?${past}`;
  await assert.rejects(registry.exportDevicesToBlob(expired, true), (error) => /expired/.test(error.responseBody));
});
