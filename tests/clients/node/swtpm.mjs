// A software TPM (Debian: swtpm) for the SDK's TPM client.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { waitUntil } from './hub.mjs';

const require = createRequire(import.meta.url);
const { Tpm } = require('tss.js');

/** Hands commands to swtpm as they are: the `TpmDevice` of tss.js for a socket without the simulator's framing. */
class SocketDevice {
  constructor(socket) {
    this.socket = socket;
  }

  /** All clients of a TPM share its connection, since swtpm serves one at a time. */
  connect(done) {
    setImmediate(done, null);
    return null;
  }

  dispatchCommand(command, done) {
    let answer = Buffer.alloc(0);
    const take = (chunk) => {
      answer = Buffer.concat([answer, chunk]);
      // Tag, size of the whole, response code (TPM 2.0 Part 1, "Response Buffer").
      if (answer.length < 6 || answer.length < answer.readUInt32BE(2)) return;
      this.socket.off('data', take);
      setImmediate(done, null, answer);
    };
    this.socket.on('data', take);
    this.socket.write(command);
  }

  close() {
    this.socket.destroy();
  }
}

const connected = (path) =>
  new Promise((resolve) => {
    const socket = net.connect(path);
    socket.once('connect', () => resolve(socket));
    socket.once('error', () => resolve(undefined));
  });

export class SoftwareTpm {
  /** Starts a TPM that has never been used. */
  static async start() {
    const tpm = new SoftwareTpm();
    tpm.directory = mkdtempSync(join(tmpdir(), 'holdfast-swtpm-'));
    const path = join(tpm.directory, 'socket');
    const args = ['socket', '--tpm2', '--tpmstate', `dir=${tpm.directory}`, '--server', `type=unixio,path=${path}`];
    // It ends with its connection, so it does not outlive a run that is cut off.
    tpm.process = spawn('swtpm', [...args, '--flags', 'startup-clear', '--terminate'], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    tpm.process.stderr.on('data', (chunk) => (said += chunk));
    tpm.exited = new Promise((resolve) => tpm.process.on('exit', resolve));
    const socket = await waitUntil(() => {
      if (tpm.process.exitCode !== null) throw new Error(`swtpm has ended: ${said}`);
      return connected(path);
    }, 'swtpm to listen');
    tpm.device = new SocketDevice(socket);
    return tpm;
  }

  /** What the SDK's client takes in place of the machine's own TPM. */
  client() {
    const client = new Tpm(false);
    client.device = this.device;
    return client;
  }

  async stop() {
    this.device.close();
    this.process.kill('SIGTERM');
    await this.exited;
    rmSync(this.directory, { recursive: true, force: true });
  }
}
