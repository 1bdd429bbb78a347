// Starts `holdfast serve` for a test run and talks to the parts of it that the SDKs have no call for.

import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Waits for `condition()` (may be async) to be truthy; throws naming `what` after the deadline. */
export async function waitUntil(condition, what, seconds = 20) {
  const deadline = Date.now() + seconds * 1000;
  while (Date.now() < deadline) {
    const result = await condition();
    if (result) return result;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`after ${seconds} s still waiting for: ${what}`);
}

const parse = (text) =>
  Object.fromEntries(text.split(';').map((part) => [part.slice(0, part.indexOf('=')), part.slice(part.indexOf('=') + 1)]));

/** The variables of a connection.env. */
function readEnv(path) {
  const values = {};
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    const match = /^(?:export )?([A-Z_]+)=(.*)$/.exec(line);
    if (match) values[match[1]] = match[2].replace(/^'(.*)'$/, '$1').replace(/^"(.*)"$/, '$1');
  }
  return values;
}

export class Hub {
  /**
   * Starts a hub on the ports that the SDKs fix. The caller (cargo xtask test) holds the lock on those ports.
   * `flags` are further arguments of `serve`, such as those of a hub on free ports.
   */
  static async start(...flags) {
    const hub = new Hub();
    hub.directory = mkdtempSync(join(tmpdir(), 'holdfast-node-'));
    hub.data = join(hub.directory, 'data');
    hub.flags = flags;
    await hub.#launch();
    return hub;
  }

  async #launch() {
    const binary = process.env.HOLDFAST_BIN;
    if (!binary) throw new Error('set HOLDFAST_BIN to the holdfast program (cargo xtask test does)');
    const log = openSync(join(this.directory, 'log'), 'a');
    const args = ['serve', '--data-dir', this.data, '--no-profile', ...this.flags];
    const envFile = join(this.data, 'connection.env');
    rmSync(envFile, { force: true });
    const child = spawn(binary, args, { stdio: ['ignore', log, log] });
    closeSync(log);
    this.process = child;
    this.exited = new Promise((resolve) => child.on('exit', resolve));
    await waitUntil(async () => {
      if (child.exitCode !== null) throw new Error(readFileSync(join(this.directory, 'log'), 'utf8'));
      if (!existsSync(envFile)) return false;
      const values = readEnv(envFile);
      this.owner = values.HOLDFAST_OWNER_CS;
      this.caFile = values.HOLDFAST_CA;
      this.provisioner = values.HOLDFAST_DPS_CS;
      this.idScope = values.HOLDFAST_ID_SCOPE;
      this.httpsPort = Number(values.HOLDFAST_HTTPS_PORT ?? 443);
      this.amqpPort = Number(values.HOLDFAST_AMQP_PORT ?? 5671);
      this.amqpPlain = values.HOLDFAST_AMQP_PLAIN;
      this.ca = readFileSync(this.caFile, 'utf8');
      this.parts = parse(this.owner);
      try {
        return (await this.request('GET', '/readyz')).status === 200;
      } catch {
        return false;
      }
    }, 'holdfast serve to be ready', 30);
  }

  /** Ends the hub with a signal and starts it again on the same data. */
  async restart(signal) {
    const { HOLDFAST_TEST_CONTROL: control } = process.env;
    if (!this.process) {
      const answer = await fetch(`${control}/${signal}`, { method: 'POST' });
      if (!answer.ok) throw new Error(await answer.text());
      return;
    }
    this.process.kill(signal);
    await this.exited;
    await this.#launch();
  }

  /** The hub that run.mjs started, or any other that the environment names. */
  static running() {
    const { HOLDFAST_TEST_CONNECTION_STRING: owner, HOLDFAST_TEST_CA: caFile } = process.env;
    if (!owner || !caFile) throw new Error('run the suites with: node run.mjs');
    const ca = readFileSync(caFile, 'utf8');
    const { HOLDFAST_TEST_DPS_CS: provisioner, HOLDFAST_TEST_ID_SCOPE: idScope } = process.env;
    return Object.assign(new Hub(), { owner, caFile, ca, provisioner, idScope, parts: parse(owner) });
  }

  get host() {
    return this.parts.HostName;
  }

  authorization() {
    const expiry = Math.floor(Date.now() / 1000) + 3600;
    const resource = encodeURIComponent(this.host);
    const key = Buffer.from(this.parts.SharedAccessKey, 'base64');
    const signature = createHmac('sha256', key).update(`${resource}\n${expiry}`).digest('base64');
    const name = this.parts.SharedAccessKeyName;
    return `SharedAccessSignature sr=${resource}&sig=${encodeURIComponent(signature)}&se=${expiry}&skn=${name}`;
  }

  /** A service request; resolves to {status, headers, body (parsed JSON or text)}. */
  request(method, path, json, headers = {}) {
    const separator = path.includes('?') ? '&' : '?';
    const payload = json === undefined ? undefined : JSON.stringify(json);
    const options = {
      host: this.host,
      port: this.httpsPort,
      path: `${path}${separator}api-version=2021-04-12`,
      method,
      ca: this.ca,
      agent: false,
      headers: { Authorization: this.authorization(), ...(payload && { 'Content-Type': 'application/json' }), ...headers },
    };
    return new Promise((resolve, reject) => {
      const request = https.request(options, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (chunk) => (text += chunk));
        response.on('end', () => {
          const isJson = (response.headers['content-type'] ?? '').includes('application/json');
          resolve({ status: response.statusCode, headers: response.headers, body: isJson && text ? JSON.parse(text) : text });
        });
      });
      request.on('error', reject);
      request.end(payload);
    });
  }

  /** Registers a device and resolves to its connection string. */
  async createDevice(deviceId, body = {}) {
    const answer = await this.request('PUT', `/devices/${encodeURIComponent(deviceId)}`, { deviceId, ...body });
    if (answer.status !== 200) throw new Error(JSON.stringify(answer.body));
    const key = answer.body.authentication?.symmetricKey?.primaryKey;
    return `HostName=${this.host};DeviceId=${deviceId};SharedAccessKey=${key}`;
  }

  /** The connection string of a device that is there. */
  async deviceString(deviceId) {
    const { body } = await this.request('GET', `/devices/${encodeURIComponent(deviceId)}`);
    return `HostName=${this.host};DeviceId=${deviceId};SharedAccessKey=${body.authentication.symmetricKey.primaryKey}`;
  }

  async sendC2d(deviceId, body, options = {}) {
    const answer = await this.request('POST', `/holdfast/v1/devices/${deviceId}/messages`, { body, ...options });
    if (answer.status !== 201) throw new Error(JSON.stringify(answer.body));
    return answer.body;
  }

  /** Collects the events of one device; call close() on the result. */
  async events(deviceId) {
    const received = [];
    const request = https.request({
      host: this.host,
      port: this.httpsPort,
      path: `/holdfast/v1/events?device=${encodeURIComponent(deviceId)}&from=earliest`,
      ca: this.ca,
      agent: false,
      headers: { Authorization: this.authorization(), Accept: 'text/event-stream' },
    });
    request.on('error', () => {});
    request.end();
    const response = await new Promise((resolve) => request.on('response', resolve));
    // What a failed test leaves open must not keep the process alive.
    response.socket.unref();
    let rest = '';
    response.setEncoding('utf8').on('data', (chunk) => {
      const lines = (rest + chunk).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line.startsWith('data:')) received.push(JSON.parse(line.slice(5)));
    });
    response.on('error', () => {});
    return {
      received,
      wait: (count) => waitUntil(() => received.length >= count && received, `${count} events`),
      close: () => request.destroy(),
    };
  }

  async stop() {
    this.process.kill('SIGTERM');
    const code = await this.exited;
    rmSync(this.directory, { recursive: true, force: true });
    if (code !== 0) throw new Error(`holdfast serve ended with ${code}`);
  }
}
