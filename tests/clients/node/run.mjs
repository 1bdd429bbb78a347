// Runs the suites against one hub: `node run.mjs [arguments of node --test]`.
//
// The hub is started here and not in the suites, because Node.js reads NODE_EXTRA_CA_CERTS, which is how a user makes the
// SDKs trust a private authority, only when a process starts.

import { spawn } from 'node:child_process';

import { Hub } from './hub.mjs';

const hub = await Hub.start();
const env = {
  ...process.env,
  NODE_EXTRA_CA_CERTS: hub.caFile,
  HOLDFAST_TEST_CONNECTION_STRING: hub.owner,
  HOLDFAST_TEST_CA: hub.caFile,
  HOLDFAST_TEST_DPS_CS: hub.provisioner,
  HOLDFAST_TEST_ID_SCOPE: hub.idScope,
};
const args = ['--test', '--test-concurrency=1', ...process.argv.slice(2)];
const tests = spawn(process.execPath, args, { stdio: 'inherit', env, cwd: import.meta.dirname });
const code = await new Promise((resolve) => tests.on('exit', (status) => resolve(status ?? 1)));
await hub.stop();
process.exit(code);
