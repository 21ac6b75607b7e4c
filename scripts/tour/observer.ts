import { jetstreamManager, type StoredMsg } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect } from "../../src/nats/connection.ts";

/** Looks at the server with the plain JetStream client, so that what Sortie says of itself can be checked. */
export interface Observer extends AsyncDisposable {
  readonly serverVersion: string;
  /** The stored message, or undefined where the stream has none of this sequence. */
  stored(stream: string, sequence: number): Promise<StoredMsg | undefined>;
  /** Every stored message of a subject, oldest first. */
  all(stream: string, subject: string): Promise<StoredMsg[]>;
  /** The highest sequence up to which a consumer has everything acknowledged or terminated. */
  ackFloor(stream: string, consumer: string): Promise<number>;
  /** Publishes past Sortie, as any other NATS client could; answers the sequence. */
  publishRaw(subject: string, payload: string): Promise<number>;
}

/** @throws Error for a server that cannot release messages by itself. */
export async function observe(settings: {
  NATS_URL: string;
  NATS_CREDS: string;
  NATS_TOKEN: string;
}): Promise<Observer> {
  const { NATS_URL: url, NATS_CREDS: creds, NATS_TOKEN: token } = settings;
  const connection = (await connect({ url, creds, token, name: "tour" }, 5_000)) as NatsConnection;
  const serverVersion = connection.info?.version ?? "unknown";
  if (serverVersion.localeCompare("2.12", "en", { numeric: true }) < 0) {
    await connection.close();
    throw new Error(
      `The tour schedules a reminder, which takes nats-server 2.12 or newer; the one at NATS_URL is ${serverVersion}.`,
    );
  }
  const jsm = await jetstreamManager(connection);
  return {
    serverVersion,
    stored: async (stream, seq) => (await jsm.streams.getMessage(stream, { seq })) ?? undefined,
    async all(stream, next_by_subj) {
      const messages: StoredMsg[] = [];
      for (let seq = 1; ; seq = (messages.at(-1)?.seq ?? 0) + 1) {
        const message = await jsm.direct.getMessage(stream, { seq, next_by_subj });
        if (!message) return messages;
        messages.push(message);
      }
    },
    ackFloor: async (stream, consumer) => (await jsm.consumers.info(stream, consumer)).ack_floor.stream_seq,
    publishRaw: async (subject, payload) => (await jsm.jetstream().publish(subject, payload)).seq,
    [Symbol.asyncDispose]: () => connection.close(),
  };
}
