import { setTimeout as sleep } from "node:timers/promises";
import * as z from "zod";
import { createApp } from "../../src/app.ts";
import { defineConsumer } from "../../src/define/consumer.ts";
import { defineStream } from "../../src/define/stream.ts";

/** What the handlers do with a large message. */
export const handle = () => sleep(10);

const stream = defineStream("BENCH_MEMORY", { subjects: { "bench.memory": z.object({ image: z.string() }) } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const consumer = defineConsumer(stream, "worker", { deadLetter: "dead.bench" }); // all else as it comes

export const app = createApp({ streams: [stream, dead] }).on(consumer, handle);
