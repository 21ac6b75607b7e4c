import { type JetStreamClient, type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import type { Connection } from "./connection.ts";

// The JetStream client asks for a whole NatsConnection but uses only this slice of it (and `options`, which all have).
const whole = (connection: Connection) => connection as NatsConnection;

export function publisherOn(connection: Connection): JetStreamClient {
  return jetstream(whole(connection));
}

export function managerOn(connection: Connection): Promise<JetStreamManager> {
  return jetstreamManager(whole(connection), { checkAPI: false });
}

/** Whether nobody listens on a subject: for a publish, that no stream captures it. Both generations of the client say it. */
export function isNoResponders(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return error.name === "JetStreamNotEnabled" || ("code" in error && error.code === "503");
}

/** Whether the connected server is `wanted` ("2.12") or newer. */
export function serverIsAtLeast(connection: Connection, wanted: string): boolean {
  return (connection.info?.version ?? "0").localeCompare(wanted, "en", { numeric: true }) >= 0;
}
