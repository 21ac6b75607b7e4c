import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import type { Connection } from "./connection.ts";

/** The JetStream client asks for a whole NatsConnection, but uses only this slice of it, and `options`, which a slice may lack. */
function whole(connection: Connection): NatsConnection {
  const { inboxPrefix } = connection;
  const all =
    "options" in connection ? connection : Object.assign(Object.create(connection), { options: { inboxPrefix } });
  return all as NatsConnection;
}

const publishers = new WeakMap<Connection, JetStreamClient>();

export function publisherOn(connection: Connection): JetStreamClient {
  let publisher = publishers.get(connection);
  if (!publisher) {
    publisher = jetstream(whole(connection));
    publishers.set(connection, publisher);
  }
  return publisher;
}

export function managerOn(connection: Connection): Promise<JetStreamManager> {
  return jetstreamManager(whole(connection), { checkAPI: false });
}

/** Whether nobody listens on a subject: for a publish, that no stream captures it, or that its stream has no leader. */
export function isNoResponders(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  // as the two generations of the client say it, and their JetStream part
  return error.name === "JetStreamNotEnabled" || /^no responders|^503$/i.test(error.message);
}

/** Whether an answer did not come in time, as the two generations of the client and `within` say it. */
export function isTimeout(error: unknown): boolean {
  if (error instanceof SortieError) return error.code === "timed-out";
  return error instanceof Error && (error.name === "TimeoutError" || ("code" in error && error.code === "TIMEOUT"));
}

/** Whether there was no connection any more, as the two generations of the client say it. */
export function isConnectionLost(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return (
    /^(ClosedConnection|DrainingConnection|Connection)Error$/.test(error.name) ||
    /^CONNECTION_|^connection (closed|disconnected)$/.test(error.message)
  );
}

const versions = new Intl.Collator("en", { numeric: true }); // made once: it is asked for each schedule

/** Whether the connected server is `wanted` ("2.12") or newer. */
export function serverIsAtLeast(connection: Connection, wanted: string): boolean {
  return isAtLeast(connection.info?.version, wanted);
}

/** Whether a server's version ("2.10.27") is `wanted` ("2.12") or newer. */
export function isAtLeast(version = "0", wanted: string): boolean {
  return versions.compare(version, wanted) >= 0;
}
