import type { App } from "../app.ts";
import { ownStreams } from "../define/own.ts";
import { textOf } from "../errors.ts";
import { assertLoggedIn, type Connection } from "../nats/connection.ts";
import { consumerInfo } from "../nats/consumer-info.ts";
import { streamInfo } from "../nats/stream-info.ts";

/** How a stream of the app is, or one of Sortie's own; only `error` where it could not be seen. */
interface StreamHealth {
  readonly name: string;
  readonly messages?: number;
  readonly bytes?: number;
  readonly error?: string;
}

/** How a consumer of the app is. */
interface ConsumerHealth {
  readonly stream: string;
  readonly name: string;
  /** Messages that it has to deliver, or to be told about. */
  readonly lag?: number;
  /** Of those, how many were delivered and are not settled. */
  readonly unsettled?: number;
  readonly paused?: boolean;
  readonly error?: string;
}

/** How an app is. */
export interface Health {
  /** `failing` where something has an error. */
  readonly status: "ok" | "failing";
  readonly server: { readonly version?: string };
  readonly streams: readonly StreamHealth[];
  readonly consumers: readonly ConsumerHealth[];
}

/**
 * Looks at all of an app's streams and consumers at the same time, and at what it needs of Sortie's own streams. Throws only
 * where the log-in was refused.
 */
export async function healthOf(
  connection: Connection,
  { streams, bindings, fanOut }: Pick<App, "streams" | "bindings" | "fanOut">,
  ms: number,
): Promise<Health> {
  const consumers = bindings.map(({ consumer }) => consumer);
  const own = ownStreams(consumers, { fanOut, scheduled: streams.filter(({ schedules }) => schedules) });
  const [streamsNow, consumersNow] = await Promise.all([
    Promise.all([...streams, ...own].map(({ name }) => told({ name }, streamNow(connection, name, ms)))),
    Promise.all(
      consumers.map(({ stream, name }) =>
        told({ stream: stream.name, name }, consumerNow(connection, { stream: stream.name, consumer: name }, ms)),
      ),
    ),
  ]);
  const isFailing = [...streamsNow, ...consumersNow].some(({ error }) => error !== undefined);
  if (isFailing) await assertLoggedIn(connection);
  const version = connection.info?.version;
  return {
    status: isFailing ? "failing" : "ok",
    server: { ...(version !== undefined && { version }) },
    streams: streamsNow,
    consumers: consumersNow,
  };
}

async function streamNow(connection: Connection, name: string, ms: number) {
  const { state } = await streamInfo(connection, name, ms, "looking the stream up");
  return { messages: state.messages, bytes: state.bytes };
}

async function consumerNow(connection: Connection, which: { stream: string; consumer: string }, ms: number) {
  const { num_pending = 0, num_ack_pending = 0, paused, error } = await consumerInfo(connection, which, ms);
  if (error) throw new Error("consumer not found");
  return { lag: num_pending + num_ack_pending, unsettled: num_ack_pending, ...(paused && { paused }) };
}

/** What is known of something, or why nothing is. */
async function told<Of extends object, Known extends object>(
  what: Of,
  looking: Promise<Known>,
): Promise<Of & Partial<Known> & { error?: string }> {
  try {
    return { ...what, ...(await looking) };
  } catch (error) {
    return { ...what, error: textOf(error) } as Of & Partial<Known> & { error: string };
  }
}
