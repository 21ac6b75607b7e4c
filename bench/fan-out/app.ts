import { setTimeout as sleep } from "node:timers/promises";
import { createApp } from "../../src/app.ts";
import { defineConsumer } from "../../src/define/consumer.ts";
import { defineStream } from "../../src/define/stream.ts";
import { Order } from "../order.ts";

export const subject = "bench.fan-out";

const stream = defineStream("BENCH_FAN_OUT", { subjects: { [subject]: Order }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const consumer = defineConsumer(stream, "worker", { deadLetter: "dead.bench" });

/** How long a handler waits, in milliseconds. */
export const handler = { ms: 0 };

export const app = createApp({ streams: [stream, dead] }).on(consumer, () =>
  handler.ms > 0 ? sleep(handler.ms) : undefined,
);
