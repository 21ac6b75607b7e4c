import { type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { type App, createApp } from "../src/app.ts";
import { type ConsumerOptions, defineConsumer } from "../src/define/consumer.ts";
import { defineStream } from "../src/define/stream.ts";
import { apply } from "../src/provision/apply.ts";
import { Order, orderAt } from "./order.ts";

/** A stream on the server with messages waiting; one consumer, and Sortie's app for it. */
export interface Backlog {
  readonly app: App;
  readonly stream: string;
  readonly consumer: string;
  readonly subject: string;
  /** Waits until the server has nothing left to deliver of it, or to be told of, then deletes it. */
  cleared(): Promise<void>;
}

interface Options
  extends Pick<ConsumerOptions<string>, "batch" | "concurrency" | "confirm" | "idempotency" | "rateLimit" | "breaker"> {
  /** What becomes of a message that is settled. @default "workqueue" */
  retention?: "workqueue" | "limits";
  handler?(message: { data: unknown }): unknown;
}

let made = 0;

/** Makes one with `count` messages, as `sortie apply` would; the bare client's consumer is the same. */
export async function startBacklog(
  nc: NatsConnection,
  count: number,
  { handler = () => {}, retention = "workqueue", ...options }: Options = {},
): Promise<Backlog> {
  made += 1;
  const [name, subject] = [`BENCH_${process.pid}_${made}`, `bench.${process.pid}.${made}.placed`];
  const stream = defineStream(name, { subjects: { [subject]: Order }, retention });
  const dead = defineStream("DEAD", { captures: ["dead.>"] });
  const consumer = defineConsumer(stream, "worker", { ...options, deadLetter: "dead.bench" });
  const app = createApp({ streams: [stream, dead] }).on(consumer, handler);
  await apply(nc, { streams: app.streams, consumers: [consumer] });
  await publishMany(nc, subject, count, (n) => JSON.stringify(orderAt(n)));
  const jsm = await jetstreamManager(nc, { checkAPI: false });
  return { app, stream: name, consumer: consumer.name, subject, cleared: () => cleared(jsm, name, consumer.name) };
}

/** Publishes without waiting for each PubAck; every thousandth tells that those before it are stored. */
export async function publishMany(nc: NatsConnection, subject: string, count: number, payload: (n: number) => string) {
  const js = jetstream(nc);
  for (let n = 1; n <= count; n++) {
    if (n % 1_000 === 0 || n === count) await js.publish(subject, payload(n));
    else nc.publish(subject, payload(n));
  }
}

async function cleared(jsm: JetStreamManager, stream: string, consumer: string): Promise<void> {
  for (const giveUpAt = Date.now() + 10_000; ; ) {
    const { num_pending, num_ack_pending } = await jsm.consumers.info(stream, consumer);
    const left = num_pending + num_ack_pending;
    if (left === 0) break;
    if (Date.now() > giveUpAt) throw new Error(`${left} messages of ${stream} were not settled`);
  }
  await jsm.streams.delete(stream);
}
