// Runs the suites against one hub: `node run.mjs [arguments of node --test]`.
//
// The hub is started here and not in the suites, because Node.js reads NODE_EXTRA_CA_CERTS, which is how a user makes the
// SDKs trust a private authority, only when a process starts.

import { spawn } from 'node:child_process';
import http from 'node:http';

import { Hub } from './hub.mjs';

const hub = await Hub.start();

// POST /SIGKILL or /SIGTERM ends the hub so and starts it again: suites run in processes of their own.
const control = http.createServer((request, response) => {
  hub.restart(request.url.slice(1)).then(
    () => response.end(),
    (error) => response.writeHead(500).end(String(error)),
  );
});
await new Promise((resolve) => control.listen(0, '127.0.0.1', resolve));

const env = {
  ...process.env,
  NODE_EXTRA_CA_CERTS: hub.caFile,
  HOLDFAST_TEST_CONNECTION_STRING: hub.owner,
  HOLDFAST_TEST_CA: hub.caFile,
  HOLDFAST_TEST_DPS_CS: hub.provisioner,
  HOLDFAST_TEST_ID_SCOPE: hub.idScope,
  HOLDFAST_TEST_CONTROL: `http://127.0.0.1:${control.address().port}`,
};
const args = ['--test', '--test-concurrency=1', ...process.argv.slice(2)];
const tests = spawn(process.execPath, args, { stdio: 'inherit', env, cwd: import.meta.dirname });
const code = await new Promise((resolve) => tests.on('exit', (status) => resolve(status ?? 1)));
control.close();
await hub.stop();
process.exit(code);
