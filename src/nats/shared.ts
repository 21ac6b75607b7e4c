import { ClosedConnectionError } from "@nats-io/nats-core";
import { type Connection, disconnect } from "./connection.ts";

/**
 * One connection for several who would each open their own: who comes first opens it, who leaves last closes it. Each is
 * given a connection that is closed for itself alone.
 */
export function shareConnection(connect: (ms: number) => Promise<Connection>): (ms: number) => Promise<Connection> {
  let users = 0;
  let opened: Promise<Connection> | undefined;

  function left(): void {
    users -= 1;
    if (users > 0) return;
    opened?.then(disconnect, () => {});
    opened = undefined;
  }

  return async (ms) => {
    users += 1;
    opened ??= connect(ms);
    try {
      return handleOf(await opened, left);
    } catch (error) {
      left();
      throw error;
    }
  };
}

/** The same connection to use, and an end of its own, of which `left` is told once. */
function handleOf(connection: Connection, left: () => void): Connection {
  const own = Promise.withResolvers<void>();
  let isClosed = false;
  function open(): Connection {
    if (isClosed) throw new ClosedConnectionError();
    return connection;
  }
  return {
    publish: (...args: Parameters<Connection["publish"]>) => open().publish(...args),
    subscribe: (...args: Parameters<Connection["subscribe"]>) => open().subscribe(...args),
    request: async (...args: Parameters<Connection["request"]>) => open().request(...args),
    closed: () => Promise.race([own.promise, connection.closed()]),
    status: () => connection.status?.() ?? nothing(),
    get info() {
      return connection.info as NonNullable<Connection["info"]>;
    },
    get confirmed() {
      return connection.confirmed ?? Promise.resolve();
    },
    inboxPrefix: connection.inboxPrefix ?? "_INBOX",
    async close() {
      if (isClosed) return;
      isClosed = true;
      own.resolve();
      left();
    },
  };
}

async function* nothing(): AsyncGenerator<{ type: string }> {}
