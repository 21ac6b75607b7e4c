import { createApp } from "../../src/app.ts";
import { defineConsumer } from "../../src/define/consumer.ts";
import { defineStream } from "../../src/define/stream.ts";
import { Order } from "../order.ts";

const stream = defineStream("BENCH_WORKERD", { subjects: { "bench.workerd": Order }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const consumer = defineConsumer(stream, "worker", { batch: 100, concurrency: 100, deadLetter: "dead.bench" });

export const app = createApp({ streams: [stream, dead] }).on(consumer, () => {});
