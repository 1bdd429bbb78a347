// AMQP 1.0 through rhea: layouts of links, logins and settlements of clients that do not run here (.NET, Java, C, the Azure
// command line), as the contract describes them.

import { createHmac, randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { after } from 'node:test';

const require = createRequire(import.meta.url);
export const rhea = require('rhea');

/** What the text of a SASL mechanism without content is to rhea. */
const SILENT = () => ({ start: (callback) => callback(undefined, Buffer.alloc(0)) });
export const MSSBCBS = { sasl_mechanisms: { MSSBCBS: SILENT } };

const SECONDS = 20;

/** What a failed test leaves open would keep the process alive. */
const opened = new Set();
after(() => opened.forEach((connection) => connection.close()));

/** Settles with the first of `events` (name to function of the context), or fails naming `what`. */
function first(emitter, events, what) {
  return new Promise((resolve, reject) => {
    const handlers = Object.entries(events).map(([name, settle]) => [
      name,
      (context) => {
        done();
        settle(context, resolve, reject);
      },
    ]);
    const timer = setTimeout(() => {
      done();
      reject(new Error(`after ${SECONDS} s still waiting for: ${what}`));
    }, SECONDS * 1000);
    const done = () => {
      clearTimeout(timer);
      for (const [name, handler] of handlers) emitter.removeListener(name, handler);
    };
    for (const [name, handler] of handlers) emitter.on(name, handler);
  });
}

function failure(error) {
  const { condition, description, info } = error ?? {};
  return Object.assign(new Error(description ?? 'without a reason'), { condition, info });
}

/** A shared access signature; `lifetime` in seconds may be negative. */
export function sasToken(resource, key, policy, lifetime = 3600) {
  const expiry = Math.floor(Date.now() / 1000) + lifetime;
  const encoded = encodeURIComponent(resource);
  const signature = createHmac('sha256', Buffer.from(key, 'base64')).update(`${encoded}\n${expiry}`).digest('base64');
  const token = `SharedAccessSignature sr=${encoded}&sig=${encodeURIComponent(signature)}&se=${expiry}`;
  return policy ? `${token}&skn=${policy}` : token;
}

/**
 * Opens a connection. Without a user name it begins with a bare AMQP header; with user name and password it logs in by SASL
 * PLAIN, with a user name alone by ANONYMOUS.
 */
export async function open(hub, options = {}) {
  const connection = rhea.create_container().connect({
    transport: 'tls',
    host: hub.host,
    port: 5671,
    servername: hub.host,
    ca: hub.ca,
    reconnect: false,
    ...options,
  });
  // rhea makes an exception of an error that nobody listens for.
  for (const event of ['error', 'connection_error', 'session_error', 'sender_error', 'receiver_error', 'protocol_error']) {
    connection.on(event, () => {});
  }
  await first(
    connection,
    {
      connection_open: (_, resolve) => resolve(),
      connection_error: ({ connection: { error } }, _, reject) => reject(failure(error)),
      disconnected: ({ error }, _, reject) => reject(error ?? new Error('disconnected')),
    },
    'the connection to open',
  );
  opened.add(connection);
  return connection;
}

export function begin(connection) {
  const session = connection.create_session();
  session.begin();
  return session;
}

function link(parent, kind, options) {
  const made = parent[`open_${kind}`](options);
  made.setMaxListeners(Infinity);
  made.on(`${kind}_error`, () => {});
  return made;
}

async function attach(parent, kind, options) {
  const made = link(parent, kind, options);
  await first(
    made,
    {
      // A refusal is an attach all the same, with the detach right behind it: use the link, or `refusal`, to see.
      [`${kind}_open`]: (_, resolve) => resolve(),
      [`${kind}_close`]: (_, __, reject) => reject(failure(made.error)),
    },
    `the ${kind} to open`,
  );
  return made;
}

export const sender = (parent, address, options = {}) => attach(parent, 'sender', { target: { address }, ...options });

/** A receiver; `received` grows, deliveries are left to the caller unless `options` say otherwise. */
export async function receiver(parent, address, options = {}) {
  const received = [];
  const made = await attach(parent, 'receiver', { source: { address }, autoaccept: false, credit_window: 100, ...options });
  made.on('message', (context) => received.push(context));
  return Object.assign(made, { received });
}

/** Resolves to the error with which the hub closes a link, attached or about to be. */
export async function closed(made) {
  const kind = made.is_receiver() ? 'receiver' : 'sender';
  if (!made.error) await first(made, { [`${kind}_close`]: (_, resolve) => resolve() }, `the ${kind} to be closed`);
  return made.error;
}

/** Asks for a link that the hub must refuse; resolves to the error. */
export function refusal(parent, kind, address, options = {}) {
  const terminus = kind === 'sender' ? { target: { address } } : { source: { address } };
  return closed(link(parent, kind, { ...terminus, ...options }));
}

/** Sends one message; resolves when it is accepted. With `format`, `message` is encoded already. */
export function deliver(link, message, format) {
  const delivery = link.send(message, undefined, format);
  return new Promise((resolve, reject) => {
    const outcomes = {
      accepted: (context) => resolve(context),
      released: () => reject(new Error('released')),
      rejected: () => reject(failure(delivery.remote_state.error)),
    };
    const handlers = Object.entries(outcomes).map(([name, settle]) => [
      name,
      (context) => {
        if (context.delivery !== delivery) return;
        done();
        settle(context);
      },
    ]);
    const timer = setTimeout(() => {
      done();
      reject(new Error(`no outcome after ${SECONDS} s`));
    }, SECONDS * 1000);
    const done = () => {
      clearTimeout(timer);
      for (const [name, handler] of handlers) link.removeListener(name, handler);
    };
    for (const [name, handler] of handlers) link.on(name, handler);
  });
}

/** Opens the links of a request-response node (`$cbs`, `$management`); gives a function from request to answer. */
export async function requester(parent, node, names = {}) {
  const [requests, answers] = await Promise.all([
    sender(parent, node, { name: names.sender ?? randomUUID() }),
    receiver(parent, node, { name: names.receiver ?? randomUUID(), autoaccept: true }),
  ]);
  const waiting = [];
  answers.on('message', ({ message }) => waiting.shift()?.(message));
  return (message) =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no answer of ${node} after ${SECONDS} s`)), SECONDS * 1000);
      waiting.push((message) => {
        clearTimeout(timer);
        resolve(message);
      });
      requests.send(message);
    });
}

export const putToken = (name, token, id = randomUUID()) => ({
  message_id: id,
  application_properties: { operation: 'put-token', type: 'servicebus.windows.net:sastoken', name },
  body: token,
});

/** A connection whose tokens are put: `tokens` are pairs of audience and token. */
export async function login(hub, tokens, options) {
  const connection = await open(hub, options);
  const cbs = await requester(connection, '$cbs');
  for (const [name, token] of tokens) {
    const answer = await cbs(putToken(name, token));
    const { 'status-code': status, 'status-description': text } = answer.application_properties;
    if (status !== 200) throw Object.assign(new Error(text), { status });
  }
  return Object.assign(connection, { cbs });
}

/** A connection of a service with the right of the hub's owner, or of another policy. */
export const serviceLogin = (hub, policy = hub.parts, options) =>
  login(hub, [[hub.host, sasToken(hub.host, policy.SharedAccessKey, policy.SharedAccessKeyName)]], options);
