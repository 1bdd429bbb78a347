// The unmodified Node.js service SDK: queries.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { Hub } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Registry } = require('azure-iothub');

const hub = Hub.running();
const registry = Registry.fromConnectionString(hub.owner);
const run = `node-query-${randomUUID().slice(0, 8)}`;
const ids = Array.from({ length: 7 }, (_, n) => `${run}-${n}`);
const added = [];

async function add(deviceId, n) {
  await registry.create({ deviceId });
  await registry.updateTwin(deviceId, { tags: { run, n, even: n % 2 === 0 } }, '*');
}

before(async () => {
  for (const [n, deviceId] of ids.entries()) await add(deviceId, n);
});

after(async () => {
  for (const deviceId of [...ids, ...added]) await registry.delete(deviceId);
});

test('twins come page by page, while devices are added', async () => {
  const query = registry.createQuery(`SELECT * FROM devices WHERE tags.run = '${run}'`, 3);
  const seen = [];
  while (query.hasMoreResults) {
    const { result } = await query.nextAsTwin();
    for (const twin of result) {
      assert.equal(twin.tags.run, run);
      seen.push(twin.deviceId);
    }
    if (query.hasMoreResults && added.length < 2) {
      const deviceId = `a-${run}-${added.length}`;
      added.push(deviceId);
      await add(deviceId, 100);
    }
  }
  assert.equal(new Set(seen).size, seen.length, 'a device came twice');
  for (const deviceId of ids) assert.ok(seen.includes(deviceId), deviceId);
});

test('a twin of a query can be changed', async () => {
  const query = registry.createQuery(`SELECT * FROM devices WHERE tags.run = '${run}' AND tags.n = 4`);
  const [twin] = (await query.nextAsTwin()).result;
  assert.equal(twin.deviceId, ids[4]);
  const changed = (await twin.update({ tags: { floor: 1 } })).responseBody ?? twin;
  assert.equal(changed.tags.floor, 1);
});

test('columns and figures come raw', async () => {
  const condition = `STARTSWITH(deviceId, '${run}')`;
  const columns = registry.createQuery(`SELECT deviceId, tags.n FROM devices WHERE ${condition} AND tags.n < 2`);
  const rows = (await columns.next()).result;
  assert.deepEqual(rows.toSorted((a, b) => a.n - b.n), [{ deviceId: ids[0], n: 0 }, { deviceId: ids[1], n: 1 }]);
  assert.equal(columns.hasMoreResults, false);
  const groups = registry.createQuery(
    `SELECT tags.even AS even, COUNT() AS n FROM devices WHERE ${condition} GROUP BY tags.even`, 1);
  const found = [];
  // Unlike nextAsTwin, next goes on only from a token that it is given.
  while (groups.hasMoreResults) found.push(...(await groups.next(groups.continuationToken)).result);
  assert.deepEqual(found.toSorted((a, b) => a.n - b.n), [{ even: false, n: 3 }, { even: true, n: 4 }]);
});

test('a wrong query is refused', async () => {
  await assert.rejects(registry.createQuery('SELECT * FROM devices WHERE tags.a LIKE 1').nextAsTwin(), (error) => {
    assert.equal(error.name, 'ArgumentError');
    assert.match(error.responseBody ?? error.message, /LIKE/);
    return true;
  });
});
