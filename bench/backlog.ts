import { type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { type App, createApp } from "../src/app.ts";
import { type ConsumerOptions, defineConsumer } from "../src/define/consumer.ts";
import { defineStream } from "../src/define/stream.ts";
import { apply } from "../src/provision/apply.ts";
import { Order, orderAt } from "./order.ts";

/** A work queue on the server with messages waiting; one consumer, and Sortie's app for it. */
export interface Backlog {
  readonly app: App;
  readonly stream: string;
  readonly consumer: string;
  readonly subject: string;
  /** Waits until the server has nothing left of it, then deletes it. */
  cleared(): Promise<void>;
}

type Options = Pick<ConsumerOptions<string>, "batch" | "concurrency" | "confirm">;

let made = 0;

/** Makes one with `count` messages, as `sortie apply` would; the bare client's consumer is the same. */
export async function startBacklog(
  nc: NatsConnection,
  count: number,
  { handler = () => {}, ...options }: Options & { handler?: (message: { data: unknown }) => unknown } = {},
): Promise<Backlog> {
  made += 1;
  const [name, subject] = [`BENCH_${process.pid}_${made}`, `bench.${process.pid}.${made}.placed`];
  const stream = defineStream(name, { subjects: { [subject]: Order }, retention: "workqueue" });
  const dead = defineStream("DEAD", { captures: ["dead.>"] });
  const consumer = defineConsumer(stream, "worker", { ...options, deadLetter: "dead.bench" });
  const app = createApp({ streams: [stream, dead] }).on(consumer, handler);
  await apply(nc, { streams: app.streams, consumers: [consumer] });
  await publishMany(nc, subject, count, (n) => JSON.stringify(orderAt(n)));
  const jsm = await jetstreamManager(nc, { checkAPI: false });
  return { app, stream: name, consumer: "worker", subject, cleared: () => cleared(jsm, name) };
}

/** Publishes without waiting for each PubAck; every thousandth tells that those before it are stored. */
export async function publishMany(nc: NatsConnection, subject: string, count: number, payload: (n: number) => string) {
  const js = jetstream(nc);
  for (let n = 1; n <= count; n++) {
    if (n % 1_000 === 0 || n === count) await js.publish(subject, payload(n));
    else nc.publish(subject, payload(n));
  }
}

async function cleared(jsm: JetStreamManager, stream: string): Promise<void> {
  const giveUpAt = Date.now() + 10_000;
  for (;;) {
    const { messages } = (await jsm.streams.info(stream)).state;
    if (messages === 0) break;
    if (Date.now() > giveUpAt) throw new Error(`${messages} messages of ${stream} were not settled`);
  }
  await jsm.streams.delete(stream);
}
