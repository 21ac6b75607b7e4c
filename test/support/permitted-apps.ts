import * as z from "zod";
import { app } from "../../functions/app.ts";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import type { Samples } from "./permitted-flight.ts";

/** The sample system. */
export const sample = app;

export const sampleOf: Samples = {
  "orders.placed": { orderId: "1", card: "tok_visa", cents: 4200, remindAfterSeconds: 3600 },
  "orders.reminder": { orderId: "1" },
  "orders.statement": { of: "month" },
  "images.resize": { url: "https://example.com/a.png", width: 100 },
};

const Task = z.object({ n: z.number() });
const work = defineStream("WORK", {
  subjects: { "work.given": Task, "work.once": Task, "work.batched": Task },
  retention: "workqueue",
  schedules: "function",
});
const news = defineStream("NEWS", { subjects: { "news.*": Task } });
const dead = defineStream("DEAD", { captures: ["dead.>"] });
const retry = { attempts: 5, backoff: fixed(50) };
/** All that consumers can have; one is provisioned by somebody else. */
const given = defineConsumer(work, "given", {
  filter: "work.given",
  deadLetter: "dead.given",
  managed: false,
  rateLimit: { messages: 100, per: "1s", burst: 10 },
  retry,
});
const once = defineConsumer(work, "once", {
  filter: "work.once",
  deadLetter: "dead.once",
  idempotency: { ttl: "1h" },
  breaker: { failureRatio: 0.1, minimum: 2, openFor: "500ms" },
  retry,
});
const batched = defineConsumer(work, "batched", {
  filter: "work.batched",
  deadLetter: "dead.batched",
  rateLimit: { messages: 100, per: "1s", burst: 10, key: ({ data }) => `${data.n}` },
  retry,
});
const parking = defineConsumer(news, "parking", {
  filter: "news.*",
  deadLetter: "dead.parking",
  maxAckPending: 50,
  idempotency: { ttl: "1h", key: ({ id }) => id.replace(/^(same:.*):\d$/, "$1") },
  retry,
});
/** An app with all that there is. */
export const rich = createApp({ name: "rich", streams: [work, news, dead], fanOut: { max: 4 } })
  .on(parking, () => {})
  .on(given, () => {})
  .on(once, () => {})
  .handleBatch(batched, () => {});
export const richOf: Samples = {
  "work.given": { n: 1 },
  "work.once": { n: 1 },
  "work.batched": { n: 1 },
  "news.a": { n: 1 },
};
