// What the suites of @azure/event-hubs share.

import { randomUUID } from 'node:crypto';

export const connectionString = ({ host, parts }, endpoint = `sb://${host}`) =>
  `Endpoint=${endpoint}/;SharedAccessKeyName=${parts.SharedAccessKeyName};SharedAccessKey=${parts.SharedAccessKey};EntityPath=events`;

/** Reads one partition; `events` and `errors` grow, `called` tells that the link is attached. */
export function read(client, partition, startPosition, options = {}) {
  const reading = { events: [], errors: [], called: false };
  reading.subscription = client.subscribe(
    partition,
    {
      processEvents: async (events, context) => {
        reading.called = true;
        reading.context = context;
        reading.events.push(...events);
      },
      processError: async (error) => void reading.errors.push(error),
    },
    { startPosition, maxWaitTimeInSeconds: 0.2, ...options },
  );
  return reading;
}

/** A checkpoint store in memory; clients in one process share it. */
export class Checkpoints {
  #ownerships = new Map();
  #checkpoints = new Map();

  async listOwnership(_namespace, _name, group) {
    return [...this.#ownerships.values()].filter((entry) => entry.consumerGroup === group).map((entry) => ({ ...entry }));
  }

  async claimOwnership(wanted) {
    const claimed = [];
    for (const ownership of wanted) {
      const key = `${ownership.consumerGroup} ${ownership.partitionId}`;
      const held = this.#ownerships.get(key);
      // Somebody else was faster.
      if (held && held.etag !== ownership.etag) continue;
      const entry = { ...ownership, etag: randomUUID(), lastModifiedTimeInMs: Date.now() };
      this.#ownerships.set(key, entry);
      claimed.push({ ...entry });
    }
    return claimed;
  }

  async updateCheckpoint(checkpoint) {
    this.#checkpoints.set(`${checkpoint.consumerGroup} ${checkpoint.partitionId}`, { ...checkpoint });
  }

  async listCheckpoints(_namespace, _name, group) {
    return [...this.#checkpoints.values()].filter((entry) => entry.consumerGroup === group);
  }

  owners() {
    return [...this.#ownerships.values()].map((entry) => entry.ownerId).filter(Boolean);
  }
}
