import type { Msg } from "@nats-io/nats-core";
import type { Connection } from "../../src/nats/connection.ts";

/** A connection that does something else than the real one at one place. */
export function altered(connection: Connection, change: Partial<Connection>): Connection {
  const { info } = connection;
  const bound = {
    publish: connection.publish.bind(connection),
    subscribe: connection.subscribe.bind(connection),
    request: connection.request.bind(connection),
    closed: () => connection.closed(),
    ...(connection.confirmed && { confirmed: connection.confirmed }),
    close: () => connection.close(),
    ...(info && { info }),
    options: "options" in connection ? connection.options : {}, // the JetStream client looks at them
  };
  return { ...bound, ...change };
}

/** Brings the first deliveries in pieces of so many, however the server sends them. */
export function inPieces(connection: Connection, ...sizes: number[]): Connection {
  return altered(connection, {
    subscribe(subject, { callback, ...options } = {}) {
      const piece: Msg[] = [];
      return connection.subscribe(subject, {
        ...options,
        callback(error, message) {
          const delivered = message?.reply?.startsWith("$JS.ACK.");
          if (delivered && piece.push(message) < (sizes[0] ?? 1)) return;
          sizes.shift();
          for (const each of piece.splice(0)) callback?.(error, each);
          if (!delivered) callback?.(error, message); // more will not come
        },
      });
    },
  });
}

/** Loses what is requested on subjects that match: it is never sent, and never answered. */
export function losing(connection: Connection, lost: (subject: string, payload: unknown) => boolean): Connection {
  const request: Connection["request"] = (subject, payload, ...rest) =>
    lost(subject, payload) ? new Promise(() => {}) : connection.request(subject, payload, ...rest);
  return altered(connection, { request });
}
