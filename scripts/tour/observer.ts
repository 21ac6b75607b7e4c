import { jetstreamManager, type StoredMsg } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";

/** Looks at the server with the plain NATS client, so that what Sortie says of itself can be checked. */
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

export async function observe(url: string): Promise<Observer> {
  const { username: user, password: pass, protocol, host } = new URL(url);
  const connection = await wsconnect({ servers: `${protocol}//${host}`, timeout: 5_000, ...(user && { user, pass }) });
  const jsm = await jetstreamManager(connection);
  const none = () => undefined;
  return {
    serverVersion: connection.info?.version ?? "unknown",
    stored: async (stream, seq) => (await jsm.streams.getMessage(stream, { seq }).catch(none)) ?? undefined,
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
